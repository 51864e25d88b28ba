"""Does tuning recover what few bits lose?

Written before the runs. On a small Llama trained in float32 (whose weights never lay on a 4-bit grid) and, as a
separate row, on SmolLM2 (whose weights come from one): LoRA on the 16-bit base and on bases quantised to NF4, FP4, INT4
and, on the small model, NF2 with the plain, LoftQ and PiSSA starts; three rates a factor of 4 apart for each arm, one
seed, extended at the edges; five fresh seeds on the small model, three on SmolLM2, at the chosen rate. The gap before
tuning is that of the quantised base alone. An arm on 16 bit has LoftQ's start without its error; it is told and not
judged: what the paper says is that the start ends lower, not why.

Requantising: the adapters of three arms, trained again with the fresh seeds, are merged into their base, which is then
quantised once more; the test loss of every step. NF4 on the small model decides: a model that does not notice its
weights being rounded once does not tell what rounding them twice costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.core.specs import Run
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, weights
from peftbook.evidence.planning import judge_claim
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies import BLIND, Quantity, Verdict, available, gathered, margins, study
from peftbook.studies.merging import loss_quantities, lost_share, nats, percent
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison

MARGIN = margins.LOSS
BEARABLE = 0.025  # nats per token by which grids may fall short; half of the margin that they were refined for
FLOOR = 0.02  # nats per token: a model whose gap before tuning is not surely larger has nothing to recover or to tell
QUANTISED = {"small": ("nf4", "fp4", "int4", "nf2"), "smollm2": ("nf4", "fp4", "int4")}
STARTS = ("nf2_loftq", "nf2_pissa")
MERGED = (("small", "nf4"), ("small", "nf2"), ("smollm2", "nf4"))  # model and arm; the first decides
MARGIN_MERGED = margins.SHARE
RECIPES = ("requantised", "merged_16bit", "requantised_16bit")


def arms(centre: int, model: str) -> tuple[Arm, ...]:
    """Untuned and tuned, on 16-bit and quantised bases."""
    grid = rates(centre - 2, centre + 2, 2)
    started = (
        Arm("nf2_loftq", "NF2, LoftQ start", QLoRA(quant="nf2", init="loftq"), grid),
        Arm("nf2_pissa", "NF2, PiSSA start", QLoRA(quant="nf2", init="pissa"), grid),
        Arm("loftq", "16 bit, LoftQ start", QLoRA(quant="nf2", init="loftq", rounded=False), grid),
    )
    return (
        Arm("before", "16 bit, untuned", Untuned()),
        *(Arm(f"{q}_before", f"{q.upper()}, untuned", Untuned(quant=q)) for q in QUANTISED[model]),  # type: ignore[arg-type]
        Arm("lora", "16 bit, LoRA", LoRA(), grid),
        *(Arm(q, f"{q.upper()}, LoRA", QLoRA(quant=q), grid) for q in QUANTISED[model]),  # type: ignore[arg-type]
        *(started if model == "small" else ()),
    )


COMPARISONS = {
    "small": TunedComparison(
        task="e2e", tokens=2 * E2E_TOKENS, arms=arms(3, "small"), factor=4, bearable=BEARABLE,
        model=specs.SMALL_LLAMA, seeds=(1, 2, 3, 4, 5),
        first_look=3,
    ),
    "smollm2": TunedComparison(
        task="e2e", tokens=E2E_TOKENS, arms=arms(2, "smollm2"), factor=4, bearable=BEARABLE
    ),
}  # fmt: skip


def runs(store: Store) -> list[Run]:
    """The small model first: it decides."""
    return [run for comparison in COMPARISONS.values() for run in comparison.runs(store)]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Gaps to 16 bit before and after tuning, by model and type; gains of the corrected starts."""
    out: dict[str, Quantity] = {}
    for name, comparison in COMPARISONS.items():
        pairs = [pair for quant in QUANTISED[name] for pair in ((f"{quant}_before", "before"), (quant, "lora"))]
        out |= comparison.quantities(store, pairs, f"{name}_")
    for start in STARTS:
        out |= COMPARISONS["small"].paired(start, "nf2", store, "small_")
    return out | COMPARISONS["small"].paired("loftq", "lora", store, "small_")


@study("recovery", runs, quantities)
def recovery_verdict(store: Store) -> Verdict:
    """After tuning, is the NF4 gap to 16-bit LoRA within the margin, and was there a gap?"""
    small = COMPARISONS["small"]
    what = "After tuning, the test loss on NF4 minus that on 16 bit"
    before = small.difference("nf4_before", "before", "loss_nats", store)
    plain = small.verdict("nf4", "lora", 0.0, (-math.inf, MARGIN), what, store, "small_")
    said = plain.sentence.removesuffix(".")
    said += f"; before tuning the gap is {before:+.4f}"
    for quant, model in (("nf2", "small"), ("nf4", "smollm2")):
        with suppress(Missing):
            where = "the small Llama" if model == "small" else "SmolLM2 (confounded)"
            pairs = ((f"{quant}_before", "before"), (quant, "lora"))
            gaps = [COMPARISONS[model].difference(*pair, "loss_nats", store).mean for pair in pairs]
            said += f"; {quant.upper()} on {where}: {gaps[0]:+.3f} before and {gaps[1]:+.3f} after tuning"
    if before.low <= FLOOR and plain.outcome != "refuted":
        blunt = f"{said}. There is nothing to recover: the gap before is not above {FLOOR}."
        named = ("small_nf4_before_minus_before_loss", *plain.quantities)
        return Verdict("undecided", blunt, named, plain.judged, held=BLIND)
    return replace(plain, sentence=f"{said}.")


@study("loftq", runs, quantities)
def start_verdict(store: Store) -> Verdict:
    """Does the LoftQ start end lower than the plain one on two bits? What it repairs is told beside."""
    small, what = COMPARISONS["small"], "Test loss of the LoftQ start minus the plain start, on NF2"
    plain = small.verdict("nf2_loftq", "nf2", MARGIN, (-math.inf, 0.0), what, store, "small_")
    after, start = (small.difference(arm, "lora", "loss_nats", store) for arm in ("nf2", "loftq"))
    said = (
        f"{plain.sentence.removesuffix('.')}; from the plain start NF2 ends {after:+.3f} from 16 bit, where LoftQ's "
        f"start alone, without any error to correct, is worth {start:+.3f}"
    )
    if after.low <= FLOOR:
        said += ": a better start, and nothing is shown to be repaired"
    named = (*plain.quantities, "small_nf2_minus_lora_loss", "small_loftq_minus_lora_loss")
    return replace(plain, sentence=f"{said}.", quantities=named)


def merged_probes(model: str, arm: str, store: Store) -> list[specs.Probe]:
    """An arm's final runs, trained again and merged. Raises Missing until its rate is chosen."""
    comparison = COMPARISONS[model]
    runs = comparison.final_runs(comparison.arm(arm), store)
    return [specs.Probe(measure="serving.requantise_gap", runs=(run,), seed=run.seed) for run in runs]


def merged_records(model: str, arm: str, store: Store) -> list[Record]:
    """The records of an arm's merged runs. Raises Missing."""
    return store.need_all(merged_probes(model, arm, store))


def merged_runs(store: Store) -> list[Run | specs.Probe]:
    """The sweeps that choose the rates, then the merged runs."""
    tunings = [COMPARISONS[model].tuning(COMPARISONS[model].arm(arm)) for model, arm in MERGED]
    sweeps = [run for tuning in tunings for rate in tuning.rates(store.get) for run in tuning.make(rate)]
    return [*sweeps, *itertools.chain(*available(lambda arm: merged_probes(*arm, store), MERGED))]


def merged_quantities(store: Store) -> Mapping[str, Quantity]:
    """By model and type: the losses of all states, the adapter's gain, and what each recipe loses of it."""
    return gathered(lambda arm: merged_losses("_".join(arm), merged_records(*arm, store)), MERGED)


def merged_losses(name: str, records: list[Record]) -> dict[str, Quantity]:
    """The losses of an arm's states, its gain, and what each recipe loses of that."""
    keys, states = keys_of(records), ("full", "untuned", "unmerged", "merged", *RECIPES)
    out = {f"{name}_{key}": loss for key, loss in loss_quantities(records, states, "merged").items()}
    out[f"{name}_cost"] = Quantity.of(rounding_cost(records), "nats per token", keys, 4)
    for recipe in RECIPES:
        out[f"{name}_{recipe}_lost"] = percent(lost_share(records, recipe, "merged", "merged"), keys)
    return out


def rounding_cost(records: list[Record]) -> stats.Interval:
    """What rounding the weights once costs the untuned model, nats per token."""
    return stats.paired_interval(nats(records, "untuned"), nats(records, "full"), weights(records, "loss_nats"))


@study("requantised", merged_runs, merged_quantities)
def merged_verdict(store: Store) -> Verdict:
    """Does quantising the merged model again lose more than the margin of the adapter's gain, and could the model tell?

    That it loses less counts only where rounding the weights once surely costs the model that decides more than FLOOR.
    """
    records = merged_records(*MERGED[0], store)
    lost = lost_share(records, "requantised", "merged", "merged")
    said = [
        f"Quantising the merged small Llama to NF4 again loses {lost.mean:+.2%} of what the adapter gained (95 % "
        f"interval {lost.low:+.2%} to {lost.high:+.2%}; margin {MARGIN_MERGED:.0%})"
    ]
    for (model, arm), name in zip(MERGED[1:], ("NF2 on the same model", "NF4 on SmolLM2 (confounded)"), strict=True):
        with suppress(Missing):
            share = lost_share(merged_records(model, arm, store), "requantised", "merged", "merged")
            said.append(f"{name}: {share:+.1%}")
    cost = rounding_cost(records)
    said.append(f"NF4 itself costs the small Llama {cost.mean:+.4f} nats ({cost.low:+.4f} to {cost.high:+.4f})")
    outcome, part = judge_claim(lost, 0.0, (MARGIN_MERGED, math.inf))
    names = ("small_nf4_requantised_lost", "small_nf4_cost")
    if outcome == "refuted" and cost.low <= FLOOR:
        blunt = f"That is not surely above {FLOOR}, so this model cannot tell; the other rows say what others lose."
        return Verdict("undecided", f"{'; '.join(said)}. {blunt}", names[::-1], held=BLIND)
    return Verdict(outcome, f"{'; '.join(said)}.", names, (part,))
