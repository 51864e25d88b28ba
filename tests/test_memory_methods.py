"""Further methods in the byte model: what it predicts of them is what peft and bitsandbytes keep and store."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_laws import assert_kept, assert_peak, assert_stored, subject
from torch.utils import flop_counter

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.memory import SHAPES, Configuration, DecoderShape, Setup, fit, training_step
from peftbook.memory.names import METHOD_NAMES, meant
from peftbook.memory.shapes import FAMILIES, as_config
from peftbook.memory.stacks import setup_in
from peftbook.training.probes import memory as probes

pytestmark = [  # peft's calls of names that transformers is giving up
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),  # what is measured here
]

SMALL = DecoderShape(layers=4, hidden=64, ffn=160, heads=4, kv_heads=2, vocab=512, tied=True)
BIASED = replace(SMALL, family="qwen2", qkv_bias=True)
WIDE = replace(SMALL, hidden=256, ffn=768, head_dim=64)
CPU = Setup(rank=4, seq=24, device="cpu")
MIXED = {"dtype": "fp32", "autocast": True}
DORA = replace(CPU, dora=True)
TRL_DORA = replace(DORA, quantised="nf4", adapter_dtype="bf16", magnitude_dtype="fp32", **MIXED)
INT8 = replace(CPU, quantised="int8")
PREPARED = replace(CPU, quantised="nf4", adapter_dtype="bf16", autocast=True, wide_norms=True)
SAVED = replace(CPU, saved=("embed_tokens", "lm_head"))
TRL = replace(
    CPU, quantised="nf4", adapter_dtype="bf16", saved=("embed_tokens", "lm_head"), saved_dtype="bf16", **MIXED
)
FULL = replace(CPU, method="full")
GEMMA = DecoderShape(3, 64, 160, 4, 1, 512, head_dim=16, **(FAMILIES["gemma"] | {"family": "gemma"}))

KEPT = {
    "dora": (SMALL, DORA),
    "dora_dropout": (SMALL, replace(DORA, dropout=True)),
    "dora_bf16": (SMALL, replace(DORA, adapter_dtype="bf16")),
    "dora_autocast": (SMALL, replace(DORA, **MIXED)),
    "dora_autocast_dropout": (SMALL, replace(DORA, dropout=True, **MIXED)),
    "dora_frozen_a": (SMALL, replace(DORA, freeze_a=True)),
    "dora_held": (SMALL, replace(DORA, held=True, **MIXED)),
    "dora_checkpointed": (SMALL, replace(DORA, checkpointing=True)),
    "dora_nf4": (BIASED, replace(DORA, quantised="nf4")),
    "dora_nf4_dropout": (BIASED, replace(DORA, quantised="nf4", dropout=True)),
    "dora_int8": (SMALL, replace(DORA, quantised="int8", dropout=True)),
    "dora_trl": (SMALL, TRL_DORA),
    "dora_trl_checkpointed": (BIASED, replace(TRL_DORA, checkpointing=True, dropout=True)),
    "int8": (BIASED, INT8),
    "int8_bf16": (SMALL, replace(INT8, adapter_dtype="bf16")),
    "int8_autocast": (SMALL, replace(INT8, **MIXED)),
    "int8_checkpointed": (SMALL, replace(INT8, checkpointing=True)),
    "int8_prompt": (SMALL, replace(INT8, method="prompt")),
    "int8_ia3": (SMALL, replace(INT8, method="ia3", **MIXED)),
    "wide_norms": (BIASED, PREPARED),
    "wide_norms_checkpointed": (SMALL, replace(PREPARED, checkpointing=True)),
    "saved": (GEMMA, SAVED),
    "saved_autocast": (SMALL, replace(SAVED, **MIXED)),
    "saved_checkpointed": (replace(SMALL, tied=False), replace(SAVED, checkpointing=True)),
    "saved_embedding": (SMALL, replace(SAVED, saved=("embed_tokens",), quantised="nf4")),
    "saved_head": (SMALL, replace(SAVED, saved=("lm_head",), method="ia3", labels=5)),
    "saved_in_bf16": (replace(SMALL, tied=False), TRL),
    "saved_in_bf16_checkpointed": (SMALL, replace(TRL, checkpointing=True)),
}
STORED = {
    "dora": DORA,
    "dora_nf4": replace(DORA, quantised="nf4", optimiser="adamw_8bit", rank=64),
    "dora_trl": TRL_DORA,
    "int8": INT8,
    "saved": replace(SAVED, adapter_dtype="bf16", dtype="fp32"),
    "saved_head": replace(SAVED, saved=("lm_head",), optimiser="adamw_8bit"),
    "saved_in_bf16": TRL,
}
PEAKS = {
    "dora": DORA,
    "dora_dropout": replace(DORA, dropout=True),
    "dora_autocast": replace(DORA, **MIXED),
    "dora_checkpointed": replace(DORA, checkpointing=True),
    "dora_nf4": replace(DORA, quantised="nf4"),
    "dora_trl": TRL_DORA,
    "int8": INT8,
    "int8_autocast": replace(INT8, **MIXED),
    "int8_checkpointed": replace(INT8, checkpointing=True),
    "wide_norms": replace(PREPARED, batch=2),
    "wide_norms_checkpointed": replace(PREPARED, checkpointing=True),
    "saved": SAVED,
    "saved_autocast": replace(SAVED, **MIXED),
    "saved_embedding": replace(SAVED, saved=("embed_tokens",), checkpointing=True),
    "saved_in_bf16": TRL,
    "foreach": replace(FULL, optimiser="adamw_foreach"),
    "foreach_checkpointed": replace(FULL, optimiser="adamw_foreach", checkpointing=True, **MIXED),
    "in_backward": replace(FULL, in_backward=True),
    "in_backward_checkpointed": replace(FULL, in_backward=True, checkpointing=True, **MIXED),
}


@pytest.mark.parametrize(("shape", "setup"), KEPT.values(), ids=KEPT)
def test_autograd_keeps_what_the_walk_says(shape, setup):
    """Module by module and byte by byte."""
    assert_kept(shape, setup)


@pytest.mark.parametrize("setup", STORED.values(), ids=STORED)
def test_weights_adapter_and_moments_are_the_stored_bytes(setup):
    """And gradients, and all that autograd keeps."""
    assert_stored(replace(SMALL, hidden=128, ffn=256, head_dim=32), setup)


@pytest.mark.parametrize("vocab", [512, 8192], ids=["layers_decide", "logits_decide"])
@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_that_of_torchs_allocator(name, vocab):
    """Whether a layer or the logits are the largest moment; in 128 tokens, where kernels need next to nothing.

    Products in bfloat16 put their factors in another order where a processor has instructions for them.
    """
    setup = replace(PEAKS[name], seq=128)
    shape = replace(WIDE, vocab=vocab, tied=setup.method != "full" or setup.accumulated or vocab > 512)
    assert_peak(shape, setup, 1.06)


def test_dora_multiplies_its_matrices_for_every_norm():
    """B (A I) in every forward pass, and with dropout W x again: what torch counts more than for LoRA."""
    for dropout in (False, True):
        plain = replace(CPU, dropout=dropout)
        setups = (plain, replace(plain, dora=True))
        counts = []
        for setup in setups:
            tuned, ids = subject(SMALL, setup)
            with flop_counter.FlopCounterMode(display=False) as counted:
                tuned.loss(ids).backward()
            counts.append(counted.get_total_flops())
        steps = [training_step(SMALL, setup) for setup in setups]
        without, with_norms = (sum(step.numbers(step.flops).values()) for step in steps)
        assert with_norms - without == counts[1] - counts[0] > 0


def test_dora_with_dropout_keeps_a_second_copy_of_every_matrix():
    """4 bytes a weight over a base of 16 or of 4 bits, since peft computes W x again in the adapter's dtype."""
    shape, setup = WIDE, replace(DORA, seq=1)
    for quantised in ("", "nf4"):
        plain, noisy = (
            training_step(shape, replace(setup, quantised=quantised, dropout=dropout)) for dropout in (False, True)
        )
        more = sum(noisy.numbers(noisy.kept).values()) - sum(plain.numbers(plain.kept).values())
        first = sum(
            d_in * d_out for name, (d_in, d_out) in shape.linears.items() if name in ("q_proj", "k_proj", "v_proj")
        )
        assert more == pytest.approx(4 * (shape.linear_parameters - first), rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gpu_keeps_the_inputs_of_int8_matrices(checkpointing, monkeypatch):
    """bitsandbytes' function for a GPU, run on a CPU: it has the same inputs in hand, in spite of checkpoints."""
    import bitsandbytes
    from bitsandbytes.autograd import _functions

    def as_on_a_gpu(a, b, out=None, state=None, threshold=0.0, bias=None):
        return _functions.MatMul8bitLt.apply(a, b, out, bias, state)

    monkeypatch.setattr(bitsandbytes, "matmul", as_on_a_gpu)
    setup = replace(INT8, checkpointing=checkpointing)
    tuned, ids = subject(SMALL, setup)
    found = probes.kept_by_module(tuned, ids, SMALL)
    assert found == Configuration(SMALL, replace(setup, device="cuda")).kept_by_module()


def test_checkpoints_free_no_input_of_an_int8_matrix():
    """What a layer of a checkpointed model keeps beside its own input: inputs of its four kinds of matrices."""
    plain, eight = (training_step(SMALL, replace(CPU, quantised=kind, checkpointing=True)) for kind in ("", "int8"))
    inputs = 3 * SMALL.hidden + SMALL.ffn  # of q, k, v; of o; of gate, up; of down
    more = sum(eight.numbers(eight.kept).values()) - sum(plain.numbers(plain.kept).values())
    assert more == 2 * CPU.seq * SMALL.layers * inputs


def test_a_tied_matrix_is_copied_for_each_place():
    """Saved as embedding and as head it is trained twice beside the frozen one: 2 V h numbers, in the model's dtype."""
    plain, saved = (training_step(SMALL, setup) for setup in (CPU, SAVED))
    ours, theirs = plain.numbers(plain.state), saved.numbers(saved.state)
    copies = 2 * SMALL.vocab * SMALL.hidden
    assert theirs["weights"] == ours["weights"]
    assert theirs["adapter"] - ours["adapter"] == 2 * copies
    assert theirs["moments"] - ours["moments"] == 2 * 2 * copies


def test_8_bits_lie_between_16_and_4():
    """Weights with their constants, and the peak of a step of few tokens."""
    shape, setup = SHAPES["llama-2-7b"], Setup(seq=256)
    peaks = [training_step(shape, replace(setup, quantised=kind)).peak().total for kind in ("", "int8", "nf4")]
    assert peaks == sorted(peaks, reverse=True)
    step = training_step(shape, replace(setup, quantised="int8"))
    assert step.numbers(step.state)["weights"] == 2 * shape.other_parameters + shape.linear_parameters


def test_fit_offers_8_bits_before_4():
    """In the order of what they cost, each only where it makes the step fit."""
    one = Configuration(SHAPES["llama-2-7b"], Setup(seq=256))
    names = [change.names for change in fit(one, 12 * 2**30).changes]
    assert names.index(("a base in 8 bits",)) < names.index(("a base in NF4",))
    peaks = [Configuration(one.shape, replace(one.setup, quantised=kind)).step.peak().total for kind in ("int8", "nf4")]
    small = [change.names for change in fit(one, sum(peaks) / 2).changes]
    assert ("a base in NF4",) in small and ("a base in 8 bits",) not in small


@pytest.mark.parametrize("rank", [8, 40])
@pytest.mark.parametrize("optimiser", ["galore_adamw", "galore_adamw_8bit"])
def test_galore_keeps_what_its_equations_make(optimiser, rank):
    """P of the SVD of every gradient of a layer's matrix, on the shorter side, and both moments of what it projects.

    The gradients of the other tensors keep moments of their own size. Rank 40 is beyond the 32 rows of keys and values.
    """
    from transformers import AutoModelForCausalLM

    shape, eight = replace(SMALL, layers=1, hidden=64, ffn=300, sliding=()), optimiser.endswith("8bit")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(as_config(shape))
    moments = projections = 0
    for name, value in model.named_parameters():
        gradient = np.random.default_rng(0).normal(size=value.shape).astype(np.float32)
        if "layers." in name and gradient.ndim == 2:
            tall = gradient.shape[0] > gradient.shape[1]
            left, _, right = np.linalg.svd(gradient, full_matrices=False)
            projection = right[:rank].T if tall else left[:, :rank]
            gradient = gradient @ projection if tall else projection.T @ gradient
            projections += projection.nbytes
        blocks = gradient.size / 256
        moments += 2 * (gradient.size + 4 * blocks if eight and gradient.size >= 4096 else gradient.nbytes)
    step = training_step(shape, replace(CPU, method="full", dtype="fp32", optimiser=optimiser, rank=rank))
    state = step.numbers(step.state)
    assert (state["moments"], state["projections"]) == (moments, projections)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (("--method", "dora"), {"dora": True}),
        (("--method", "lora_fa"), {"freeze_a": True}),
        (("--method", "LoRA-FA", "--saved", "lm_head"), {"freeze_a": True, "saved": ("lm_head",)}),
        (("--quant", "int8"), {"quantised": "int8"}),
        (("--stage", "DPO", "--no-reference"), {"stage": "dpo", "reference": False}),
        (
            ("--stage", "grpo", "--completion", "900", "--rollouts", "64"),
            {"stage": "grpo", "completion": 900, "rollouts": 64},
        ),
        (("--method", "full", "--optimiser", "galore_adamw"), {"method": "full", "optimiser": "galore_adamw"}),
    ],
)
def test_the_command_line_has_names_for_all(words, fields, capsys):
    """The peak that it prints is that of the set-up in TRL."""
    cli.main(["fit", "--model", "smollm2-135m", "--memory", "24GiB", "--json", *words])
    peak = training_step(SHAPES["smollm2-135m"], setup_in("trl", **fields)[0]).peak().total
    assert json.loads(capsys.readouterr().out)["peak_bytes"] == round(peak)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Setup(method="ia3", dora=True), "DoRA is LoRA with magnitudes"),
        (lambda: Setup(dora=True, devices=2), "counted on one device"),
        (lambda: Setup(saved=("norm",)), "norm cannot be copied"),
        (lambda: Setup(saved=("lm_head",), method="full"), "not with 'full'"),
        (lambda: Setup(optimiser="galore_adamw"), "whole matrices on one device, not of 'lora'"),
        (lambda: meant("Method", "dorra", METHOD_NAMES), "nearest name is 'dora'"),
        (lambda: Setup(quantised="int8", devices=2), "cannot cut int8"),
        (lambda: Setup(method="full", quantised="int8"), "choose an adapter"),
    ],
)
def test_bad_input_names_the_value_and_the_fix(make, message):
    with pytest.raises(InputError, match=message):
        make()
