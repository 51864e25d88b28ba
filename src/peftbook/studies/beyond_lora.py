"""Is plain LoRA enough once every method's rate is tuned? Its own variants, OFT and MiSS against it.

Written before the runs of OFT and MiSS. Lee et al. 2026 (arXiv:2602.04998v2, of which we could read the abstract) tune
nine variants and plain LoRA and find them within one or two per cent. Hugging Face's "Beyond LoRA" ranks peft's methods
by one run each, most at one rate, and says that normal LoRA should be avoided in favour of the alternatives. Here all
arms have the protocol of the study `variants`: its task, model, budget, four rates a factor of 4 apart, extended at the
edges and refined where too coarse, and five fresh seeds; LoRA and its variants are that study's own records.

The arms: every one of `variants` that trains as many numbers as LoRA at rank 16 (DoRA: 3 % more), and two that peft has
under other names. LoRA+ with ratio 4 also stands for rsLoRA: at rank 16 α/√r is LoRA+ with ratio √r = 4 (`scaling`),
and the records of α/√r itself have three seeds and a grid too coarse for the margin. LoRA trains 4,884,480 numbers, OFT
with blocks of 64 3 % fewer, 4,717,440 (blocks must divide 576 and 1,536), MiSS with r = 32 2 % more, 4,976,640; both on
all linear layers and else with peft's defaults, so that OFT's rotation is the truncated series.

What was known. The records of the five variants had been seen: of LoRA+ with ratio 16, PiSSA and OLoRA the intervals
lie below zero and cross −margin, of LoRA+ with ratio 4 the interval is wider than the margin. No seeds will be added to
change that; the claim about OFT and MiSS alone is the one that was open. Of these a pilot on the small Llama was looked
at, seed 99 and twenty steps at two or three rates: OFT gets as far as LoRA at about a third of LoRA's rate, MiSS at
about a quarter. So both have LoRA's grid, whose middle lies above what that would make their best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

from peftbook.core.records import Missing, Store
from peftbook.evidence import stats
from peftbook.evidence.planning import Judged
from peftbook.methods.from_peft import PeftMethod
from peftbook.studies import Quantity, Verdict, study, variants
from peftbook.studies.standard import rates
from peftbook.studies.tuned_comparison import Arm

MARGIN = variants.MARGIN  # nats per token
OFT = PeftMethod(name="OFT", arguments=(("oft_block_size", 64), ("target_modules", "all-linear")))
MISS = PeftMethod(name="MISS", arguments=(("r", 32), ("target_modules", "all-linear")))
SEEN = ("plus", "plus16", "pissa", "olora", "dora")  # the arms whose records were there
NEW = ("oft", "miss")
FAMILY = (*SEEN, *NEW)
COMPARISON = dataclasses.replace(
    variants.COMPARISON,
    arms=(
        *(variants.COMPARISON.arm(name) for name in ("lora", *SEEN)),
        Arm("oft", "OFT", OFT, rates(-2, 4, 2)),
        Arm("miss", "MiSS", MISS, rates(-2, 4, 2)),
    ),
)
NOT_BETTER = (-MARGIN, math.inf)


def differences(names: Sequence[str], store: Store) -> dict[str, stats.Interval]:
    """Test loss of each arm minus plain LoRA's, nats per token; negative is a gain. Raises Missing."""
    return {name: COMPARISON.difference(name, "lora", "loss_nats", store) for name in names}


def gains_more(found: Mapping[str, stats.Interval]) -> dict[str, bool]:
    """Which arms gain more than the margin; those that surely gain less take nothing off Holm's correction."""
    return stats.surely_above({name: -one for name, one in found.items()}, MARGIN)


def outcome(found: Mapping[str, stats.Interval]) -> str:
    """Refuted where an arm gains more, reproduced where all surely do not and all could be seen, else undecided."""
    more, parts = gains_more(found), {name: stats.judge(one, 0.0, NOT_BETTER) for name, one in found.items()}
    stands = ["undecided" if part == "refuted" and not more[name] else part for name, part in parts.items()]
    together = stats.together(stands)
    return "undecided" if together == "reproduced" and blind(found) else together


def blind(found: Mapping[str, stats.Interval]) -> list[str]:
    """The arms of which a gain of the margin could not be told from none."""
    return [name for name, one in found.items() if one.half95 > MARGIN]


def sentence(found: Mapping[str, stats.Interval]) -> str:
    """The arm that gains most, those that stay in question, and those that are refuted."""
    label = {name: COMPARISON.arm(name).label for name in found}
    best = min(found, key=lambda name: found[name].mean)
    more = [label[name] for name, is_more in gains_more(found).items() if is_more]
    crossing = [label[name] for name, one in found.items() if one.low < -MARGIN and label[name] not in more]
    said = (
        f"Of {len(found)} arms {label[best]} has the lowest test loss, {found[best].mean:+.3f} nats per token against "
        f"plain LoRA (95 % interval {found[best].low:+.3f} to {found[best].high:+.3f}; margin {MARGIN:g})"
    )
    said += f"; beyond the margin after Holm's correction: {', '.join(more)}" if more else ""
    said += f"; not decided: {', '.join(crossing)}" if crossing else ""
    dull = [label[name] for name in blind(found)]
    return said + (f"; wider than the margin: {', '.join(dull)}." if dull else ".")


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses, sweeps and sizes of all arms, their differences to plain LoRA, and how many differ from it."""
    out = COMPARISON.quantities(store, [(name, "lora") for name in FAMILY])
    with suppress(Missing):
        out["differ"] = COMPARISON.differing(FAMILY, "lora", store, "arms")
    return out


def verdict_over(names: Sequence[str], store: Store) -> Verdict:
    """The rule for a family of arms."""
    found = differences(names, store)
    ordered = sorted(found, key=lambda name: found[name].mean)
    named = tuple(f"{name}_minus_lora_loss" for name in ordered)
    judged = (  # to be borne out an arm's interval must be as narrow as `blind` asks, too
        Judged(one, (max(-MARGIN, one.mean - MARGIN), math.inf), (-MARGIN, math.inf), refuting=0.05 / len(found))
        for one in found.values()
    )
    return Verdict(outcome(found), sentence(found), named, tuple(judged))


for _study, _names in {"beyond_lora": FAMILY, "beyond_lora_new": NEW}.items():
    study(_study, COMPARISON.runs, quantities)(lambda store, names=_names: verdict_over(names, store))
