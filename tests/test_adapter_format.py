"""The adapter folder, written here and read by peft, and the other way round."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tiny import scatter, tiny_llama, tokens
from torch import nn

from peftbook.scratch.adapter_format import export_lora, load_lora
from peftbook.scratch.lora import add_lora


def tuned(base: nn.Module, targets: set[str]) -> nn.Module:
    """A model whose LoRA layers hold something, as after training."""
    model = copy.deepcopy(base)
    add_lora(model, targets, rank=4, alpha=6)
    scatter(model)
    return model


@pytest.mark.parametrize("targets", [{"q_proj", "v_proj"}, {"down_proj"}])
def test_exported_lora_gives_the_same_logits_in_peft(targets, tmp_path):
    """What was trained with the page of code in the book runs wherever peft runs."""
    base = tiny_llama()
    model = tuned(base, targets)
    plain = base(tokens()).logits
    export_lora(model, tmp_path, "tiny")
    theirs = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()).logits, atol=1e-6, rtol=0)
    assert (theirs(tokens()).logits - plain).abs().max() > 1e-2


def test_peft_lora_gives_the_same_logits_here(tmp_path):
    """The way back, through the files that peft itself writes."""
    base = tiny_llama()
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    theirs = get_peft_model(copy.deepcopy(base), config).eval()
    theirs.save_pretrained(tmp_path)
    names = load_lora(base, tmp_path)
    assert len(names) == 4
    torch.testing.assert_close(base(tokens()).logits, theirs(tokens()).logits, atol=1e-6, rtol=0)
    assert {n.split(".")[-1] for n, p in base.named_parameters() if p.requires_grad} == {"A", "B"}


def test_export_then_load_is_the_identity(tmp_path):
    """No number changes on the way through the file."""
    base = tiny_llama()
    model = tuned(base, {"o_proj"})
    export_lora(model, tmp_path)
    load_lora(base, tmp_path)
    for (name, ours), (other, theirs) in zip(model.named_parameters(), base.named_parameters(), strict=True):
        assert name == other and torch.equal(ours, theirs)


def test_only_some_layers_stay_only_some_layers(tmp_path):
    """Full names in the config: peft must not add LoRA to the layers that have none."""
    base = tiny_llama()
    model = copy.deepcopy(base)
    add_lora(model.model.layers[1], {"q_proj"}, rank=2, alpha=2)
    nn.init.normal_(model.model.layers[1].self_attn.q_proj.B)
    export_lora(model, tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    assert [n for n, _ in theirs.named_parameters() if "lora_A" in n] == [
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight"
    ]
    torch.testing.assert_close(theirs(tokens()).logits, model(tokens()).logits, atol=1e-6, rtol=0)


def test_tensors_are_named_as_by_peft(tmp_path):
    """Same keys and shapes as a file that peft writes for the same targets."""
    base = tiny_llama()
    export_lora(tuned(base, {"k_proj"}), tmp_path / "ours")
    get_peft_model(base, LoraConfig(r=4, target_modules=["k_proj"])).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}


def test_export_needs_one_rank_and_alpha(tmp_path):
    """The config has room for one r and one lora_alpha; without LoRA layers there is nothing to write."""
    model = tiny_llama()
    with pytest.raises(ValueError, match="found no layer"):
        export_lora(model, tmp_path)
    add_lora(model.model.layers[0], {"q_proj"}, rank=2, alpha=2)
    add_lora(model.model.layers[1], {"q_proj"}, rank=3, alpha=2)
    with pytest.raises(ValueError, match=r"found \[\(2, 2\), \(3, 2\)\]"):
        export_lora(model, tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}},
        {"modules_to_save": ["norm"]},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
    ],
)
def test_other_forms_of_lora_are_refused(setting, tmp_path):
    """They would load without an error and compute something else."""
    config = LoraConfig(r=4, target_modules=["q_proj"], **setting)
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=next(iter(setting))):
        load_lora(tiny_llama(), tmp_path)


def test_other_methods_and_other_models_are_refused(tmp_path):
    """A prompt is no LoRA, and a layer that the model lacks cannot be wrapped."""
    base = tiny_llama()
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(copy.deepcopy(base), prompt).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ValueError, match="found peft_type PROMPT_TUNING"):
        load_lora(base, tmp_path / "prompt")
    export_lora(tuned(base, {"q_proj"}), tmp_path / "lora")
    with pytest.raises(ValueError, match="the adapter belongs to another model"):
        load_lora(nn.Sequential(nn.Linear(2, 2)), tmp_path / "lora")


def test_config_is_plain_json(tmp_path):
    """A reader can open it: no field that the method does not need."""
    export_lora(tuned(tiny_llama(), {"q_proj"}), tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 6
    assert config["base_model_name_or_path"] == "tiny"
    assert len(config) == 8
