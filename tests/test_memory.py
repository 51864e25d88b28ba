"""The byte model: what it predicts is what autograd keeps and torch's allocator hands out, in every architecture."""

import functools
import hashlib
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from memory_laws import assert_flops, assert_peak, assert_stored, subject
from tiny import Made, first_step, made_once

from peftbook.core.errors import InputError
from peftbook.memory import SHAPES, Configuration, DecoderShape, Setup, bytes_of_text, fit, read_shape, training_step
from peftbook.memory.fit import CARDS, GPU_RESERVE, as_json, as_text, bytes_of_card, card_note, largest
from peftbook.memory.known_shapes import HUB_IDS
from peftbook.memory.names import OPTIMISER_NAMES, meant
from peftbook.memory.question import Question, answered
from peftbook.memory.setup import TARGETS
from peftbook.memory.shapes import FAMILIES, as_config, quantised_in, shape_from_config
from peftbook.memory.step import loading
from peftbook.memory.tape import Tape, Weight, evaluate
from peftbook.memory.walk import walk
from peftbook.studies import activations as study
from peftbook.training import random_model
from peftbook.training.probes import memory as probes

pytestmark = [  # peft's calls of names that transformers is giving up
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
]

# Parameters of the published weights, from the headers of their safetensors files
PUBLISHED = {
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "mistral-7b-v0.3": 7_248_023_552,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
    "llama-3.2-3b": 3_212_749_824, "mistral-7b": 7_241_732_096, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen3-0.6b": 596_049_920,
    "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320,
    "ministral-8b-2410": 8_019_808_256, "mixtral-8x7b": 46_702_792_704, "qwen3-30b-a3b": 30_532_122_624,
    "phi-3-mini": 3_821_079_552, "phi-4-mini": 3_836_021_760, "phi-4": 14_659_507_200,
    "mistral-small-24b": 23_572_403_200, "olmo-2-7b": 7_298_617_344, "olmo-2-13b": 13_716_198_400,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896, "gemma-3-1b": 999_885_952,
    "gemma-3-270m": 268_098_176, "tinyllama-1.1b": 1_100_048_384, "phi-3-mini-128k": 3_821_079_552,
}  # fmt: skip
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip
SMALL = DecoderShape(layers=4, hidden=64, ffn=160, heads=4, kv_heads=2, vocab=512, tied=True)
CPU = Setup(rank=4, length=6, seq=24, device="cpu")
GIB = 2**30


@functools.cache
def sampled() -> dict[str, Configuration]:
    """One configuration of every architecture and way of training, from both halves of the study's grid."""
    both = {**study.GRID["open"], **study.GRID["held-out"]}
    found: dict[str, Configuration] = {}
    for family in study.SIZES:
        for way in study.WAYS:
            names = sorted(name for name in both if name.rsplit("_", 1)[0].startswith(f"{family}_{way}_"))
            names = names or sorted(name for name in both if name.startswith(f"{family}_{way}_"))
            name = names[len(family + way) % len(names)]
            found[name] = both[name]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_shape_has_the_published_number_of_parameters(name):
    """A slip in one size would change the count."""
    assert SHAPES[name].parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_that_transformers_makes(name):
    """Biases, head norms, further norms and tied embeddings, counted on two layers of every known shape."""
    from transformers import AutoModelForCausalLM

    shape = replace(SHAPES[name], layers=2, sliding=())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(as_config(shape))
    assert shape.parameters == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("family", study.SIZES)
def test_a_config_json_is_read_as_transformers_writes_it(family, tmp_path):
    """From the file, from its folder, and the same shape that the settings were made from."""
    shape = study.shape_of(family)
    config = as_config(shape)
    config.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        assert replace(read_shape(source), context=0) == shape


@pytest.fixture(scope="module")
def made() -> Made:
    """A sampled configuration by its name, with its model and ids, which several tests compute with."""
    return made_once(sampled())


@pytest.mark.parametrize("name", sampled())
def test_autograd_keeps_what_the_walk_says(name, made):
    """Module by module and byte by byte."""
    one, tuned, ids = made(name)
    assert probes.kept_by_module(tuned, ids, one.shape) == one.kept_by_module()


LABELLED = {
    "lora": CPU, "full_autocast": replace(CPU, method="full", dtype="fp32", autocast=True),
    "lora_held": replace(CPU, dtype="fp32", autocast=True, held=True),
    "ia3_checkpointed": replace(CPU, method="ia3", checkpointing=True), "qlora": replace(CPU, quantised="nf4"),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("setup", LABELLED.values(), ids=LABELLED)
def test_autograd_keeps_logits_of_labels_alone(setup, batch):
    """The book's loop, whose head sees the positions with a label: exact, and its peak far below that of all logits.

    A processor with matrix units packs what it multiplies: a quarter more of so small a peak.
    """
    shape, setup = replace(SMALL, vocab=8192), replace(setup, batch=batch, seq=64, labels=10)
    one = Configuration(shape, setup)
    tuned, ids = subject(shape, setup)
    assert probes.kept_by_module(tuned, ids, shape) == one.kept_by_module()
    first_step(tuned, ids)
    measured = probes.allocated_peak(lambda: tuned.step(ids))
    assert 0.9 < measured / sum_beyond(one) < 1.3
    assert sum_beyond(one) < 0.8 * sum_beyond(Configuration(shape, replace(setup, labels=0)))


ACCUMULATED = {
    "lora": replace(CPU, rank=64), "lora_checkpointed": replace(CPU, rank=64, checkpointing=True),
    "full": replace(CPU, method="full"),
    "full_autocast": replace(CPU, method="full", dtype="fp32", autocast=True),
    "full_checkpointed": replace(CPU, method="full", checkpointing=True),
}  # fmt: skip


@pytest.mark.parametrize("setup", ACCUMULATED.values(), ids=ACCUMULATED)
def test_gradients_stay_while_micro_batches_are_summed(setup):
    """The second backward pass adds to what the first left: its peak lies higher by no less than the gradients of the
    layers that a single one has not reached yet."""
    shape, setup = replace(SMALL, hidden=256, ffn=768, head_dim=64, vocab=2048), replace(setup, seq=128)
    one = Configuration(shape, replace(setup, accumulated=True))
    tuned, ids = subject(shape, setup)
    first_step(tuned, ids)
    tuned.loss(ids).backward()
    measured = probes.allocated_peak(lambda: tuned.loss(ids).backward())  # beyond the gradients that are there
    gradients = one.step.numbers({"gradients": one.step.gradients})["gradients"]
    assert sum_beyond(one) == pytest.approx(measured, rel=0.1)
    assert one.step.numbers(one.step.state)["gradients"] == gradients
    assert one.step.peak().total > Configuration(shape, setup).step.peak().total


def sum_beyond(one: Configuration) -> float:
    """Bytes at the peak beyond the state."""
    return sum(size for name, size in one.step.peak().terms.items() if name not in one.step.state)


@pytest.mark.parametrize("name", list(sampled())[::3])
def test_matrix_products_are_those_that_torch_counts(name, made):
    """Forward, backward, and what checkpointing computes again, to the last operation."""
    assert_flops(*made(name))


PEAKS = {
    "lora": CPU,
    "full": replace(CPU, method="full"),
    "eager": replace(CPU, attention="eager"),
    "autocast": replace(CPU, dtype="fp32", autocast=True),
    "full_autocast_checkpointed": replace(CPU, method="full", dtype="fp32", autocast=True, checkpointing=True),
    "prompt_checkpointed": replace(CPU, method="prompt", checkpointing=True),
    "padded": replace(CPU, batch=3, padding=True),
    "ia3": replace(CPU, method="ia3"),
    "frozen_a": replace(CPU, freeze_a=True),
    "qlora": replace(CPU, quantised="nf4"),
}


@pytest.mark.parametrize("vocab", [512, 8192], ids=["layers_decide", "logits_decide"])
@pytest.mark.parametrize("setup", PEAKS.values(), ids=PEAKS)
def test_the_peak_is_that_of_torchs_allocator(setup, vocab):
    """Whether a layer or the logits are the largest moment; in 128 tokens, where kernels need next to nothing.

    What they need is the processor's own: one with matrix units packs what it multiplies.
    """
    assert_peak(replace(SMALL, hidden=256, ffn=768, head_dim=64, vocab=vocab), replace(setup, seq=128))


@pytest.mark.parametrize(
    "setup",
    [
        CPU,
        replace(CPU, method="full"),
        replace(CPU, quantised="nf4"),
        replace(CPU, quantised="fp4", double=False, dtype="fp32"),
        replace(CPU, method="prefix"),
        replace(CPU, method="full", optimiser="adamw_8bit"),
        replace(CPU, optimiser="adamw_8bit", rank=64),
    ],
    ids=str,
)
def test_weights_adapter_and_moments_are_the_stored_bytes(setup):
    """Codes and constants of 4-bit weights with their tables, and bitsandbytes' moments in 8 bits with theirs."""
    assert_stored(replace(SMALL, hidden=128, ffn=256, head_dim=32), setup)


def test_layers_that_are_alike_are_walked_once():
    """The polynomials of a deep model are those of a walk through each of its layers."""
    setup = replace(CPU, checkpointing=True)
    for one in (setup, replace(CPU, method="full"), replace(CPU, quantised="nf4"), replace(CPU, method="prefix")):
        seven, eight, thirteen = (training_step(replace(SMALL, layers=each, sliding=()), one) for each in (7, 8, 13))
        for size in (lambda step: sum(step.numbers(step.kept).values()), lambda step: step.peak().total):
            grown = size(eight) - size(seven)
            assert size(thirteen) - size(eight) == pytest.approx(5 * grown, rel=1e-6)


def test_what_a_kind_of_layers_shares_is_counted_once():
    """Gemma 3 rotates in two ways: more layers, of which one sees everything, keep no further tables of cosines."""
    kinds = (True, True, False)
    traits = FAMILIES["gemma3_text"] | {"family": "gemma3_text", "head_dim": 16, "window": 20}
    shape = DecoderShape(6, 64, 128, 4, 2, 200, sliding=kinds * 2, **traits)
    for setup in (replace(CPU, batch=2, padding=True), replace(CPU, checkpointing=True)):
        one = Configuration(shape, setup)
        tuned, ids = subject(shape, setup)
        assert probes.kept_by_module(tuned, ids, shape) == one.kept_by_module()
        longer = replace(shape, layers=9, sliding=kinds * 3)
        grown = [Configuration(each, setup).step.peak().total for each in (shape, longer)]
        first_step(tuned, ids)
        peak = probes.allocated_peak(lambda tuned=tuned, ids=ids: tuned.step(ids))
        deep = random_model.subject(longer, setup, 0)
        first_step(deep, ids)
        more = probes.allocated_peak(lambda deep=deep, ids=ids: deep.step(ids)) - peak
        state = [
            sum(Configuration(e, setup).step.numbers(Configuration(e, setup).step.state).values())
            for e in (shape, longer)
        ]
        assert (grown[1] - state[1]) - (grown[0] - state[0]) == pytest.approx(more, rel=0.03)


BOOK = {  # elements of 2 bytes that a layer keeps for each token: coefficients of h, kv width, f, r
    "bf16_adapters": (replace(CPU, adapter_dtype="bf16"), (8, 2, 4, 7)),
    "default": (CPU, (18, 2, 5, 14)),
    "qv_bf16_adapters": (replace(CPU, targets=("q_proj", "v_proj"), adapter_dtype="bf16"), (7, 2, 3, 2)),
    "qv": (replace(CPU, targets=("q_proj", "v_proj")), (10, 2, 3, 4)),
    "frozen_a": (replace(CPU, freeze_a=True), (6, 2, 3, 14)),
    "prompt": (replace(CPU, method="prompt"), (6, 2, 3, 0)),
    "full": (replace(CPU, method="full"), (10, 2, 4, 0)),
}


@pytest.mark.parametrize(("setup", "coefficients"), BOOK.values(), ids=BOOK)
def test_a_layer_keeps_what_the_closed_form_says(setup, coefficients):
    """c₁h + c₂·2h_kv + c₃f + c₄r values of 2 bytes a token, and float32 scalars: one a head and two for the norms."""
    walked, symbols = walk(SMALL, setup), SMALL.symbols | setup.symbols
    found = sum(evaluate(size, symbols) for name, size in walked.tape.kept().items() if name.startswith("layers.2."))
    h, kv, f, r = coefficients
    values = h * SMALL.hidden + kv * SMALL.kv_width + f * SMALL.ffn + r * setup.rank
    assert found == symbols["t"] * (2 * values + 4 * SMALL.heads + 8)


def test_the_table_gives_the_same_bytes_elsewhere():
    """Evaluated from its JSON alone, for other rows, tokens and ranks."""
    setup = replace(CPU, batch=2, device="cuda")
    table = json.loads(json.dumps(training_step(SMALL, setup).table()))

    def value(terms, symbols):
        total = 0.0
        for coefficient, *names in terms:
            for name in names:
                coefficient *= symbols[name]
            total += coefficient
        return total

    for batch, seq, rank in ((2, 24, 4), (5, 300, 4), (3, 77, 16)):
        other = replace(setup, batch=batch, seq=seq, rank=rank)
        symbols = table["symbols"] | other.symbols
        state = sum(value(terms, symbols) for terms in table["state"].values())
        moments = [sum(value(terms, symbols) for terms in one["terms"].values()) for one in table["moments"]]
        assert state + max(moments) == pytest.approx(training_step(SMALL, other).peak().total)


def test_four_bits_and_their_constants_are_what_the_paper_counts():
    """4 bits a weight, and 8/64 + 32/(64 · 256) for doubly quantised constants; a table of codes a matrix apart."""
    shape = SHAPES["llama-2-7b"]
    state = training_step(shape, Setup(quantised="nf4"))
    found = state.numbers(state.state)
    tables = shape.layers * 7 * (16 * 4 + 256 * 4 + 4)
    stored = found["weights"] - 2 * shape.other_parameters + found["quantisation constants"] - tables
    assert 8 * stored / shape.linear_parameters == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))


def test_checkpointing_quantising_and_fusing_need_less():
    """Each of the changes that `fit` names lowers the peak of a step that is large enough."""
    one = Setup(seq=2048, attention="eager", dropout=True, batch=2)
    shape, before = SHAPES["llama-2-7b"], training_step(SHAPES["llama-2-7b"], one).peak().total
    for fields in (
        {"attention": "sdpa"},
        {"batch": 1},
        {"adapter_dtype": "bf16"},
        {"dropout": False},
        {"checkpointing": True},
        {"quantised": "nf4"},
        {"seq": 1024},
        {"targets": ("q_proj", "v_proj")},
    ):
        assert training_step(shape, replace(one, **fields)).peak().total < before, fields


def test_a_gpu_needs_no_copies_where_dtypes_meet():
    """What a CPU copies to widen it, a GPU widens on the way."""
    for setup in (CPU, replace(CPU, dtype="fp32", autocast=True)):
        there, here = (training_step(SMALL, replace(setup, device=device)).peak().total for device in ("cuda", "cpu"))
        assert there <= here


@pytest.mark.parametrize(
    "setup",
    [
        Setup(method="full"),
        Setup(),
        Setup(quantised="nf4", checkpointing=True),
        Setup(autocast=True, dtype="fp32", held=True),
    ],
    ids=["full", "lora", "qlora", "held"],
)
def test_devices_share_what_is_there_all_the_time(setup):
    """Shares add up to the whole model; what computes is on each; many devices still need whole layers and rows."""
    shape = SHAPES["llama-2-70b"]
    alone, many = training_step(shape, setup), training_step(shape, replace(setup, devices=8))
    ours, theirs = alone.numbers(alone.state), many.numbers(many.state)
    held = 4 * shape.linear_parameters if setup.held else 0  # bfloat16 in place of float32, not beside it
    assert 8 * theirs["weights"] == pytest.approx(ours["weights"] - held)
    for name in ("adapter", "moments"):
        assert 8 * theirs.get(name, 0) == pytest.approx(ours.get(name, 0))
    assert theirs.get("quantisation constants") == ours.get("quantisation constants")
    assert many.numbers(many.kept) == alone.numbers(alone.kept)
    gradients = (one.numbers({"all": one.gradients})["all"] for one in (alone, many))
    assert next(gradients) == pytest.approx(8 * next(gradients))
    bits = 0.5 if setup.quantised else 2
    least = 2 * bits * shape.linear_parameters / shape.layers + 2 * shape.vocab * shape.hidden * (
        4 if setup.held else 2
    )
    assert least < theirs["whole for a while"] < 2.2 * least
    thousand = training_step(shape, replace(setup, devices=1000)).peak().total
    assert many.peak().total < alone.peak().total and thousand > theirs["whole for a while"]


def test_the_largest_that_fits_is_the_largest():
    """One row, or one token, more is too much."""
    one = Configuration(SHAPES["qwen2.5-1.5b"], Setup(seq=1000))
    room = 20 * GIB
    for name in ("batch", "seq"):
        most = largest(one, room, name)
        at, beyond = (
            Configuration(one.shape, replace(one.setup, **{name: most + more})).step.peak().total for more in (0, 1)
        )
        assert at <= room < beyond, name


@pytest.mark.parametrize(
    "setup", [Setup(seq=2048), Setup(method="full", seq=512), Setup(batch=8, seq=2048, attention="eager")], ids=str
)
def test_every_change_that_is_named_makes_it_fit(setup):
    """And there is none where it fits already."""
    one = Configuration(SHAPES["llama-2-7b"], setup)
    found = fit(one, 24 * GIB, GIB)
    assert not found.fits and found.changes
    assert all(change.needs <= 23 * GIB for change in found.changes)
    plenty = fit(one, 4096 * GIB)
    assert plenty.fits and not plenty.changes


def test_text_and_json_say_the_same():
    """The peak and its terms, in GiB and in bytes."""
    found = fit(Configuration(SHAPES["llama-2-7b"], Setup(seq=512)), 24 * GIB, GIB)
    text, data = as_text(found, "llama-2-7b"), as_json(found)
    assert f"{data['peak_bytes'] / GIB:.3f} GiB" in text
    assert sum(data["terms_bytes"].values()) == pytest.approx(data["peak_bytes"], abs=len(data["terms_bytes"]))
    assert ("It fits" in text) == data["fits"]


def test_what_fits_with_the_upper_reserve_fits_and_with_the_lower_alone_may():
    """Three answers as the memory shrinks, and the largest batch is that of the upper one."""
    one = Configuration(SHAPES["llama-3.1-8b"], Setup(quantised="nf4", seq=1024))
    least, most = (part.fixed + (1 + part.share) * one.step.peak().total for part in GPU_RESERVE)
    said = []
    for memory in (most + 1, (least + most) / 2, least - 1):
        found = fit(one, memory, GPU_RESERVE)
        said.append(next(word for word in ("does not fit", "may fit", "fits") if f"It {word}:" in as_text(found, "x")))
        assert (found.fits, found.may_fit) == (memory >= most, memory >= least)
        assert found.fits == (found.largest_batch >= 1)
        assert ("surely fit" in as_text(found, "x")) == (said[-1] == "may fit")
    assert said == ["fits", "may fit", "does not fit"]


def test_loading_needs_what_stays_and_one_tensor_before_it_is_quantised():
    """In 16 bits nothing beside; over NF4 the largest matrix, in float32 the embedding if that is larger."""
    for name in ("llama-3.1-8b", "gemma-2b"):
        shape = SHAPES[name]
        sizes = {**{key: a * b for key, (a, b) in shape.linears.items()}, "embedding": shape.vocab * shape.hidden}
        matrix = max(size for key, size in sizes.items() if key != "embedding")
        for setup, beside in (
            (Setup(), 0), (Setup(quantised="nf4"), 2 * matrix),
            (Setup(dtype="fp32", autocast=True), 2 * max(sizes.values())),
        ):  # fmt: skip
            state = training_step(shape, setup).numbers(training_step(shape, setup).state)
            stays = sum(state.get(term, 0) for term in ("weights", "quantisation constants", "adapter"))
            assert loading(shape, setup) == pytest.approx(stays + beside)


@pytest.mark.parametrize(
    "setup", [Setup(), Setup(quantised="nf4"), Setup(dtype="fp32", autocast=True)], ids=["bf16", "nf4", "fp32"]
)
def test_no_model_needs_more_to_be_loaded_than_to_be_trained(setup):
    """Not even where a step is as small as it can be: one token, rank 1, checkpointed."""
    least = replace(setup, seq=1, rank=1, targets=TARGETS[:4], checkpointing=True, padding=True)
    for name, shape in SHAPES.items():
        assert loading(shape, least) < training_step(shape, least).peak().total, name


@pytest.mark.parametrize("one", sampled().values(), ids=sampled())
def test_a_configuration_is_its_text(one):
    assert Configuration.parse(one.text) == one


def test_the_held_out_half_is_the_one_that_was_fixed():
    """No name moves from one half to the other, and both halves together have every way in every architecture."""
    assert hashlib.sha256("\n".join(sorted(study.GRID["held-out"])).encode()).hexdigest() == study.SPLIT_SHA256
    halves = [set(study.GRID[part]) for part in study.PARTS]
    assert not halves[0] & halves[1]
    cells = {name.removesuffix("_checkpointed").rsplit("_", 1)[0] for half in halves for name in half}
    assert cells == {f"{family}_{way}" for family in study.SIZES for way in study.WAYS}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setup(method="lara"), "'lara'"),
        (lambda: Setup(rank=0), "rank is 0"),
        (lambda: Setup(targets=("q_proj", "w_proj")), "w_proj"),
        (lambda: Setup(method="full", quantised="nf4"), "choose an adapter"),
        (lambda: Setup(method="prefix", checkpointing=True), "choose a soft prompt"),
        (lambda: Setup(method="ia3", quantised="nf4"), "choose dtype 'fp32'"),
        (lambda: Setup(method="prompt", devices=2), "not in 'prompt'"),
        (lambda: Setup(devices=0), "devices is 0"),
        (lambda: DecoderShape(2, 64, 128, 5, 5, 100), "5 heads do not divide"),
        (lambda: DecoderShape(2, 64, 128, 4, 3, 100), "3 key and value heads"),
        (lambda: training_step(SMALL, Setup(dtype="fp32")), "no fused attention in float32"),
        (lambda: shape_from_config({"model_type": "mamba"}), "'mamba' is not covered"),
        (lambda: shape_from_config({"model_type": "llama", "hidden_size": 64}), "num_hidden_layers"),
        (lambda: read_shape("no-such-model"), "no-such-model"),
        (lambda: read_shape("meta-llama/Llama-3.1-9B"), "nearest name is 'llama-3.1-8b': save its config.json"),
        (lambda: shape_from_config({"model_type": "gpt_oss"}), "take qwen3-30b-a3b"),
        (lambda: Setup(host_weights=True, quantised="int8"), "leave host_weights out"),
        (lambda: training_step(SMALL, Setup(attention="flash_attention_2", dtype="fp32")), "takes 16 bits"),
        (lambda: shape_from_config(CONFIG | {"num_hidden_layers": True}), "no whole number for num_hidden_layers"),
        (lambda: quantised_in({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "'gptq', which is not"),
        (
            lambda: quantised_in({"quantization_config": {"load_in_8bit": True, "llm_int8_has_fp16_weight": True}}),
            "rounded anew from 16",
        ),
        (lambda: quantised_in({"quantization_config": "nf4"}), "is 'nf4'"),
        (
            lambda: quantised_in({"quantization_config": {"load_in_4bit": True, "llm_int8_skip_modules": ["q_proj"]}}),
            "that q_proj stay whole",
        ),
        (lambda: shape_from_config(CONFIG | {"model_type": ["llama"]}), "is not covered"),
        (lambda: meant("Optimiser", "adamw_tosch", OPTIMISER_NAMES), "nearest name is 'adamw_torch'"),
        (lambda: bytes_of_text("lots"), "'lots'"),
        (lambda: bytes_of_text("0GiB"), "'0GiB'"),
        (lambda: Configuration.parse("[1]"), "no configuration"),
        (lambda: fit(Configuration(SMALL, CPU), GIB, GIB), "leaves nothing"),
    ],
)
def test_bad_input_names_the_value_and_the_fix(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_card_goes_by_its_name_and_shows_less():
    """24GB is what torch shows of such a card, and the note says so; other sizes are what they say."""
    assert bytes_of_card("24GB") == bytes_of_card("24g") == pytest.approx(23.6 * GIB)
    assert bytes_of_card("24GiB") == bytes_of_card("24") == 24 * GIB and bytes_of_card("100GB") == 100e9
    assert "23.6 GiB that torch shows" in card_note("24GB") and not card_note("24GiB") + card_note("100GB")
    for size in CARDS:
        assert 0.97 * size * GIB < bytes_of_card(f"{size}GB") < size * GIB


def test_full_fine_tuning_stays_full_where_coarser_numbers_are_enough():
    """Changes that keep the method come first, and another method is there to compare."""
    one = Configuration(SHAPES["mistral-7b"], Setup(method="full", dtype="fp32", autocast=True, seq=1024))
    for memory, needed in ((80, 1), (40, 2)):
        first, *others = fit(one, memory * GIB).changes
        assert "method" not in first.fields and len(first.names) >= needed
        assert {"dtype": "bf16"}.items() <= first.fields.items() and any("method" in one.fields for one in others)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen3-30b-a3b"])
def test_what_no_card_holds_is_shared_with_the_host_or_with_other_cards(name):
    """Where nothing else helps both are said, and on the card there is less than a tenth of the weights."""
    setup = Setup(quantised="nf4", targets=TARGETS[:4], checkpointing=True, seq=512, logits="tiled")
    one = Configuration(SHAPES[name], setup)
    host, cards = fit(one, 16 * GIB).changes
    assert host.fields["host_weights"] and cards.fields["devices"] > 1 and max(host.needs, cards.needs) <= 16 * GIB
    step = training_step(one.shape, replace(setup, host_weights=True))
    whole, there = (state.numbers(state.state) for state in (training_step(one.shape, setup), step))
    assert "weights" not in there and "moments" not in there
    layer = (one.shape.parameters - one.shape.vocab * one.shape.hidden * 2) / one.shape.layers
    assert there["whole for a while"] < 4 * one.shape.vocab * one.shape.hidden + 2.1 * 2 * layer < whole["weights"] / 4


def test_sizes_of_memory_are_read():
    assert bytes_of_text("24GiB") == bytes_of_text("24 gib") == bytes_of_text("24") == 24 * GIB
    assert bytes_of_text("24Gi") == 24 * GIB and bytes_of_text("512M") == 512e6
    assert bytes_of_text("80GB") == bytes_of_text("80G") == 80e9
    assert bytes_of_text("0GiB", least=0) == bytes_of_text("0", least=0) == 0


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b"),
        ("Qwen/Qwen3-14B-Base", "qwen3-14b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("google/gemma-3-1b-it", "gemma-3-1b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("llama3.1-8b", "llama-3.1-8b"),
    ],
)
def test_a_model_goes_by_its_id_of_the_hub(said, name):
    assert read_shape(said) is SHAPES[name]


def test_what_the_local_cache_of_the_hub_holds_comes_before_the_table(tmp_path, monkeypatch):
    """A model of an owner's own that keeps a known name has its own sizes."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert read_shape("someone/llama-3.1-8b") == shape_from_config(CONFIG)


def test_a_base_in_4_or_8_bits_is_as_its_settings_say():
    """And one without a quantisation is left to who asks."""
    said = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert quantised_in(CONFIG | {"quantization_config": said}) == {"quantised": "nf4", "double": True}
    assert quantised_in(CONFIG | {"quantization_config": {"load_in_8bit": True}}) == {"quantised": "int8"}
    assert quantised_in(CONFIG) == quantised_in(None) == {}


def test_labels_keep_their_share_while_the_largest_batch_is_sought():
    """A quarter of the positions with logits is a quarter of more rows, too."""
    one = Configuration(SHAPES["llama-3-8b"], Setup(quantised="nf4", batch=2, seq=512, labels=256))
    rows = fit(one, 24 * GIB).largest_batch

    def peak(count: int) -> float:
        setup = replace(one.setup, batch=count, labels=128 * count)
        return Configuration(one.shape, setup).step.peak().total

    assert rows > 2 and peak(rows) <= 24 * GIB < peak(rows + 1)


def test_a_tape_counts_a_tensor_once():
    """An input that two trained matrices keep, and none that a frozen one does not."""
    tape = Tape()
    x = tape.value(("b", "t", "h"), 2, grad=True)
    for trained in (True, True, False):
        tape.linear(x, Weight((("h",), ("f",)), 2, trained=trained))
    assert tape.kept() == {"": x.size}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": True}, "batch is True"), ({"checkpointing": "no"}, "checkpointing is 'no'"),
        ({"labels": 513}, "labels is 513"), ({"labels": True}, "labels is True"),
        ({"targets": "q_proj"}, "targets is 'q_proj'"), ({"saved": ("lm_head", "lm_head")}, "each once"),
        ({"in_backward": True}, "in_backward"), ({"saved_dtype": "fp16"}, "saved_dtype"),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_is_none_is_refused(fields, said):
    """In a sentence that names the value; no Python type stands for another."""
    with pytest.raises(InputError, match=re.escape(said)):
        Setup(**fields)
    assert Setup(targets=["q_proj"]) == Setup(targets=("q_proj",))


def test_a_batch_that_fits_is_never_more_than_the_largest():
    """Though one row alone may have no fused attention, and then needs more than several."""
    asked = Question("llama-3.1-8b", "4000GiB", stack="trainer", method="qlora", batch=2, seq=16384, logits="fused")
    two, one = (answered(replace(asked, batch=rows)).fit.peak.total for rows in (2, 1))
    assert one > 1.5 * two
    memory = 1.1 * (two + GPU_RESERVE[1].beside(two)) / GIB
    found = answered(replace(asked, memory=f"{memory:.0f}GiB")).fit
    assert found.fits and found.largest_batch >= 2


def test_rows_beyond_the_trained_positions_are_counted_with_a_warning():
    found = answered(Question("llama-2-7b", "80GiB", method="qlora", batch=1, seq=8192))
    assert found.fit.largest_seq > 8192 and any("4,096 positions" in note for note in found.notes)
    assert not answered(Question("llama-2-7b", "80GiB", method="qlora", batch=1, seq=4096)).notes


def test_a_name_of_the_table_is_an_id_of_the_hub():
    """So that `fit` and `recipe` take the same names; a revision changes no shape."""
    assert HUB_IDS.keys() == SHAPES.keys()
    for name, hub_name in HUB_IDS.items():
        assert read_shape(hub_name) is read_shape(f"{hub_name}@main") is SHAPES[name]


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_what_is_no_size_is_refused(size):
    """As memory and as a reserve."""
    one = Configuration(SHAPES["llama-2-7b"], Setup())
    for given in ((size, 0.0), (24 * GIB, size)):
        with pytest.raises(InputError):
            fit(one, *given)


IDLE = [
    Setup(device="cpu"), Setup(method="full", device="cpu"), Setup(method="prompt", device="cpu"),
    Setup(method="ia3", device="cpu"), Setup(quantised="nf4", dtype="fp32", device="cpu"),
    Setup(quantised="int8", device="cpu"), Setup(method="full", optimiser="galore_adamw", device="cpu"),
]  # fmt: skip
OTHERS = {
    "rank": 3, "targets": ("v_proj",), "dropout": True, "adapter_dtype": "bf16", "length": 3, "double": False,
    "keeps_inputs": True, "wide_norms": True, "saved_dtype": "fp32", "freeze_a": True, "magnitude_dtype": "bf16",
}  # fmt: skip


@pytest.mark.parametrize("setup", IDLE, ids=lambda setup: f"{setup.method} {setup.quantised} {setup.optimiser}")
def test_idle_settings_change_nothing_and_others_do(setup):
    """Every term at every moment."""

    def bytes_of(one):
        step = training_step(SMALL, one)
        return step.table() | {"symbols": {}, "numbers": step.numbers(step.state), "peak": step.peak().terms}

    plain = bytes_of(setup)
    for name, value in OTHERS.items():
        if name == "wide_norms" and not setup.quantised:
            continue
        same = plain == bytes_of(replace(setup, **{name: value}))
        assert same == (name in setup.idle), name
