"""What training did to the weights: subspaces of the update, its size, and new singular directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.training.encode import Encoded
from peftbook.training.execute import Trainee, prepare
from peftbook.training.forward import causal_model
from peftbook.training.merges import lora_layers
from peftbook.training.probes import Findings
from peftbook.training.probes.curves import mean_loss, prose_pieces

NULL_DRAWS = 200
TOP = 10  # leading singular vectors that are looked at
EPSILONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LAYERS = (0, 7, 15, 22, 29)  # where singular vectors are computed: every seventh layer
SCALES = (1.0, 0.75, 0.5, 0.25, 0.0)


def subspaces(probe: specs.Probe) -> Findings:
    """Overlap of the subspaces of three independently trained LoRA updates, ranks r, R and R.

    φ(i, j) = ‖V_i^T V'_j‖²_F / min(i, j), where V_i holds the first i right singular vectors of the update BA: 1 if
    the smaller space lies in the larger, max(i, j) / d_in on average for random spaces. The pooled value is the mean
    over all adapted modules. The null band is the 95 % point of the pooled φ(1, 1) of random unit vectors. `…_left` is
    the same for left singular vectors, directions of the outputs.

    `…_in_start`: ‖V₀^T v₁‖², how much of the first right singular vector lies in the rows that A had before training;
    r / d_in on average for a random one, 1 where A has not moved.

    The probe's runs have different seeds: with equal ones a hand-made A of rank R may repeat that of rank r.
    Source: Hu et al. 2021, arXiv:2106.09685, section 7.2 and appendix G, where d is ‖·‖ so that φ = 1 − d²/p.
    """
    small, large, other = (updates(prepare_and_train(run)) for run in probe.runs)
    names = sorted(small)
    starts = [updates(prepare(run), start=True) for run in probe.runs[:2]]
    rank, most = (int(run.method.model_dump()["rank"]) for run in probe.runs[:2])
    pairs = {"small_large": (small, large), "large_large": (large, other), "start": starts}
    maps = {
        name: torch.stack([overlap(left[n].right, right[n].right, rank, most) for n in names])
        for name, (left, right) in pairs.items()
    }
    maps |= {
        f"{name}_left": torch.stack(
            [overlap(pairs[name][0][n].left, pairs[name][1][n].left, rank, most) for n in names]
        )
        for name in ("small_large", "large_large")
    }
    inside = {
        f"{name}_in_start": torch.stack([(start[n].right.T @ directions[n].right[:, 0]).square().sum() for n in names])
        for name, directions, start in (("small", small, starts[0]), ("large", large, starts[1]))
    }
    generator = torch.Generator().manual_seed(probe.seed)
    widths = [len(small[name].right) for name in names]
    null = torch.stack([random_overlap(width, NULL_DRAWS, generator) for width in widths])  # (modules, draws)
    return Findings(
        measurements={
            "modules": len(names),
            "null_pooled_95": float(torch.quantile(null.mean(dim=0), 0.95)),
            "null_largest_95": float(torch.quantile(null.amax(dim=0), 0.95)),
            "mean_inverse_width": math.fsum(1 / width for width in widths) / len(widths),
            "mean_inverse_output_width": math.fsum(1 / len(small[name].left) for name in names) / len(names),
        },
        curve={f"{name}_map": rounded(values.mean(dim=0).flatten()) for name, values in maps.items()},
        per_example={
            **{f"{name}_first": rounded(values[:, 0, 0]) for name, values in maps.items()},
            **{name: rounded(values) for name, values in inside.items()},
            "module": names,
        },
        metrics_info={"map_shape": [rank, most], "null_draws": NULL_DRAWS},
    )


def prepare_and_train(run: specs.Run) -> Trainee:
    """A trained model."""
    trainee = prepare(run)
    trainee.train()
    return trainee


class Directions(NamedTuple):
    """Singular vectors of an update BA as columns, largest singular value first. right: (d_in, r). left: (d_out, r)."""

    right: torch.Tensor
    left: torch.Tensor


def updates(trainee: Trainee, *, start: bool = False) -> dict[str, Directions]:
    """Module → singular vectors of BA; with `start` the right ones are those of A, since B is still zero."""
    out = {}
    for name, part in trainee.model.named_modules():
        if hasattr(part, "lora_A") and "default" in part.lora_A:
            a = part.lora_A["default"].weight.detach().double()  # (r, d_in)
            b = part.lora_B["default"].weight.detach().double()  # (d_out, r)
            q, r = torch.linalg.qr(b)
            svd = torch.linalg.svd(a if start else r @ a, full_matrices=False)  # BA = Q (RA)
            out[name] = Directions(svd.Vh.T, b if start else q @ svd.U)
    if not out:
        raise InputError("A subspace probe needs LoRA runs: give three of them.")
    return out


def overlap(first: torch.Tensor, second: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """φ for 1 … i and 1 … j, (i, j). first: (d, ≥ i); second: (d, ≥ j), columns orthonormal."""
    squares = (first[:, :i].T @ second[:, :j]) ** 2
    sums = squares.cumsum(dim=0).cumsum(dim=1)
    rows, columns = torch.arange(1, i + 1)[:, None], torch.arange(1, j + 1)[None, :]
    return sums / torch.minimum(rows, columns)


def random_overlap(width: int, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Squared cosine of pairs of random unit vectors in `width` dimensions, (draws,)."""
    pair = torch.randn(2, draws, width, generator=generator, dtype=torch.float64)
    pair = pair / pair.norm(dim=2, keepdim=True)
    return (pair[0] * pair[1]).sum(dim=1) ** 2


def update_size(probe: specs.Probe) -> Findings:
    """How much a trained LoRA changes what its layers put out: RMS(γ B A x) / RMS(W x), each module's own.

    The inputs x are those that the tuned model makes of the run's validation examples, all positions. Dropout is off.
    """
    (run,) = probe.runs
    trainee = prepare_and_train(run)
    changes = output_changes(trainee.model, trainee.graded)
    return Findings(
        measurements={"modules": len(changes), "median_change": median(changes.values())},
        per_example={"change": [round(value, 8) for value in changes.values()], "module": list(changes)},
    )


@torch.no_grad()
def output_changes(model: nn.Module, encoded: Sequence[Encoded]) -> dict[str, float]:
    """Module → RMS(γ B A x) / RMS(W x) over all positions of the examples, for a model with peft's LoRA layers."""
    sums: dict[str, list[float]] = {}

    def note(name: str, layer: Any) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = inputs[0].float()
            update = x @ layer.lora_A["default"].weight.float().T @ layer.lora_B["default"].weight.float().T
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += (layer.scaling["default"] * update).square().sum().item()
            total[1] += output.float().square().sum().item()

        return hook

    hooks = [layer.base_layer.register_forward_hook(note(name, layer)) for name, layer in lora_layers(model).items()]
    model.eval()
    for example in encoded:
        causal_model(model)(input_ids=torch.tensor([example.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: math.sqrt(update / output) for name, (update, output) in sums.items()}


def rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 6) for value in values]


@torch.no_grad()
def intruders(probe: specs.Probe) -> Findings:
    """Intruder dimensions of one trained run: leading singular vectors that the pretrained weight does not have.

    A left singular vector u_k (k ≤ TOP) of the tuned W is an intruder at ε if max_j |cos(u_k, u⁰_j)| < ε over all
    left singular vectors u⁰_j of the pretrained W₀. Counted over the linear layers of LAYERS, for each ε; the number
    of singular values that hold 90 % of ‖ΔW‖²_F; and target and prose loss when the intruders at ε = 0.6 are scaled
    by each of SCALES. Source: Shuttleworth et al. 2024, arXiv:2410.21228, section 3.
    """
    (run,) = probe.runs
    trainee = prepare(run)
    before = linears(trainee.model)
    with torch.enable_grad():
        trained = trainee.train()
    model = causal_model(trainee.model)
    if hasattr(trainee.model, "merge_adapter"):
        trainee.model.merge_adapter()
    after = linears(trainee.model)
    counts = dict.fromkeys(EPSILONS, 0)
    ranks, intruding = [], {}
    for name, old in before.items():
        new = after[name]
        change = torch.linalg.svdvals((new - old).float())
        energy = (change**2).cumsum(0) / (change**2).sum().clamp(min=1e-30)
        ranks.append(int((energy < 0.9).sum()) + 1)
        left, values, right = torch.linalg.svd(new, full_matrices=False)
        reference = torch.linalg.svd(old, full_matrices=False).U
        nearest = (left[:, :TOP].T @ reference).abs().amax(dim=1)  # (TOP,)
        for epsilon in EPSILONS:
            counts[epsilon] += int((nearest < epsilon).sum())
        at = (nearest < 0.6).nonzero().flatten()
        intruding[name] = (left[:, at] * values[at]) @ right[at]
    prose = prose_pieces(trainee.tokenizer)
    curve: dict[str, list[float]] = {"scale": [], "validation_loss_nats": [], "prose_loss_nats": []}
    parts = dict(model.named_modules())
    for scale in SCALES:
        for name, part in intruding.items():
            weight_of(parts[name]).copy_(after[name] + (scale - 1) * part)
        curve["scale"].append(scale)
        curve["validation_loss_nats"].append(round(mean_loss(trainee, trainee.graded), 6))
        curve["prose_loss_nats"].append(round(mean_loss(trainee, prose), 6))
    return Findings(
        measurements={
            "matrices": len(before),
            "vectors": TOP * len(before),
            "median_rank_of_update": sorted(ranks)[len(ranks) // 2],
            "trainable_parameters": trainee.trainable,
            "train_tokens": trained.tokens if trained else 0,
            **{f"intruders_{epsilon:g}": count for epsilon, count in counts.items()},
        },
        curve={**curve, "epsilon": list(EPSILONS), "intruders": [float(counts[epsilon]) for epsilon in EPSILONS]},
        per_example={"update_rank": [float(rank) for rank in ranks], "module": list(before)},
    )


def linears(model: nn.Module) -> dict[str, torch.Tensor]:
    """Module → a copy of its weight, for the decoder's linear layers in LAYERS; names are those of the bare model."""
    out = {}
    for name, part in causal_model(model).named_modules():
        inside = any(f".layers.{layer}." in f".{name}" for layer in LAYERS)
        if inside and name.endswith("_proj") and (weight := weight_of(part)) is not None:
            out[name] = weight.detach().float().clone()
    return out


def weight_of(part: nn.Module) -> torch.Tensor:
    """The dense weight of a linear layer, peft's wrapper or not."""
    base = getattr(part, "base_layer", part)
    weight: torch.Tensor = base.weight  # type: ignore[assignment]
    return weight
