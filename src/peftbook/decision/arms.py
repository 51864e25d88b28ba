"""Arms: the records of one model with one method, and what the table shows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from peftbook import metrics, specs
from peftbook.decision.comparison import MEASURES, Measure, Row, Skewed
from peftbook.errors import InputError
from peftbook.evidence import stats
from peftbook.evidence.stats import Groups, Interval
from peftbook.records import Record

__all__ = ["Arm", "describe_row", "encoder_in_words", "group_records", "label_arms"]

SHARES = ("rouge1", "rouge2", "rougeL", "exact_match")  # measures that lie between 0 and 1


@dataclass
class Arm:
    """The records of one model with one method, by seed. columns: (seeds, examples) of the seeds that finished."""

    run: specs.Run
    records: dict[int, Record]
    columns: dict[str, list[list[float]]] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        """Whether a seed changes anything: not where nothing is trained and no examples are drawn."""
        return self.run.method.random

    @property
    def finished(self) -> dict[int, Record]:
        return {seed: one for seed, one in self.records.items() if not one.failure}

    @property
    def failure(self) -> str:
        """Why the arm is not compared: what is left of it after a failed seed is a choice of the lucky ones."""
        failed = [one.failure for one in self.records.values() if one.failure]
        return f"{len(failed)} of {len(self.records)} runs failed: {failed[0]}" if failed else ""

    @property
    def weights(self) -> list[float]:
        """Label tokens of the test examples."""
        return self.columns["label_tokens"][0]

    @property
    def base_parameters(self) -> int:
        """Parameters of the model without what was added to it; 0 where no record says."""
        added = self.run.method.efficient
        counts = [
            int(one.measurements.get("total_parameters") or 0)
            - added * int(one.measurements.get("trainable_parameters") or 0)
            for one in self.finished.values()
        ]
        return max(counts, default=0)

    def scores(self, column: str, seeds: Sequence[int]) -> list[list[float]]:
        """(seeds, examples); the one run of a method without randomness stands for every seed."""
        if not self.random:
            return [self.columns[column][0]] * len(seeds)
        order = list(self.finished)
        return [self.columns[column][order.index(seed)] for seed in seeds]


def group_records(records: Sequence[Record]) -> list[Arm]:
    """The records by everything but the seed. Raises InputError where they cannot be compared."""
    if not records:
        raise InputError("There is no finished run to compare yet: wait for the first one.")
    arms: dict[str, Arm] = {}
    first: specs.Run | None = None
    for record in records:
        run = record.spec
        if not isinstance(run, specs.Run) or run.purpose != "quality":
            raise InputError(f"Record {record.short_key} is no quality run: compare trained and untuned models only.")
        first = first or run
        if (run.task, run.evaluation) != (first.task, first.evaluation):
            raise InputError(
                f"Runs {first.key[:12]} and {run.key[:12]} were not scored on the same test examples in the same way: "
                "compare the runs of one plan."
            )
        arms.setdefault(run.model_copy(update={"seed": 0}).key, Arm(run, {})).records[run.seed] = record
    for arm in arms.values():
        arm.records = dict(sorted(arm.records.items()))
        done = list(arm.finished.values())
        for name in ("label_tokens", *(one.column for one in MEASURES.values())):
            if done and all(name in one.per_example for one in done):
                arm.columns[name] = [[float(value) for value in one.per_example[name]] for one in done]
    return list(arms.values())


def describe_row(label: str, arm: Arm, measures: Sequence[Measure], base_parameters: int, groups: Groups = ()) -> Row:
    """The row without its differences."""
    done = list(arm.finished.values())

    def measured(name: str) -> list[float]:
        return [float(one.measurements.get(name) or 0) for one in done]

    trainable = int(max(measured("trainable_parameters"), default=0))
    stored = int(max(measured("adapter_bytes"), default=0))
    seconds = measured("train_seconds")
    return Row(
        label=label,
        model=model_label(arm.run.model.name),
        method=arm.run.method,
        run=next(iter(arm.records.values())).spec,  # type: ignore[arg-type]
        seeds=tuple(arm.records) if arm.random else (),
        scores={one.name: score_interval(arm, one, groups) for one in measures if one.column in arm.columns},
        trainable_parameters=trainable,
        model_parameters=base_parameters,
        adapter_bytes=stored or 4 * trainable,  # what is trained is saved in float32
        train_seconds=math.fsum(seconds) / len(seconds) if seconds else 0.0,
        peak_memory_bytes=int(max(measured("peak_memory_bytes"), default=0)),
        runs=tuple(one.key for one in arm.records.values()),
        failure=arm.failure,
    )


def score_interval(arm: Arm, measure: Measure, groups: Groups = ()) -> Interval:
    """The book's interval of an arm's score, within what such a score can be; of perplexity exp of the loss's."""
    table = arm.columns[measure.column]
    weights = arm.weights if measure.column == "loss_nats" else None
    one = stats.score_interval(table, weights, groups[: len(table[0])])
    if measure.name in SHARES and (one.low < 0 or one.high > 1):
        return Skewed(**vars(one), ends=(max(0.0, one.low), min(1.0, one.high)))
    if measure.name != "perplexity":
        return one
    mean, low, high = (metrics.perplexity([nats], [1]) for nats in (one.mean, one.low, one.high))
    half = (high - low) / 2
    return Skewed(mean, half, math.nan, math.nan, math.nan, one.seeds, one.examples, one.groups, ends=(low, high))


# --- names -----------------------------------------------------------------------------------------------------


def model_label(name: str) -> str:
    """A model's name; without the folders it lies in, where it is a path of this machine."""
    is_path = name[:1] in ("/", "~", ".") or name[1:3] == ":\\"
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else name


def label_arms(arms: Sequence[Arm]) -> list[str]:
    """A label for each, no two alike: method, model where there are several, and what tells equal ones apart."""
    several = len({arm.run.model for arm in arms}) > 1
    plain = [arm.run.method.label + (f" · {model_label(arm.run.model.name)}" if several else "") for arm in arms]
    settings = [settings_of(arm.run) for arm in arms]
    out = []
    for label, own in zip(plain, settings, strict=True):
        alike = [other for name, other in zip(plain, settings, strict=True) if name == label]
        telling = [name for name in own if len({str(other.get(name)) for other in alike}) > 1]
        said = ", ".join(f"{name} {own[name]:g}" if isinstance(own[name], float) else f"{name} {own[name]}"
                         for name in telling)  # fmt: skip
        out.append(f"{label} ({said})" if said else label)
    return out


def settings_of(run: specs.Run) -> dict[str, object]:
    """What may tell two rows apart, by name in words."""
    found: dict[str, object] = {}
    for name, value in run.model_dump(mode="json", exclude={"seed", "task", "evaluation"}).items():
        parts = value if isinstance(value, dict) else {name: value}
        found |= {(f"model {key}" if name == "model" else key).replace("_", " "): one for key, one in parts.items()}
    return found


def encoder_in_words(records: Sequence[Record]) -> str:
    """BERTScore's encoder; empty where it was not computed. Raises InputError where the runs used several."""
    known = {str(sorted(info.items())): info for one in records if (info := one.metrics_info.get("bertscore"))}
    if len(known) > 1:
        names = ", ".join(sorted(str(info.get("name")) for info in known.values()))
        raise InputError(f"BERTScore was computed with several encoders ({names}): their scores cannot be compared.")
    for info in known.values():
        scale = "rescaled" if info.get("rescaled") else "not rescaled"
        return f"{info.get('name')}, layer {info.get('layer')}, {scale}, sha256 {str(info.get('sha256'))[:12]}"
    return ""
