"""Cautions: what the reader's rows do not carry, in words; `recipe`, `train`, `compare` and the studio say the same."""

from __future__ import annotations

from peftbook.tasks.files import TableFindings

FEW_ROWS = 200  # of training; below, a few examples in the prompt are the thing to try first


def cautions(seen: TableFindings, instruction: str) -> list[tuple[str, str]]:
    """Sentences about rows, each with its kind: info, good or warn. instruction: the user turn, with `{input}`."""
    if not seen.splits:
        return []
    compared, test, train = seen.compared, seen.splits["test"], seen.splits["train"]
    said = [
        (instruction == "{input}" and not seen.told,
         "The model is told nothing but the input, so that a tuned model is compared with one that does not know the "
         "task: say what to do in the instruction, as in “Summarise this: {{input}}”.", "warn"),
        (seen.unused, "“{}” is not used, the chosen answers alone are. The stage that learns from both is DPO, whose "
         "script `peftbook recipe --stage dpo` writes.", "warn"),
        (seen.cut, "{:,} chats go on after their last answer: what follows it is left out.", "warn"),
        (seen.several, "{:,} rows are chats of several turns, kept as turns: the last answer is the target, the turns "
         "before it are the prompt.", "info"),
        (train < FEW_ROWS and train, "{:,} training rows are few: solved examples in the prompt may do as well.",
         "warn"),
        (seen.duplicates, "{:,} rows repeat another's input and target; they always share a split.", "warn"),
        (seen.conflicting,
         "{:,} rows have an input that occurs with another target too: no model can answer both rightly.", "warn"),
        (seen.near_duplicates, leakage(seen), "warn"),
        (seen.copies, "{:,} rows nearly repeat the input of another and are left out.", "info"),
        (compared if not seen.near_duplicates else 0,
         "No leakage found: none of {:,} test inputs nearly repeats a training row.", "good"),
        (seen.labels, "The targets look like {:,} labels: decide by exact match.", "info"),
        (0 if seen.labels else seen.shared_targets,
         f"{{:,}} of {test:,} test targets also occur in training: a shortcut for free text.",
         "info"),
    ]  # fmt: skip
    return [(sentence.format(count), kind) for count, sentence, kind in said if count]


def leakage(seen: TableFindings) -> str:
    """How many test rows are nearly training rows, and what to do, in a sentence."""
    return (
        f"Leakage: {seen.near_duplicates:,} of {seen.compared:,} test inputs are nearly those of a training row, so "
        "scores will flatter every method: set near copies to together, in one split, or to out."
    )
