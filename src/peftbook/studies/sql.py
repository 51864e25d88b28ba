"""SQL: what do eight virtual tokens reach, beside five solved examples and LoRA, when queries are executed?

Written before the runs. The prompt has the length of the first of the two notebooks that this book grew from, its
start is text, and its rows are not cut. Both trained arms have four learning rates, a factor of 4 apart, judged on
validation loss with one seed and extended where the best lies at an edge; the chosen rate is confirmed on three fresh
seeds. Every answer to the questions about the test tables, which no training row is about, is executed in SQLite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook.core.records import Store
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.untuned import Untuned
from peftbook.studies import Quantity, Verdict, margins, study
from peftbook.studies.benchmark import PROMPT_RATES
from peftbook.studies.standard import rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide

MARGIN = margins.ANSWERS
TEXT = "Write the SQL query that answers the question."
COMPARISON = TunedComparison(
    task="sql",
    tokens=48_000,
    arms=(
        Arm("untuned", "Untuned", Untuned()),
        Arm("fewshot", "Five examples in the prompt", Untuned(shots=5)),
        Arm("lora", "LoRA", LoRA(), rates(-2, 4, 2), 2e-4),
        Arm(
            "prompt", "Prompt tuning, 8 tokens", PromptTuning(length=8, init="text", init_text=TEXT), PROMPT_RATES, 0.3
        ),
    ),
    factor=4,
    test_examples=300,
    generate=300,
    max_new_tokens=48,
)
PAIRS = (("prompt", "untuned"), ("prompt", "fewshot"), ("lora", "fewshot"), ("lora", "prompt"))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Scores of every arm and paired differences."""
    return COMPARISON.quantities(store, PAIRS)


def answers_verdict(first: str, second: str, what: str, store: Store) -> Verdict:
    """Does one arm answer more of the questions than another?"""
    found = COMPARISON.difference(first, second, "execution_match", store)
    name = f"{first}_minus_{second}_execution_match"
    return decide(found, MARGIN, (0.0, math.inf), what, name, "of the questions")


@study("sql_prompt", COMPARISON.runs, quantities)
def prompt_verdict(store: Store) -> Verdict:
    """Does the tuned prompt answer more of the questions than five examples do?"""
    what = "The share of questions that the tuned prompt answers minus that of five solved examples"
    return answers_verdict("prompt", "fewshot", what, store)


@study("sql_lora", COMPARISON.runs, quantities)
def lora_verdict(store: Store) -> Verdict:
    """Does LoRA answer more of the questions than the tuned prompt?"""
    what = "The share of questions that LoRA answers minus that of the tuned prompt"
    return answers_verdict("lora", "prompt", what, store)
