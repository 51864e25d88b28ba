"""Probes on trained weights: overlaps of subspaces, new singular directions, losses along a curve."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_examples, randomize_adapters, tiny_llama, tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.decision.forgetting import prose_probe
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies.forgetting import matched
from peftbook.studies.variants import steps_to
from peftbook.training import execute, probes
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method
from peftbook.training.probes import curves, weights


def orthonormal(width: int, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64)).Q


def test_overlap_is_one_for_nested_spaces_and_the_share_of_the_width_for_random_ones():
    """φ(i, j) = 1 if span(V_i) lies in span(V'_j); its mean over random spaces is max(i, j)/d."""
    basis = orthonormal(40, 12, 0)
    turned = basis @ orthonormal(12, 12, 1)
    assert weights.overlap(basis, turned, 4, 12)[3, 11] == pytest.approx(1)
    assert weights.overlap(basis[:, :6], basis[:, 6:], 6, 6).abs().max() < 1e-12
    drawn = [weights.overlap(orthonormal(40, 4, 10 + s), orthonormal(40, 9, 500 + s), 4, 9)[3, 8] for s in range(200)]
    assert float(np.mean(drawn)) == pytest.approx(9 / 40, rel=0.05)


def test_every_cell_of_the_map_is_the_definition():
    """‖V_iᵀ V'_j‖²_F / min(i, j), cell by cell."""
    one, two = orthonormal(20, 5, 2), orthonormal(20, 7, 3)
    found = weights.overlap(one, two, 5, 7)
    for i in range(1, 6):
        for j in range(1, 8):
            expected = (one[:, :i].T @ two[:, :j]).norm() ** 2 / min(i, j)
            assert found[i - 1, j - 1] == pytest.approx(float(expected))


def test_random_unit_vectors_have_a_mean_squared_cosine_of_one_over_the_width():
    """The null band is drawn from them."""
    drawn = weights.random_overlap(50, 20_000, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(1 / 50, rel=0.05)


@functools.cache
def few_pieces(tokenizer, whole=curves.prose_pieces):
    """Prose, cut to a short stretch of some texts."""
    return whole(tokenizer, 1, 16)[:8]


@pytest.fixture
def tiny(folder, monkeypatch):
    """A run of a tiny model folder on a tiny task that the registry does not know."""
    task = tiny_task(("exact_match",))
    monkeypatch.setattr(execute, "get_task", lambda name: task)
    for module in (curves, weights):
        monkeypatch.setattr(module, "prose_pieces", few_pieces)

    def run(method: Method, seed: int = 1, rate: float = 1e-2) -> specs.Run:
        return specs.Run(
            model=specs.Model(name=str(folder), revision=""),
            task=task.spec,
            method=method,
            budget=specs.Budget(tokens=400, batch_size=4, learning_rate=rate),
            evaluation=specs.Evaluation(n_loss=4),
            seed=seed,
            dtype="fp32",
        )

    return run


def test_a_learning_curve_starts_at_the_untuned_model_and_ends_at_the_run(tiny):
    """Its ends are what an untuned run and the plain run measure."""
    run = tiny(LoRA(rank=2))
    found = probes.measure(specs.Probe(measure="curves.learning_curve", settings={"steps": (1, 2)}, runs=(run,)))
    curve = found.curve
    assert curve["step"][:3] == [0, 1, 2] and curve["step"][-1] == len(curve["train_loss_nats"])
    assert curve["tokens"] == sorted(curve["tokens"]) and curve["tokens"][-1] >= 400
    trainee = weights.prepare_and_train(run)
    data = [execute.encode_example(trainee.tokenizer, trainee.task, one, 512) for one in
            trainee.task.splits["validation"][:4]]  # fmt: skip
    assert curve["validation_loss_nats"][-1] == pytest.approx(curves.mean_loss(trainee, data), abs=1e-5)
    assert curve["validation_loss_nats"][0] > curve["validation_loss_nats"][-1]


def test_the_gauge_of_forgetting_is_the_end_of_a_curve_with_prose(tiny, monkeypatch):
    """Of the same training, text by text; and another edition of the prose is refused."""
    run = tiny(LoRA(rank=2))
    monkeypatch.setattr(curves, "prose_pieces", lambda tokenizer, *_: few_pieces(tokenizer))
    found = probes.measure(prose_probe(run))
    curve = probes.measure(
        specs.Probe(measure="curves.learning_curve", settings={"steps": (1,), "prose": True}, runs=(run,))
    )
    assert found.per_example["label_tokens"] == curve.per_example["prose_tokens"]
    last = curve.per_example[f"prose_nats_{int(curve.curve['step'][-1])}"]
    assert found.per_example["loss_nats"] == pytest.approx(last, rel=1e-4)
    other = prose_probe(run).model_copy(update={"settings": {"tokens": 16, "data": "e" * 64}})
    with pytest.raises(InputError, match="not the one at hand"):
        probes.measure(other)


def test_a_curve_with_prose_keeps_every_piece_and_one_without_keeps_none(tiny):
    """The curve's prose loss is the mean over its pieces at every moment; the rest of the curve is the same."""
    settings, run = {"steps": (1, 2)}, tiny(LoRA(rank=2))
    plain, found = (
        probes.measure(specs.Probe(measure="curves.learning_curve", settings=settings | extra, runs=(run,)))
        for extra in ({}, {"prose": True})
    )
    assert plain.per_example == {} and plain.curve == {
        name: values for name, values in found.curve.items() if name != "prose_loss_nats"
    }
    tokens = found.per_example["prose_tokens"]
    assert len(set(tokens)) == 1 and tokens[0] > 1  # stretches of one length
    assert set(found.per_example) == {"prose_tokens", *(f"prose_nats_{int(step)}" for step in found.curve["step"])}
    for step, loss in zip(found.curve["step"], found.curve["prose_loss_nats"], strict=True):
        nats = found.per_example[f"prose_nats_{int(step)}"]
        assert len(nats) == len(tokens) > 1
        assert math.fsum(nats) / math.fsum(tokens) == pytest.approx(loss, abs=2e-6)


def test_a_frontier_starts_at_the_untuned_model_and_without_replay_is_the_plain_run(tiny, monkeypatch):
    """Its target losses are those of the learning curve; replay adds its tokens and changes what is learned."""
    pieces = [Encoded((3, 5, 7, 11), 1, False)] * 9
    monkeypatch.setattr(curves, "unknown_pieces", lambda tokenizer, each, length: (pieces[:2], ["one", "two"]))
    monkeypatch.setattr(curves, "known_pieces", lambda tokenizer, tokens, length, seed: pieces)
    settings = {"steps": (1, 3), "each": 1, "window": 4, "piece": 4}

    def measured(run: specs.Run, replay: float) -> probes.Findings:
        return probes.measure(
            specs.Probe(measure="curves.frontier", settings=settings | {"replay": replay}, runs=(run,))
        )

    run = tiny(LoRA(rank=2))
    plain, mixed = (measured(run, share) for share in (0.0, 0.2))
    start = measured(run.model_copy(update={"method": Untuned(), "budget": None}), 0.0)
    curve = probes.measure(specs.Probe(measure="curves.learning_curve", settings={"steps": (1, 3)}, runs=(run,))).curve
    assert [0, *plain.curve["step"]] == curve["step"]
    for found, step, loss in zip(
        [start, *[plain] * len(plain.curve["step"])], curve["step"], curve["validation_loss_nats"], strict=True
    ):
        nats, tokens = (found.per_example[name] for name in (f"target_nats_{step:.0f}", "target_tokens"))
        assert math.fsum(nats) / math.fsum(tokens) == pytest.approx(loss, abs=1e-5)
    assert plain.per_example["general_tokens"] == [3.0, 3.0] and start.curve["step"] == [0]
    less, more = (found.measurements["train_tokens"] for found in (plain, mixed))
    assert less / more == pytest.approx(0.8, abs=4 / less)
    assert mixed.curve["train_loss_nats"] != plain.curve["train_loss_nats"]


def test_subspaces_of_one_seed_are_one_and_of_different_seeds_are_not(tiny):
    """The trap: equal seeds and ranks give equal updates, which says nothing about the task."""
    runs = tuple(tiny(LoRA(rank=rank, targets=("q_proj",)), seed) for rank, seed in ((2, 1), (3, 2), (3, 2)))
    found = probes.measure(specs.Probe(measure="weights.subspaces", runs=runs))
    assert np.allclose(found.per_example["large_large_first"], 1, atol=1e-4)
    assert max(found.per_example["start_first"]) < 0.9
    assert found.metrics_info["map_shape"] == [2, 3]
    assert len(found.curve["small_large_map"]) == 6
    assert np.allclose(found.per_example["large_large_left_first"], 1, atol=1e-4)
    for size in ("small", "large"):  # a first step leaves A nearly where it was
        assert all(0.9 < share < 1 + 1e-6 for share in found.per_example[f"{size}_in_start"])
    assert found.measurements["mean_inverse_width"] == 1 / tiny_llama().config.hidden_size
    assert 0 < found.measurements["null_pooled_95"] <= found.measurements["null_largest_95"] < 1


def test_the_directions_of_an_update_are_the_singular_vectors_of_ba():
    """Against the decomposition of the whole product: σ_k u_k v_kᵀ summed over k is BA."""
    model = apply_method(tiny_llama(), LoRA(rank=4, alpha=8), seed=0)
    randomize_adapters(model)
    found = weights.updates(SimpleNamespace(model=model))
    assert found
    for name, part in model.named_modules():
        if name in found:
            product = part.lora_B["default"].weight.double() @ part.lora_A["default"].weight.double()
            values = torch.linalg.svdvals(product)[:4]
            assert torch.allclose(found[name].left * values @ found[name].right.T, product, atol=1e-8)


@pytest.mark.parametrize("scaling", ["standard", "rank_stabilized"])
def test_the_change_of_an_output_is_what_peft_adds_to_it(scaling):
    """Of every layer: what its LoRA layer puts out minus what the layer below it does, over the latter."""
    model = apply_method(tiny_llama(), LoRA(rank=4, alpha=8, scaling=scaling), seed=0)
    randomize_adapters(model)
    (one, *_) = encoded = random_examples(3)
    found = weights.output_changes(model, encoded[:1])
    kept: dict[str, torch.Tensor] = {}
    layers = {name: part for name, part in model.get_base_model().named_modules() if hasattr(part, "lora_A")}
    for name, layer in layers.items():
        for kind, part in (("whole", layer), ("base", layer.base_layer)):
            part.register_forward_hook(lambda _, __, output, at=f"{name} {kind}": kept.__setitem__(at, output.detach()))
    model(input_ids=torch.tensor([one.ids]))
    assert len(found) == len(layers) == 14
    for name, change in found.items():
        whole, base = kept[f"{name} whole"], kept[f"{name} base"]
        assert change == pytest.approx(float((whole - base).norm() / base.norm()), rel=1e-4)


def test_positions_count_alike_whatever_their_text():
    """Two examples give the root mean square over all their positions."""
    model = apply_method(tiny_llama(), LoRA(rank=4, targets=("q_proj",), layers=(0,)), seed=0)
    randomize_adapters(model)
    one, two = random_examples(2)
    (name,) = weights.output_changes(model, [one])
    joint, first, second = (weights.output_changes(model, part)[name] for part in ([one, two], [one], [two]))
    assert min(first, second) <= joint <= max(first, second)
    assert weights.output_changes(model, [one, one])[name] == pytest.approx(first)


def test_a_training_of_no_size_changes_no_output(tiny):
    """B starts at zero; with a rate it moves."""
    still, moved = (
        probes.measure(specs.Probe(measure="weights.update_size", runs=(tiny(LoRA(rank=2), rate=rate),)))
        for rate in (1e-12, 1e-2)
    )
    assert still.measurements["median_change"] < 1e-8 < 1e-3 < moved.measurements["median_change"]


def test_an_update_that_is_zero_has_no_intruders(tiny):
    """A vanishing rate leaves every leading direction in place, and scaling nothing down changes nothing."""
    found = probes.measure(specs.Probe(measure="weights.intruders", runs=(tiny(Full(), rate=1e-12),)))
    assert set(found.curve["intruders"]) == {0.0}
    assert len(set(found.curve["validation_loss_nats"])) == 1
    assert found.measurements["vectors"] == weights.TOP * found.measurements["matrices"] > 0


def test_a_large_update_brings_intruders_and_more_of_them_at_a_higher_threshold(tiny):
    """The count can only grow with ε; a LoRA of rank 2 changes no matrix by more than rank 2."""
    run = tiny(LoRA(rank=2, alpha=400), rate=0.1)
    found = probes.measure(specs.Probe(measure="weights.intruders", runs=(run,)))
    counts = found.curve["intruders"]
    assert counts == sorted(counts) and counts[-1] > 0
    assert max(found.per_example["update_rank"]) <= 2


@pytest.mark.parametrize("name", ["nothing.here", "curves", "curves.mean_loss", "os.system", ""])
def test_an_unknown_measure_is_refused(name):
    """Only what a module of probes offers can be named."""
    with pytest.raises(InputError, match="Unknown measure"):
        probes.measure(specs.Probe(measure=name))


@given(st.floats(0.05, 0.95))
def test_matched_loss_interpolates_between_measurements(share):
    """Where target and prose loss are linear in each other, so is the matched value; beyond the end it is the end."""
    record = Record(key="", spec=specs.Probe(measure="x.y"), curve={
        "validation_loss_nats": [3.0, 2.0, 1.0], "prose_loss_nats": [5.0, 5.5, 6.5],
    })  # fmt: skip
    assert matched(record, 3 - share) == pytest.approx(5 + 0.5 * share)
    assert matched(record, 2 - share) == pytest.approx(5.5 + share)
    assert matched(record, 0.5) == 6.5


def test_steps_to_a_loss_count_from_the_first_full_window():
    """Eight equal losses reach their own mean at step eight; a target below all is never reached."""
    losses = [2.0] * 8 + [1.0] * 8
    record = Record(key="", spec=specs.Probe(measure="x.y"), curve={"train_loss_nats": losses})
    assert steps_to(record, 2.0) == 8
    assert steps_to(record, 1.0) == 16
    assert steps_to(record, 0.1) is None
    assert steps_to(record, math.inf) == 8
