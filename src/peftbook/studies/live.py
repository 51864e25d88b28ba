"""The training that a page repeats: what does PyTorch's loss do on the same batches, from the same start?

Written before the runs. The small Llama with its weights as the page carries them, the task contact, whose rows are
short enough for a browser (the longest has 57 tokens, the shortest question of the SQL task 111) and whose test rows
are worded as no training row is, four rows a step, a hundred steps, float32. Five methods, three rates a factor of 4
apart, three seeds. The page has the same rows in the same order and draws the same A; its curve lies over the one
recorded here.

No claim is on trial. That the page's arithmetic is PyTorch's is a test of every build (tests/test_live.py): at each
method's lowest rate the first ten losses agree within 1e-4. What a page says after a training of any rate is its rule:
the first ten losses agree within FIRST_MARGIN, and the means of the last ten within LAST_MARGIN, since rounding grows
along a training and with the rate. Adam's first steps take little more than a gradient's sign: with prompt tuning at
rate 0.04 and seed 1 PyTorch's second loss in float32 is 7e-5 from its own in float64, by one sign in 5,120.

The page begins with LoRA at a rate and a number of steps that the validation rows chose: of CHOICES, trained with
CHOICE_SEEDS, which the page does not have, the one with the most right answers, and of equals the one with fewer steps.
Its records have five seeds, and the answers to four messages by somebody who had seen the task's sentence alone.

Before the task was chosen, LoRA was tried on four tasks with rows that an early form of the builder made: at 2e-3 with
seed 98 (and, at 150 steps, with seeds 1 to 5) it read contact's validation rows, and 25 messages that are not the
page's, nearly always right; a mood and a weekday much less often, a number that is to be copied never. Since then the
rows have more formats, more sentences, and a test split; nothing was trained with them. Batch and LORA_RATES are those
of the page's first task, tickets, chosen with seed 99.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence import comparison
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.standard import probe_of, training
from peftbook.tasks import test_groups

TASK = "contact"
SEEDS = (1, 2, 3)
BATCH = 4
LENGTHS = {100: 14_816, 150: 22_224, 200: 29_632}  # steps → tokens that take as many, or a few more
ROWS = 60  # rows of the test and of the validation split, all there are
LIMIT = 6  # new tokens of an answer
ENDS = 10  # steps at either end of a training that a page compares
FIRST_MARGIN = 1e-3  # nats per token, of each of the first losses
LAST_MARGIN = margins.LOSS  # of the mean of the last ones
PROMPT = 20  # virtual tokens
MESSAGES_RIGHT = 3  # of four, with each seed of the default


@dataclass(frozen=True)
class PageMethod:
    """A method on the page.

    base: the weights it starts from, see `training.live_weights`.  rates: the middle one first.
    """

    label: str
    method: Method
    rates: tuple[float, ...]
    base: str = "rows"


DEFAULT_SEEDS = (1, 2, 3, 4, 5)
CHOICE_SEEDS = (98, 97)
CHOICES = tuple((steps, rate) for steps in LENGTHS for rate in (1e-3, 2e-3, 4e-3))
LORA_RATES = (2e-3, 5e-4, 8e-3)
ARMS = {
    "lora": PageMethod("LoRA", LoRA(), LORA_RATES),
    "full": PageMethod("Full fine-tuning", Full(), (4e-4, 1e-4, 1.6e-3)),
    "qlora": PageMethod("QLoRA", LoRA(), LORA_RATES, base="blocks"),
    "prompt": PageMethod("Prompt tuning", PromptTuning(length=PROMPT), (0.02, 0.005, 0.08)),
    "ia3": PageMethod("(IA)³", IA3(), (0.05, 0.0125, 0.2)),
}


def messages() -> list[dict[str, str]]:
    """The messages that a page shows: text and label."""
    return tomllib.loads((DATA / "messages.toml").read_text(encoding="utf-8"))["message"]


def budget(rate: float, steps: int = 100) -> specs.Budget:
    """As many steps of four rows, one of LENGTHS."""
    return specs.Budget(tokens=LENGTHS[steps], batch_size=BATCH, learning_rate=rate)


def probe(
    name: str,
    rate: float,
    seed: int,
    steps: int = 100,
    split: Literal["validation", "test"] = "test",
    asked: bool = False,
) -> specs.Probe:
    """One training over the page's weights.

    split: whose rows are asked.  asked: whether the messages are, too.
    """
    arm = ARMS[name]
    run = training(
        TASK, arm.method, LENGTHS[steps], rate, seed, batch_size=BATCH, split=split, n_loss=ROWS, n_generate=ROWS,
        max_new_tokens=LIMIT, model=specs.SMALL_LLAMA, dtype="fp32",
    )  # fmt: skip
    settings: dict[str, Any] = {"base": arm.base}
    if asked:
        settings["asked"] = tuple(one["text"] for one in messages())
    return probe_of("live.trained", run, **settings)


def choice_probes(steps: int, rate: float) -> list[specs.Probe]:
    """The trainings of LoRA that say what a rate and a number of steps are worth on validation rows."""
    return [probe("lora", rate, seed, steps, "validation") for seed in CHOICE_SEEDS]


def choices(store: Store) -> dict[tuple[int, float], float]:
    """Steps and rate → the share of validation rows that LoRA then answers right. Raises Missing."""
    records = {choice: store.need_all(choice_probes(*choice)) for choice in CHOICES}
    return {
        choice: fmean(float(one.measurements["exact_match"] or 0) for one in made) for choice, made in records.items()
    }


def default(store: Store) -> tuple[int, float]:
    """Steps and rate of the LoRA that a page begins with. Raises Missing."""
    return max(CHOICES, key=choices(store).__getitem__)  # the first of equals, which has fewer steps


def default_probes(store: Store) -> list[specs.Probe]:
    """The trainings of the default, by seed. Raises Missing."""
    steps, rate = default(store)
    return [probe("lora", rate, seed, steps, asked=True) for seed in DEFAULT_SEEDS]


def runs(store: Store) -> list[specs.Probe]:
    """The choice and what was chosen first; then the middle rate of every method, seed by seed, and the other rates."""
    chosen = [each for choice in CHOICES for each in choice_probes(*choice)]
    with suppress(Missing):
        chosen += default_probes(store)
    return chosen + [
        probe(name, arm.rates[which], seed) for which in range(3) for name, arm in ARMS.items() for seed in SEEDS
    ]


records_of = by_seed(probe, SEEDS)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Of each method at its middle rate, and of the default: test loss, right answers, numbers trained."""

    def arm(name: str) -> dict[str, Quantity]:
        if name == "default":
            records = store.need_all(default_probes(store))
            return arm_quantities(name, records) | {"default_messages": messages_right(records)}
        return arm_quantities(name, records_of(name, ARMS[name].rates[0], store))

    return gathered(arm, (*ARMS, "default"))


def messages_right(records: list[Record]) -> Quantity:
    """Answers to the shown messages that are right after training, of all records together."""
    labels = [one["label"] for one in messages()]
    after = [record.per_example["asked_after"] for record in records]
    right = sum(answer == label for answers in after for answer, label in zip(answers, labels, strict=True))
    return Quantity(right, f"of {len(after) * len(labels)} answers", comparison.keys_of(records), digits=0)


def arm_quantities(name: str, records: list[Record]) -> dict[str, Quantity]:
    """Of one method's records."""
    keys, groups = comparison.keys_of(records), test_groups(TASK, ROWS)
    loss, right = (comparison.score(records, column, groups) for column in ("loss_nats", "exact_match"))
    trained = float(records[0].measurements["trainable_parameters"] or 0)
    return {
        f"{name}_test_loss": Quantity.of(loss, "nats per token", keys),
        f"{name}_right": Quantity.of(right, "of the answers", keys, 2, among=(0, 1)),
        f"{name}_trained": Quantity(trained, "parameters", keys, digits=0),
    }


@study("live", runs, quantities)
def verdict(store: Store) -> Verdict:
    """What the recorded trainings came to; no claim is on trial."""
    made = quantities(store)
    for name in ARMS:
        records_of(name, ARMS[name].rates[0], store)
    said = "; ".join(
        f"{arm.label} {made[f'{name}_test_loss'].value:.2f} nats per token and {made[f'{name}_right'].value:.0%} right"
        for name, arm in ARMS.items()
    )
    return Verdict(
        "measured", f"On test rows, at the middle rate: {said}.", tuple(f"{name}_test_loss" for name in ARMS)
    )
