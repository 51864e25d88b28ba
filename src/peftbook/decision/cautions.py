"""What a comparison cannot tell, said beside it."""

from __future__ import annotations

from peftbook.decision.recommendation import listed
from peftbook.decision.terms import MEASURES, Comparison
from peftbook.evidence.stats import FEWEST_GROUPS

ROUGH_EXAMPLES = 50  # below, intervals are called rough


RATES = {  # by `tuned`
    True: "Learning rates were raced on the validation rows, with one seed; sizes are presets: a method may lose "
    "because its size suits it less.",
    None: "Some learning rates were raced on the validation rows, with one seed; the others, and sizes, are presets: "
    "a method may lose because its settings suit it less.",
    False: "Learning rates and sizes are presets, not tuned on this data: a method may lose because its settings "
    "suit it less.",
}


def list_cautions(found: Comparison, tuned: bool | None = False) -> tuple[str, ...]:
    """A sentence or two for each; the most important first. tuned: as of `decision.compare`."""
    out = []
    if found.seeds == 1 and any(not row.untuned for row in found.rows):
        out.append(
            "Each method was trained once. The intervals cover the choice of test examples, not the luck of "
            "initialisation and data order, which in the book's own runs was often the larger part: train with three "
            "seeds or more before you rely on a small lead."
        )
    if found.test_examples < ROUGH_EXAMPLES:
        out.append(f"There are only {found.test_examples} test examples: every interval is rough.")
    if groups := max((one.groups for row in found.contest for one in row.scores.values()), default=0):
        out.append(
            f"The {found.test_examples} test examples form {groups} group{'s' * (groups > 1)}. Examples of one group, "
            "with the same input or nearly the same, resemble each other, so every interval is over groups, not over "
            "single examples"
            + (f"; fewer than {FEWEST_GROUPS} show a direction and decide nothing." if groups < FEWEST_GROUPS else ".")
        )
    if failed := [row.label for row in found.rows if row.failure]:
        out.append(f"Not compared, because a run failed: {listed(failed)}.")
    out += disagreements(found)
    rouge = [row.scores["rougeL"].mean for row in found.contest if "rougeL" in row.scores]
    if rouge and max(rouge) < MEASURES["rougeL"].margin:
        out.append("No row's texts share words with their targets (ROUGE-L is near 0): a lead among them means little.")
    out.append(RATES[tuned])
    out.append(
        "The best of several scores is a little too good by selection. The intervals in the table are for one "
        "comparison each; what holds together, at the family-wise level, is which rows may be best and, by Holm's "
        "procedure, which of them beat the untuned model."
    )
    if any(one.name.startswith("rouge") for one in found.measures):
        out.append("ROUGE counts shared words. It does not see whether a text is true, or fit to be sent: read some.")
    if found.encoder:
        out.append(f"BERTScore depends on its encoder ({found.encoder}): do not hold it against other tables.")
    if len(found.hardware) > 1:
        out.append(f"Runs were made on different machines ({listed(found.hardware)}): do not compare their seconds.")
    elif found.hardware:
        out.append(f"Seconds and memory are of {listed(found.hardware)}, and of what else it was doing.")
    return tuple(out)


def disagreements(found: Comparison) -> list[str]:
    """Other measures by which a row is better than the recommended one, beyond its 95 % interval."""
    row = found.recommendation.row
    out = []
    for measure in found.measures if row is not None else ():
        better = []
        for other in found.contest if measure != found.measure else ():
            pair = found.pair(other.label, row.label) if row is not None else None
            one = pair.differences.get(measure.name) if pair else None
            if one is not None and measure.sign * one.mean > one.half95:
                better.append(other.label)
        if better and row is not None:
            out.append(f"{measure.label} orders them differently: by it {row.label} is behind {listed(better)}.")
    return out
