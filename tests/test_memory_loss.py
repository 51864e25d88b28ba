"""The losses of other libraries in the byte model: each is written as its library has it, and torch counts bytes."""

from dataclasses import replace

import pytest
import random_models
import torch
from tiny import first_step
from torch.nn import functional

from peftbook.core.errors import InputError
from peftbook.memory import SHAPES, Configuration, DecoderShape, Setup, training_step
from peftbook.memory.setup import CHUNK, CHUNKS, TILE
from peftbook.memory.step import liger_chunk
from peftbook.training import random_model
from peftbook.training.forward import causal_model
from peftbook.training.probes import memory as probes

SHAPE = DecoderShape(layers=3, hidden=64, ffn=160, heads=4, kv_heads=2, vocab=8192, tied=True)
CPU = Setup(rank=4, seq=256, device="cpu")


class Elsewhere(random_models.Subject):
    """A step with the loss of another library."""

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        base, in_hand = causal_model(self.model), []
        with self.autocast(ids):
            value = LOSSES[self.setup.logits](base, ids, in_hand)
        self.in_hand = in_hand  # until the next step, as a loop has its model's output
        return value


def states_of(base, ids):
    return base.model(input_ids=ids, use_cache=False).last_hidden_state


def shifted(base, ids, in_hand):
    """transformers 4.46, `ForCausalLMLoss`: the output has the logits as they are, this function their copies."""
    logits = base.lm_head(states_of(base, ids))
    wide = logits.float()
    moved = wide[..., :-1, :].contiguous()
    return functional.cross_entropy(moved.view(-1, logits.shape[-1]), ids[..., 1:].contiguous().view(-1))


def held(base, ids, in_hand):
    """transformers 4.45, `LlamaForCausalLM.forward`."""
    logits = base.lm_head(states_of(base, ids)).float()
    in_hand.append(logits)
    shifted = logits[..., :-1, :].contiguous().view(-1, logits.shape[-1])
    return functional.cross_entropy(shifted, ids[..., 1:].contiguous().view(-1))


def narrow(base, ids, in_hand):
    """LitGPT 0.5, `finetune/lora.py` and `chunked_cross_entropy`: in parts, all of which autograd and the loop have."""
    logits = [base.lm_head(part) for part in states_of(base, ids).split(CHUNK, dim=1)]
    in_hand.extend(logits)
    targets = torch.cat([ids[..., 1:], ids[..., :1]], dim=1).split(CHUNK, dim=1)
    losses = [
        functional.cross_entropy(part.reshape(-1, part.shape[-1]), target.reshape(-1), reduction="none")
        for part, target in zip(logits, targets, strict=True)
    ]
    return torch.cat(losses).sum() / ids.numel()


def chunked(base, ids, in_hand):
    """torchtune 0.7, `LinearCrossEntropyLoss` without ignored tokens."""
    states = states_of(base, ids).reshape(-1, base.config.hidden_size)
    parts = zip(states.tensor_split(CHUNKS), ids.reshape(-1).tensor_split(CHUNKS), strict=True)
    return sum(functional.cross_entropy(base.lm_head(part).float(), at, reduction="sum") for part, at in parts)


def tiled(base, ids, in_hand):
    """TRL 1.16, with every position scored by the functions that torch has for it."""
    from trl.trainer.utils import _ChunkedLogProbFunction

    states, head = states_of(base, ids), base.lm_head
    every = torch.ones_like(ids, dtype=torch.bool)
    outputs = ("log_probs", "entropy", "is_top1")
    found = _ChunkedLogProbFunction.apply(
        states[every], head.weight, None, ids[every], 1.0, TILE[1], None, 1.0, outputs
    )
    return -found[0].mean()


def loop(base, ids, in_hand):
    """A loop of one's own: the output stays in hand, logits have the model's dtype."""
    logits = base.lm_head(states_of(base, ids))
    in_hand.append(logits)
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


class InPlace(torch.autograd.Function):
    """Liger 0.8, `LigerCrossEntropyFunction`: the gradient takes the place of the logits, in forward."""

    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits.detach().mul_(0.5))
        return logits.sum(dtype=torch.float32) * 0

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0]


def in_place(base, ids, in_hand):
    """As transformers 5's loss, whose `cross_entropy` Liger replaces."""
    logits = base.lm_head(states_of(base, ids))
    return InPlace.apply(logits.float() if logits.dtype != torch.float32 else logits)


class InForward(torch.autograd.Function):
    """Liger 0.8, `fused_linear_cross_entropy_forward`: a part of the positions at a time; its kernel works in place."""

    @staticmethod
    def forward(ctx, states, weight):
        gradient, for_weight = torch.zeros_like(states), torch.zeros_like(weight) if weight.requires_grad else None
        for start in range(0, len(states), chunk_of(states, weight)):
            part = slice(start, start + chunk_of(states, weight))
            logits = states[part] @ weight.t()
            gradient[part] = logits @ weight.to(logits.dtype)
            if for_weight is not None:
                for_weight += torch.mm(logits.t(), states[part].to(logits.dtype)).float()
            del logits
        ctx.save_for_backward(gradient, for_weight)
        return gradient.sum(dtype=torch.float32) * 0

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors


def chunk_of(states, weight) -> int:
    return liger_chunk(len(states), replace(SHAPE, vocab=len(weight), hidden=weight.shape[1], head_dim=16))


def liger(base, ids, in_hand):
    return InForward.apply(states_of(base, ids).reshape(-1, base.config.hidden_size), base.lm_head.weight)


LOSSES = {
    "shifted": shifted, "held": held, "narrow": narrow, "chunked": chunked, "tiled": tiled, "loop": loop,
    "in_place": in_place, "liger": liger,
}  # fmt: skip
WAYS = {
    "lora": CPU, "full": replace(CPU, method="full"), "batch": replace(CPU, batch=3),
    "full_autocast": replace(CPU, method="full", dtype="fp32", autocast=True),
    "qlora": replace(CPU, quantised="nf4", adapter_dtype="bf16", autocast=True, checkpointing=True),
}  # fmt: skip


def elsewhere(shape: DecoderShape, setup: Setup) -> tuple[Elsewhere, torch.Tensor]:
    made = random_models.subject(shape, setup)
    return Elsewhere(made.model, made.optimizer, setup), random_model.random_ids(shape, setup, 0)


@pytest.mark.parametrize("logits", LOSSES)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_needs_what_the_librarys_own_loss_needs(way, logits):
    """What autograd keeps and the allocator's peak, in so many tokens that one position or part more hardly counts."""
    plain = {"autocast": False, "dtype": "bf16"} if logits in ("narrow", "chunked") else {}
    if logits == "liger":  # a CPU copies factors in 16 bits for products of few rows
        plain = {"autocast": False, "dtype": "fp32"}
    setup = replace(WAYS[way], logits=logits, seq=2048 if logits == "narrow" else 256, **plain)
    one = Configuration(SHAPE, setup)
    tuned, ids = elsewhere(SHAPE, one.setup)
    kept = sum(probes.kept_by_module(tuned, ids, SHAPE).values())
    assert kept / sum(one.kept_by_module().values()) == pytest.approx(1, abs=0.01)
    first_step(tuned, ids)
    tuned.in_hand = None  # what is freed inside would count against the peak
    measured = probes.allocated_peak(lambda: tuned.step(ids))
    assert 0.98 < measured / peak_beyond(one) < 1.02


def peak_beyond(one: Configuration) -> float:
    """The predicted peak without what is there all the time."""
    return one.step.peak().total - sum(one.step.numbers(one.step.state).values())


def test_a_way_to_compute_the_loss_changes_the_loss_alone():
    """State and the work of the layers are the same, and what is there of the logits falls from way to way."""
    base = Setup(quantised="nf4", checkpointing=True, seq=2048, batch=4)
    steps = {
        name: training_step(SHAPES["llama-3.1-8b"], replace(base, logits=name))
        for name in ("held", "shifted", "whole", "loop", "in_place", "chunked", "narrow", "compiled", "tiled", "fused")
    }
    assert len({str(step.state) for step in steps.values()}) == 1
    assert len({step.numbers(step.flops)["again"] for step in steps.values()}) == 1
    parts = [step.peak().terms.get("logits and loss", 0) for step in steps.values()]
    assert parts == sorted(parts, reverse=True) and parts[-1] < 1e-3 * parts[0]


def test_an_older_bitsandbytes_keeps_the_input_of_every_4_bit_matrix(monkeypatch):
    """As its function had it in hand: a graph holds what is an attribute of its context."""
    from bitsandbytes.autograd._functions import MatMul4Bit

    now = MatMul4Bit.forward

    def before(ctx, A, B, *more):
        result = now(ctx, A, B, *more)
        ctx.tensors = (A, ctx.tensors[1])
        return result

    setup = replace(CPU, quantised="nf4", freeze_a=True)
    peaks = {}
    for name, forward in (("now", now), ("before", before)):
        monkeypatch.setattr(MatMul4Bit, "forward", staticmethod(forward))
        tuned, ids = random_model.subject(SHAPE, setup, 0), random_model.random_ids(SHAPE, setup, 0)
        first_step(tuned, ids)
        peaks[name] = probes.allocated_peak(lambda tuned=tuned, ids=ids: tuned.step(ids))
    new, old = (peak_beyond(Configuration(SHAPE, replace(setup, keeps_inputs=kept))) for kept in (False, True))
    assert peaks["before"] - peaks["now"] == pytest.approx(old - new, rel=0.05)


def test_a_fused_loss_keeps_nothing_that_has_the_size_of_the_vocabulary():
    """Nor is there a moment in the backward pass with such a tensor, as long as the head is frozen."""
    step = training_step(SHAPES["llama-3.1-8b"], Setup(logits="fused", seq=512))
    sizes = [size for _, kinds in step.moments.pruned() for size in kinds.values()] + list(step.kept.values())
    assert not any("V" in symbols for size in sizes for symbols in size)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_checkpoints_keep_may_lie_on_the_host(method):
    """The inputs of all layers but those at work; full fine-tuning of one row has its peak elsewhere."""
    shape, setup = SHAPES["llama-3.1-8b"], Setup(method=method, checkpointing=True, seq=4096, logits="tiled")
    here, there = (training_step(shape, replace(setup, offloaded=moved)).peak() for moved in (False, True))
    one_input = 2 * shape.hidden * setup.seq
    if method == "lora":
        gone = here.terms["layer inputs"] - there.terms["layer inputs"]
        assert gone == pytest.approx((shape.layers - 2) * one_input, abs=one_input)
        assert there.total < here.total
    assert there.terms.get("layer inputs", 0) <= 4 * one_input and there.total <= here.total


def test_refusals_say_what_to_choose():
    for fields, word in (
        ({"offloaded": True}, "choose checkpointing"),
        ({"logits": "cut"}, "'cut'"),
        ({"logits": "chunked", "autocast": True}, "chunked come with no autocast"),
    ):
        with pytest.raises(InputError, match=word):
            Setup(**fields)
