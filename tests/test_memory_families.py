"""Families of decoders that the byte model has beside those of its study: exact by module, in every way of training."""

import functools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from memory_laws import assert_flops, assert_kept, assert_peak, assert_stored
from tiny import Made, made_once

from peftbook.cli.fit import targets_named
from peftbook.core.errors import InputError
from peftbook.memory import (
    SHAPES,
    TARGETS,
    Configuration,
    DecoderShape,
    Setup,
    fit,
    read_shape,
    shape_from_config,
    training_step,
    walk,
)
from peftbook.memory.architecture import FAMILIES, NO_SDPA
from peftbook.memory.fit import as_text
from peftbook.memory.question import attention_named
from peftbook.memory.shapes import as_config
from peftbook.methods.lora import LoRA
from peftbook.methods.norm import NormTuning
from peftbook.studies import activations as study
from peftbook.training import random_model
from peftbook.training.probes import memory as probes

pytestmark = [  # peft's calls of names that transformers is giving up
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
]

# layers, width, width of the MLP, heads, key and value heads, vocabulary
SIZES = {
    "gemma2": (6, 80, 192, 4, 2, 240),
    "olmo2": (4, 96, 208, 6, 2, 160),
    "phi3": (4, 96, 176, 6, 2, 176),
    "ministral": (5, 80, 224, 5, 1, 192),
    "ministral3": (4, 64, 176, 4, 2, 144),
    "mixtral": (4, 64, 48, 4, 2, 144),
    "qwen3_moe": (4, 80, 32, 4, 4, 160),
}
TRAITS: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 24, "window": 20, "sliding": (True, False) * 3},
    "ministral": {"window": 20, "sliding": (False, True, True, True, False)},
    "mixtral": {"experts": 5, "chosen": 2},
    "qwen3_moe": {"head_dim": 16, "experts": 8, "chosen": 3},
    "phi3": {"rotary": 12, "window": 30},
}
# Parameters of the published weights, from the headers of their safetensors files
QKV = ("q_proj", "k_proj", "v_proj")
CPU = Setup(rank=4, length=6, seq=128, device="cpu")


def shape_of(family: str) -> DecoderShape:
    """The shrunk decoder of a family."""
    return DecoderShape(*SIZES[family], **(FAMILIES[family] | {"family": family} | TRAITS.get(family, {})))


def wider(family: str, vocab: int) -> DecoderShape:
    """The same with four layers, so wide that tensors outweigh what kernels need."""
    shape = shape_of(family)
    sizes = {"layers": 4, "hidden": 256, "ffn": 768, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": vocab}
    return replace(shape, sliding=shape.sliding[:4], **sizes)


def suited(shape: DecoderShape, setup: Setup) -> Setup:
    """The step with eager attention where scores are capped, and LoRA on attention alone where there are experts."""
    targets = TARGETS[:4] if shape.experts else setup.targets
    return replace(setup, attention="eager" if shape.capped_scores else setup.attention, targets=targets)


def configurations(family: str, way: str) -> dict[str, Configuration]:
    """Steps of a way of training that the study has, with and without checkpointing; their names decide what is drawn.

    Where scores are capped there is eager attention alone.
    """
    shape, (fixed, dtypes) = shape_of(family), study.WAYS[way]
    found: dict[str, Configuration] = {}
    for checkpointing in (False, True)[: 1 + (way != "prefix")]:  # a prefix cannot be checkpointed
        for attention in ("eager", "sdpa")[: 1 + (not shape.capped_scores)]:
            name = f"{family}_{way}_{attention}{'_checkpointed' * checkpointing}"
            draw = random.Random(name)
            batch = draw.choice((1, 2, 3))
            drawn = {
                "rank": draw.choice((1, 4, 7)), "length": draw.choice((3, 8)), "seq": draw.choice((17, 24, 40, 48)),
                "padding": batch > 1 and draw.random() < 0.5,
                "dropout": fixed["method"] == "lora" and draw.random() < 0.25,
            }  # fmt: skip
            given = fixed | draw.choice(dtypes) | drawn
            if shape.fused and "targets" in fixed:
                given["targets"] = QKV
            if shape.experts and "targets" not in fixed:
                given["targets"] = TARGETS[:4]
            setup = Setup(**given, batch=batch, attention=attention, checkpointing=checkpointing, device="cpu")
            found[name] = Configuration(shape, setup)
    return found


@functools.cache
def sampled() -> dict[str, Configuration]:
    """One configuration of every family and way of training."""
    found: dict[str, Configuration] = {}
    for family in SIZES:
        for index, way in enumerate(study.WAYS):
            known = configurations(family, way)
            name = sorted(known)[(len(family) + index) % len(known)]
            found[name] = known[name]
    return found


@pytest.mark.parametrize("family", SIZES)
def test_a_config_json_is_read_as_transformers_writes_it(family, tmp_path):
    """The same shape that the settings were made from."""
    shape = shape_of(family)
    as_config(shape).save_pretrained(tmp_path)
    assert replace(read_shape(tmp_path), context=0) == shape
    assert Configuration.parse(Configuration(shape, CPU).text) == Configuration(shape, CPU)


@pytest.fixture(scope="module")
def made() -> Made:
    """A sampled configuration by its name, with its model and ids, which several tests compute with."""
    return made_once(sampled())


@pytest.mark.parametrize("name", sampled())
def test_autograd_keeps_what_the_walk_says(name, made):
    """Module by module and byte by byte."""
    one, tuned, ids = made(name)
    assert probes.kept_by_module(tuned, ids, one.shape) == one.kept_by_module()


def test_a_tape_knows_no_sizes():
    """That of a shape is, operation by operation, that of the least shape which it is looked up by."""
    known = [one for part in study.GRID.values() for one in part.values()]
    known += [Configuration(one.shape, replace(one.setup, seq=4 * max(1, one.shape.window))) for one in known[::4]]
    windows = set()
    for one in known:
        shape, setup = walk.without_sizes(one.shape, one.setup)
        direct = walk.walked(one.shape, walk.alike(one.shape, one.setup))
        again = walk.walked(shape, setup)
        assert (again.tape.operations, again.copies) == (direct.tape.operations, direct.copies), one.text
        windows.add(shape.window)
    assert windows == {0, 1, walk.NEVER_FULL}


PEAKS = {
    "lora": CPU, "full": replace(CPU, method="full", dtype="fp32"), "qlora": replace(CPU, quantised="nf4"),
    "ia3": replace(CPU, method="ia3"), "padded": replace(CPU, batch=3, padding=True),
    "full_autocast_checkpointed": replace(CPU, method="full", dtype="fp32", autocast=True, checkpointing=True),
}  # fmt: skip


# every family in every way, by turns so that a layer or the logits decide
CASES = [
    (family, way, (512, 8192)[(row + column) % 2])
    for row, family in enumerate(SIZES)
    for column, way in enumerate(PEAKS)
]


@pytest.mark.parametrize(("family", "way", "vocab"), CASES)
def test_the_peak_is_that_of_torchs_allocator(family, way, vocab):
    """Whether a layer or the logits are the largest moment; in 128 tokens, where kernels need next to nothing.

    All weights are trained in float32: a processor without instructions for bfloat16 widens what attention reads.
    """
    shape = wider(family, vocab)
    setup = suited(shape, PEAKS[way])
    if shape.experts:  # whose grouped products in bfloat16 such a processor computes number by number
        setup = replace(setup, dtype="fp32")
    assert_peak(shape, setup)


STORED = {
    "full": replace(CPU, method="full", seq=24), "lora": replace(CPU, seq=24),
    "ia3": replace(CPU, method="ia3", seq=24), "qlora": replace(CPU, quantised="nf4", seq=24),
}  # fmt: skip


@pytest.mark.parametrize("way", STORED)
@pytest.mark.parametrize("family", SIZES)
def test_weights_adapter_and_moments_are_the_stored_bytes(family, way):
    """And the gradients of all that is trained."""
    shape = replace(shape_of(family), hidden=128, ffn=256, head_dim=32)
    assert_stored(shape, suited(shape, STORED[way]), kept=False)


@pytest.mark.parametrize("name", list(sampled())[::3])
def test_matrix_products_are_those_that_torch_counts(name, made):
    """Forward, backward, and what checkpointing computes again, to the last operation."""
    assert_flops(*made(name))


def test_capped_logits_of_labels_alone():
    """A loop whose head sees the positions with a label caps their logits too."""
    shape, setup = shape_of("gemma2"), replace(CPU, attention="eager", seq=24, labels=10)
    assert_kept(shape, setup)


def test_a_cap_is_as_the_settings_say():
    """Without one a layer is that of a decoder with four norms."""
    config = as_config(shape_of("gemma2")).to_dict() | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    plain = shape_from_config(config)
    assert not plain.capped_scores and not plain.capped_logits
    setup = replace(CPU, attention="eager", seq=24)
    assert_kept(plain, setup)


def test_no_fused_attention_is_proposed_where_a_cpu_has_none():
    """A step with eager attention that does not fit is told other ways; on a GPU, flash attention caps its scores."""
    eager = Setup(attention="eager", seq=2048, batch=2)
    for device, there in (("cpu", False), ("cuda", True)):
        one = Configuration(SHAPES["gemma-2-2b"], replace(eager, device=device))
        changes = fit(one, 0.9 * one.step.peak().total).changes
        assert any("flash attention" in change.names for change in changes) == there


def test_the_command_takes_the_attention_that_transformers_takes():
    """For every family: the class is built with what is asked for and with what is advised, and refuses what we refuse.

    flash-attn is not here: of it the class says whether it takes it.
    """
    from transformers import AutoModelForCausalLM

    def built(shape, attention):
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(as_config(shape), attn_implementation=attention)

    for family in FAMILIES:
        shape = shape_of(family) if family in SIZES else study.shape_of(family)
        eager = Configuration(shape, suited(shape, Setup(attention="eager", seq=4096, batch=2)))
        advised = {
            str(change.fields["attention"])
            for change in fit(eager, 0.9 * eager.step.peak().total).changes
            if "attention" in change.fields
        }
        assert advised, family
        for name in (attention_named("auto", family), "eager", *advised):
            model = built(shape, "eager" if name == "flash_attention_2" else name)
            assert name != "flash_attention_2" or type(model)._supports_flash_attn
        if family in NO_SDPA:
            with pytest.raises(InputError, match="choose eager or flash_attention_2"):
                attention_named("sdpa", family)
            with pytest.raises(ValueError, match="does not support"):
                built(shape, "sdpa")
        assert (type(built(shape, "eager"))._supports_sdpa is False) == (family in NO_SDPA)


def test_a_fused_matrix_is_adapted_whole():
    """All seven names stand for peft's all-linear; a part alone stands for nothing."""
    import peft

    shape = shape_of("phi3")
    model = random_model.random_model(shape, CPU, 0)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    found = {name.rpartition(".")[2] for name in tuned.targeted_module_names}
    assert set(shape.adapted(TARGETS)) == found == set(shape.linears)
    assert shape.adapted(QKV) == shape.adapted(["qkv_proj"]) == ("qkv_proj",)
    assert training_step(shape, replace(CPU, targets=QKV)).peak().total < training_step(shape, CPU).peak().total


def test_targets_of_a_fused_family_go_by_its_own_names_too():
    """The command and a run's method say q_proj, k_proj, v_proj of the one matrix that holds them."""
    assert targets_named("qkv_proj,o_proj") == (*QKV, "o_proj")
    assert set(targets_named("all")) == set(targets_named("qkv_proj,o_proj,gate_up_proj,down_proj"))
    method = LoRA(targets=("qkv_proj", "gate_up_proj"))
    shape = shape_of("phi3")
    setup = Setup(**method.setup(shape))
    step = training_step(shape, setup)
    assert step.numbers(step.state)["adapter"] == 4 * method.parameters(shape)


def test_experts_are_not_in_4_bits():
    """As transformers puts linear layers of bitsandbytes in the place of the model's own."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear

    for family in ("mixtral", "qwen3_moe"):
        shape = shape_of(family)
        model = random_model.random_model(shape, CPU, 0)
        packed = replace_with_bnb_linear(model, ["lm_head"], BitsAndBytesConfig(load_in_4bit=True))
        four = {name.rpartition(".")[2] for name, part in packed.named_modules() if type(part).__name__ == "Linear4bit"}
        assert four == set(shape.linears) == set(TARGETS[:4])


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
def test_all_of_a_mixture_is_refused_since_peft_adapts_its_experts():
    """peft's all-linear takes the experts too, as parameters: what is not counted is not answered."""
    import peft

    shape = shape_of("mixtral")
    model = random_model.random_model(shape, CPU, 0)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert tuned.peft_config["default"].target_parameters >= {"gate_up_proj", "down_proj"}
    with pytest.raises(InputError, match="choose attention"):
        training_step(shape, CPU)


def test_the_ways_out_of_too_little_memory_leave_experts_alone():
    """Every change that is proposed can be computed, and LoRA is on attention."""
    one = Configuration(SHAPES["mixtral-8x7b"], Setup(method="full"))
    names = [name for change in fit(one, 0.5 * one.step.peak().total).changes for name in change.names]
    assert any("LoRA on attention" in name for name in names) and not any("all matrices" in name for name in names)


def test_what_stays_whole_is_said():
    """A base in 4 bits does little where experts hold the weights."""
    setup = Setup(quantised="nf4", targets=TARGETS[:4], seq=512)
    for name, there in (("mixtral-8x7b", True), ("llama-2-7b", False)):
        answer = fit(Configuration(SHAPES[name], setup), 2**30 * 96)
        assert ("Experts stay whole" in as_text(answer, name)) == there
    experts = 2 * 32 * 8 * 3 * 4096 * 14336
    step = training_step(SHAPES["mixtral-8x7b"], setup)
    assert experts < step.numbers(step.state)["weights"] < 1.1 * experts


def test_the_gains_of_joint_norms_are_as_wide_as_the_heads():
    """What is trained where the norms' gains alone are."""
    shape = shape_of("olmo2")
    tuned = random_model.random_model(shape, CPU, 0)
    gains = sum(value.numel() for name, value in tuned.named_parameters() if "norm" in name)
    assert NormTuning().parameters(shape) == gains


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training_step(shape_of("phi3"), replace(CPU, targets=("q_proj",))), "a part of qkv_proj"),
        (lambda: training_step(shape_of("mixtral"), replace(CPU, targets=("up_proj",))), "LoRA on experts"),
        (lambda: replace(shape_of("mixtral"), chosen=9), "9 of 5 experts"),
        (lambda: training_step(shape_of("gemma2"), CPU), "choose eager attention"),
    ],
)
def test_bad_input_names_the_value_and_the_fix(make, message):
    with pytest.raises(InputError, match=message):
        make()
