"""What is left of each task when the adapters of several tasks are made into one."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.methods.lora import LoRA
from peftbook.scratch.combining import (
    Factors,
    average,
    combine_factors,
    dare,
    mean_of_factors,
    sign_conflict,
    task_arithmetic,
    ties,
)
from peftbook.training.encode import Encoded
from peftbook.training.execute import Trainee, prepare
from peftbook.training.loop import losses, order_of, train
from peftbook.training.models import load_model
from peftbook.training.probes import Findings, positive
from peftbook.training.probes.serving import trained_update

PLAIN = ("average", "factors", "factor_mean")  # ways of combining that have no scale
SCALED = ("sum", "ties", "dare")

Layers = dict[str, Tensor]  # adapted layer → its update
Shares = Callable[[float], float]  # a loss → the share of the gain that it keeps


@dataclass(frozen=True)
class TrainedAdapters:
    """An adapter and the rows of its task. layers: A and γB by adapted layer.  validation, test: rows with labels."""

    task: str
    layers: dict[str, Factors]
    validation: list[Encoded]
    test: list[Encoded]
    pad_id: int


@dataclass
class Scorer:
    """Losses of a model whose adapted weights are the base's plus an update.

    dtype: of the arithmetic, as of the runs.  nats: what has been scored on test rows, by its name.
    """

    model: nn.Module
    run: specs.Run
    nats: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self):
        self.kept = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    @torch.no_grad()
    def put(self, update: Layers) -> None:
        """W + D in the adapted layers, and W in all others."""
        for name, value in self.model.named_parameters():
            moved = update.get(name.removesuffix(".weight"))
            value.copy_(self.kept[name] if moved is None else self.kept[name] + moved)

    def sums(self, rows: Sequence[Encoded], pad_id: int) -> list[float]:
        """Summed nats of each row with the weights that are in place."""
        run = self.run
        with order_of(run, self.model):
            return losses(self.model, list(rows), pad_id=pad_id, dtype=run.dtype, platform=run.platform)[0]

    def mean(self, adapter: TrainedAdapters) -> float:
        """Nats per label token on the validation rows of a task."""
        return math.fsum(self.sums(adapter.validation, adapter.pad_id)) / sum(
            row.label_tokens for row in adapter.validation
        )

    def note(self, adapter: TrainedAdapters, state: str) -> None:
        """Keep the losses on the test rows of a task."""
        self.nats[f"{adapter.task}_{state}_loss_nats"] = self.sums(adapter.test, adapter.pad_id)


def kept_gains(probe: specs.Probe) -> Findings:
    """Train an adapter for each of the probe's runs, combine those of each pair and of all, and score every task.

    per_example, summed nats of the test rows: `{task}_untuned`, `{task}_by_{other}` with the adapter of one task, and
    `{task}_{subset}_{way}` with those of a subset combined, where `subset` joins its tasks by `+`. Ways:

    average: Σ D_i / k.   factors: A = Σ A_i / √k, B = Σ B_i / √k, peft's `linear` with weights 1/k.   factor_mean:
    A = Σ A_i / k, B = Σ B_i / k.   sum, ties, dare: of `peftbook.scratch.combining`, times the scale with which most of
    the gain is kept on the validation rows of the subset's tasks, on average.

    settings: `validation_examples`; `density` of ties and `drop` of dare; `sum_scales`, `ties_scales`, `dare_scales`.
    curve: `{subset}_{way}_{task}`, the share of the gain that each scale keeps on validation rows.
    measurements: `{subset}_{way}_scale`, the chosen one; `{subset}_cosine` of two updates over all layers;
    `{subset}_sign_conflict`; `{subset}_cross`, the norm of the cross terms of `factors` over that of the average.
    """
    if len({run.task.name for run in probe.runs}) < max(2, len(probe.runs)):
        raise InputError("kept_gains combines adapters of different tasks: give it two runs or more, each of its own.")
    adapters = [trained(run, *positive(probe, "validation_examples")) for run in probe.runs]
    if len({run.dtype for run in probe.runs}) > 1:
        raise InputError("kept_gains scores all adapters in one type: give it runs of one dtype.")
    scorer = Scorer(load_model(probe.model, platform=probe.platform).model, probe.runs[0])
    shares = single_scores(scorer, adapters)
    generator = torch.Generator().manual_seed(probe.seed)
    measured: dict[str, float] = {}
    curve: dict[str, list[float]] = {}
    for subset in subsets(adapters):
        name = name_of(subset)
        measured |= {f"{name}_{what}": value for what, value in geometry(subset).items()}
        for way in PLAIN:
            note_all(scorer, subset, update_of(way, subset, probe, generator), way)
        for way in SCALED:
            update, scales = update_of(way, subset, probe, generator), probe.numbers(f"{way}_scales")
            kept = {adapter.task: shares_kept(scorer, adapter, update, scales, shares) for adapter in subset}
            best = max(range(len(scales)), key=lambda at: math.fsum(values[at] for values in kept.values()))
            curve |= {f"{name}_{way}_{task}": values for task, values in kept.items()}
            measured[f"{name}_{way}_scale"] = scales[best]
            note_all(scorer, subset, times(update, scales[best]), way)
    per_example = {name: [round(value, 5) for value in values] for name, values in scorer.nats.items()}
    counts = {f"{a.task}_label_tokens": [float(row.label_tokens) for row in a.test] for a in adapters}
    return Findings(measurements=measured, curve=curve, per_example=per_example | counts)


def joint_losses(probe: specs.Probe) -> Findings:
    """Train one adapter on the batches of all of the probe's runs, in an order drawn by its seed; score every task.

    Method and start are those of the first run; weights are merged for scoring, as in `kept_gains`.

    settings: `learning_rate`.
    per_example: `{task}_joint_loss_nats`, summed nats of the rows that the task's run is scored on.
    measurements: `loss_nats`, nats per label token of a task, mean over tasks; `train_tokens`, `train_steps`.
    """
    trainees = [prepare(run) for run in probe.runs]
    first, run = trainees[0], probe.runs[0]
    if run.budget is None:
        raise InputError("joint_losses takes the batches of trained runs: give it runs with a budget.")
    budget = run.budget.model_copy(update={"learning_rate": probe.number("learning_rate")})
    data, plan = joint_plan(trainees, probe.seed)
    pad_id = first.tokenizer.pad_token_id
    with order_of(run, first.model):
        result = train(
            first.model,
            data,
            budget,
            plan=plan,
            seed=probe.seed,
            pad_id=pad_id,
            dtype=run.dtype,
            platform=run.platform,
        )
    scorer = Scorer(load_model(probe.model, platform=probe.platform).model, run)
    scorer.put({name: factors.update for name, factors in layers_of(first.model).items()})
    scored = {one.run.task.name: (scorer.sums(one.graded, pad_id), one.graded) for one in trainees}
    means = [math.fsum(nats) / sum(row.label_tokens for row in rows) for nats, rows in scored.values()]
    return Findings(
        measurements={
            "loss_nats": math.fsum(means) / len(means),
            "train_tokens": result.tokens,
            "train_steps": len(result.losses),
        },
        per_example={f"{task}_joint_loss_nats": [round(one, 5) for one in nats] for task, (nats, _) in scored.items()},
    )


def joint_plan(trainees: Sequence[Trainee], seed: int) -> tuple[list[Encoded], list[list[int]]]:
    """The training rows of all runs, and the batches of each alone in a shuffled order."""
    data: list[Encoded] = []
    plan: list[list[int]] = []
    for trainee in trainees:
        plan += [[len(data) + index for index in batch] for batch in trainee.plan]
        data += trainee.encoded
    order = np.random.default_rng(seed).permutation(len(plan))
    return data, [plan[at] for at in order]


def share(untuned: float, single: float, loss: float) -> float:
    """A loss as the share of a gain: 1 with the task's own adapter alone."""
    return (untuned - loss) / (untuned - single)


def trained(run: specs.Run, validation_examples: int) -> TrainedAdapters:
    """Train a run and keep its adapter. Raises InputError for a method that is not LoRA from the plain start."""
    if not isinstance(run.method, LoRA) or run.method.init != "kaiming" or run.method.dora:
        raise InputError(f"kept_gains needs LoRA runs with init 'kaiming' and without DoRA, not {run.method!r}.")
    trainee = prepare(run)
    trainee.train()
    choosing = run.evaluation.model_copy(update={"split": "validation", "n_loss": validation_examples})
    validation = replace(trainee, run=run.model_copy(update={"evaluation": choosing})).graded
    return TrainedAdapters(
        run.task.name, layers_of(trainee.model), validation, trainee.graded, trainee.tokenizer.pad_token_id
    )


def layers_of(model: nn.Module) -> dict[str, Factors]:
    """A and γB of a trained LoRA by adapted layer."""
    state, scaling = trained_update(model)
    return {
        name.removesuffix(".A"): Factors(A.clone(), scaling * state[f"{name.removesuffix('.A')}.B"])
        for name, A in state.items()
        if name.endswith(".A")
    }


def single_scores(scorer: Scorer, adapters: Sequence[TrainedAdapters]) -> dict[str, Shares]:
    """Score no adapter and each single one on every task.

    Returns task → the share of its gain that a loss on its validation rows keeps.
    """
    scorer.put({})
    untuned = {adapter.task: scorer.mean(adapter) for adapter in adapters}
    for adapter in adapters:
        scorer.note(adapter, "untuned")
    shares: dict[str, Shares] = {}
    for other in adapters:
        scorer.put({name: factors.update for name, factors in other.layers.items()})
        shares[other.task] = functools.partial(share, untuned[other.task], scorer.mean(other))
        for adapter in adapters:
            scorer.note(adapter, f"by_{other.task}")
    return shares


def note_all(scorer: Scorer, subset: Sequence[TrainedAdapters], update: Layers, way: str) -> None:
    """Keep the losses of every task of a subset under an update."""
    scorer.put(update)
    for adapter in subset:
        scorer.note(adapter, f"{name_of(subset)}_{way}")


def shares_kept(
    scorer: Scorer, adapter: TrainedAdapters, update: Layers, scales: Sequence[float], shares: Mapping[str, Shares]
) -> list[float]:
    """The share of a task's gain on its validation rows that each scale of an update keeps."""
    kept = []
    for scale in scales:
        scorer.put(times(update, scale))
        kept.append(round(shares[adapter.task](scorer.mean(adapter)), 6))
    return kept


def update_of(way: str, subset: Sequence[TrainedAdapters], probe: specs.Probe, generator: torch.Generator) -> Layers:
    """The update of a way of combining, at scale 1 where it has a scale."""
    ways: dict[str, Callable[[list[Factors]], Tensor]] = {
        "average": lambda factors: average(updates_of(factors)),
        "factors": lambda factors: combine_factors(factors, [1 / len(factors)] * len(factors)).update,
        "factor_mean": lambda factors: mean_of_factors(factors).update,
        "sum": lambda factors: task_arithmetic(updates_of(factors), 1.0),
        "ties": lambda factors: ties(updates_of(factors), probe.number("density")),
        "dare": lambda factors: dare(updates_of(factors), probe.number("drop"), generator=generator),
    }
    return {name: ways[way](factors) for name, factors in by_layer(subset)}


def updates_of(factors: Sequence[Factors]) -> list[Tensor]:
    """The update of a layer by each adapter."""
    return [one.update for one in factors]


def geometry(subset: Sequence[TrainedAdapters]) -> dict[str, float]:
    """Over all layers: the cosine of two updates, what of them has not the elected sign, and the cross terms."""
    weight = against = own = crossed = 0.0
    inner = torch.zeros(len(subset), len(subset), dtype=torch.float64)
    for _, factors in by_layer(subset):
        updates = updates_of(factors)
        flat = torch.stack(updates).flatten(1).double()
        inner += flat @ flat.T
        size = flat.abs().sum().item()
        weight, against = weight + size, against + size * sign_conflict(updates)
        mean = average(updates)
        own += mean.square().sum().item()
        crossed += (combine_factors(factors, [1 / len(factors)] * len(factors)).update - mean).square().sum().item()
    norms = inner.diagonal().sqrt()
    alike = {"cosine": (inner[0, 1] / (norms[0] * norms[1])).item()} if len(subset) == 2 else {}
    return alike | {"sign_conflict": against / weight, "cross": math.sqrt(crossed / own)}


def by_layer(subset: Sequence[TrainedAdapters]) -> Iterator[tuple[str, list[Factors]]]:
    """Each adapted layer with its factors in all adapters."""
    for name in subset[0].layers:
        yield name, [adapter.layers[name] for adapter in subset]


def times(update: Mapping[str, Tensor], scale: float) -> Layers:
    """An update, scaled."""
    return {name: scale * value for name, value in update.items()}


def subsets(items: Sequence) -> list[tuple]:
    """All pairs, in order; then all of them, where they are more than two."""
    pairs = list(itertools.combinations(items, 2))
    return pairs if len(items) == 2 else [*pairs, tuple(items)]


def name_of(subset: Sequence[TrainedAdapters]) -> str:
    """How a subset is called."""
    return "+".join(adapter.task for adapter in subset)
