"""Does tuning recover what 4 bits lose?

Written before the runs. On a small Llama trained in float32 (whose weights never lay on a 4-bit grid) and, as a
separate row, on SmolLM2 (whose weights come from one): LoRA on the 16-bit base and on bases quantised to NF4, FP4 and
INT4, and NF4 with the LoftQ and PiSSA starts; three rates a factor of 4 apart for each arm, one seed, extended at the
edges; three fresh seeds at the chosen rate. The gap before tuning is that of the quantised base alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook import specs
from peftbook.records import Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.sweep import Arm, Comparison, decide

__all__ = ["COMPARISONS", "STUDIES"]

MARGIN = 0.05  # nats per token
QUANTISED = ("nf4", "fp4", "int4")


def arms(centre: int, variants: bool) -> tuple[Arm, ...]:
    """Untuned and tuned, on 16-bit and quantised bases."""
    grid = rates(centre - 2, centre + 2, 2)
    started = (
        Arm("nf4_loftq", "NF4, LoftQ start", specs.QLoRA(init="loftq"), grid),
        Arm("nf4_pissa", "NF4, PiSSA start", specs.QLoRA(init="pissa"), grid),
    )
    return (
        Arm("before", "16 bit, untuned", specs.Untuned()),
        *(Arm(f"{q}_before", f"{q.upper()}, untuned", specs.Untuned(quant=q)) for q in QUANTISED),  # type: ignore[arg-type]
        Arm("lora", "16 bit, LoRA", specs.LoRA(), grid),
        *(Arm(q, f"{q.upper()}, LoRA", specs.QLoRA(quant=q), grid) for q in QUANTISED),  # type: ignore[arg-type]
        *(started if variants else ()),
    )


COMPARISONS = {
    "small": Comparison(
        task="e2e", tokens=2 * E2E_TOKENS, arms=arms(3, True), factor=4,
        model=specs.Model(name=specs.SMALL_MODEL, revision=specs.SMALL_REVISION),
    ),
    "smollm2": Comparison(task="e2e", tokens=E2E_TOKENS, arms=arms(2, False), factor=4),
}  # fmt: skip


def runs(store: Store) -> list[Run]:
    """The small model first: it decides."""
    return [run for comparison in COMPARISONS.values() for run in comparison.runs(store)]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Gaps to 16 bit before and after tuning, by model and type; gains of the corrected starts."""
    out: dict[str, Quantity] = {}
    for name, comparison in COMPARISONS.items():
        prefix = f"{name}_"
        out |= comparison.quantities(store, prefix)
        for quant in QUANTISED:
            out |= comparison.paired(f"{quant}_before", "before", store, prefix)
            out |= comparison.paired(quant, "lora", store, prefix)
    for start in ("nf4_loftq", "nf4_pissa"):
        out |= COMPARISONS["small"].paired(start, "nf4", store, "small_")
    return out


def recovery_verdict(store: Store) -> Verdict:
    """After tuning, is the NF4 gap to 16-bit LoRA within the margin?"""
    found = COMPARISONS["small"].difference("nf4", "lora", "loss_nats", store)
    return decide(
        found, 0.0, (-math.inf, MARGIN), "After tuning, the test loss on NF4 minus that on 16 bit",
        "small_nf4_minus_lora_loss", "nats per token",
    )  # fmt: skip


def start_verdict(store: Store) -> Verdict:
    """Does the LoftQ start end lower than the plain one?"""
    found = COMPARISONS["small"].difference("nf4_loftq", "nf4", "loss_nats", store)
    return decide(
        found, MARGIN, (-math.inf, 0.0), "Test loss of the LoftQ start minus the plain start, on NF4",
        "small_nf4_loftq_minus_nf4_loss", "nats per token",
    )  # fmt: skip


LIMITS = (
    "A Llama of a few million parameters decides; SmolLM2's weights come from a 4-bit file, so its rows are confounded "
    "and never pooled with it. LoftQ claims most of its gain at 2 bits, which is not tested."
)
STUDIES = {
    "recovery": Study(
        name="recovery",
        title="Does tuning recover the loss of 4-bit weights?",
        claim="LoRA on an NF4 base matches LoRA on a 16-bit base.",
        source="dettmers2023, Table 3",
        refuted_if=f"after tuning, the loss on NF4 is higher by more than {MARGIN} nats per token (the whole 95 % "
        "interval beyond the margin).",
        does_not_show=LIMITS,
        chapter="book/qlora",
        runs=runs,
        quantities=quantities,
        verdict=recovery_verdict,
    ),
    "loftq": Study(
        name="loftq",
        title="Does a start that corrects the quantisation error help?",
        claim="The LoftQ start gives a lower loss than the plain start on a 4-bit base.",
        source="li2023loftq, section 4",
        refuted_if=f"the LoftQ start ends higher by more than {MARGIN} nats per token (the whole 95 % "
        "interval beyond).",
        does_not_show=LIMITS,
        chapter="book/qlora",
        runs=runs,
        quantities=quantities,
        verdict=start_verdict,
    ),
}
