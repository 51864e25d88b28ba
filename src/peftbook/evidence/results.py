"""Records to named quantities and tables: what pages, deck, scoreboard and studio read."""

from __future__ import annotations

import math
import re
import statistics
from collections import UserDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import TypeAdapter

from peftbook.core import specs
from peftbook.core.canonical import Spec
from peftbook.core.errors import InputError
from peftbook.core.records import Missing, Record, Store, default_store, load_record
from peftbook.core.tracking import record_reads
from peftbook.evidence.cache import cached_result
from peftbook.studies import NAMES, Quantity, Study, Verdict, gathered, get_study, module_of

OUTCOMES = (
    "reproduced", "equivalent", "refuted", "fails in this regime", "direction only", "undecided", "measured",
    "not testable here", "not yet run",
)  # fmt: skip
SAID = ("rank", "length", "width")  # of a method, always; other fields where they are not the default
WORDS = {
    "shots": "{} examples in the prompt",
    "length": "{} virtual tokens",
    "train_examples": "{} examples",
    "stop": "stopped at {} of them",
}
HASH = re.compile("[0-9a-f]{64}")
QUANTITIES = TypeAdapter(Mapping[str, Quantity])
VERDICT = TypeAdapter(Verdict)
RUNS = TypeAdapter(list[tuple[str, str]])
NATS = "nats per token"
SHORT = {NATS: "nats", "×": "times"}  # units in a sentence
ROUND = 10  # per cent, from which on a change of perplexity is printed without decimals
LISTED = 4  # a setting with more values is counted


def quantities(store: Store | None = None) -> dict[str, Quantity]:
    """Every quantity of every study, named `study.quantity`."""
    found = {name: study_quantities(name, store or default_store()) for name in NAMES}
    return {f"{name}.{key}": value for name, known in found.items() for key, value in known.items()}


class Quantities(UserDict[str, Quantity]):
    """Named quantities; reading one records its runs as reads."""

    def __getitem__(self, name: str) -> Quantity:
        record_reads(self.data[name].runs)
        return self.data[name]


def study_quantities(name: str, store: Store) -> Mapping[str, Quantity]:
    """The cached quantities of one study. Studies of one module may share them."""
    measure = get_study(name).measure
    entry = f"{measure.__module__}.{measure.__qualname__}"
    result = cached_result(entry, lambda store: gathered(measure, [store]), measure.__module__, QUANTITIES, store)
    return Quantities(result.value)


def study_verdict(name: str, store: Store) -> Verdict:
    """The cached verdict of one study; its runs are recorded as reads each time."""
    result = cached_result(
        f"verdict of {name}", lambda store: get_study(name).verdict(store), module_of(name), VERDICT, store
    )
    record_reads(result.runs)
    return result.value


def study_runs(name: str, store: Store) -> list[tuple[str, str]]:
    """Each run of a study that is determined so far: its key there, and `cached`, `diverged` or `missing`.

    On a hit of the cache the study is not even loaded.
    """
    return cached_result(f"runs of {name}", partial(_states, name), module_of(name), RUNS, store).value


def _states(name: str, store: Store) -> list[tuple[str, str]]:
    """`study_runs`, computed."""
    states = []
    for run in get_study(name).runs(store):
        record = store.get(run)
        state = "missing" if record is None else "diverged" if record.failure else "cached"
        states.append((store.spec(run).key, state))
    return states


def quantity(name: str, store: Store | None = None) -> Quantity:
    """One quantity by `study.quantity`. Raises InputError that says which command makes a missing one."""
    study, dot, key = name.partition(".")
    if not dot:
        example = "'study.quantity', for example 'methods.lora_loss'"
        raise InputError(f"Quantity {name!r} has no study: write it as {example}.")
    found = study_quantities(get_study(study).name, store or default_store())
    if key not in found:
        if missing := get_study(study).missing(store or default_store()):
            raise Missing(missing[0], f"Quantity {name!r} has no record yet: run `{run_command(study)}`.")
        near = ", ".join(sorted(found)[:8])
        raise InputError(f"Study {study!r} has no quantity {key!r}: it has {near}, …")
    return found[key]


def run_command(study: str) -> str:
    """The command that computes what a study lacks."""
    return f"peftbook run {study}"


def command_for(missing: Missing, store: Store) -> str:
    """The command that computes a missing run: that of the first study that includes it."""
    key = store.spec(missing.run).key
    for name in NAMES:
        if any(key == known for known, _ in study_runs(name, store)):
            return run_command(name)
    return f"peftbook run --key {missing.run.key[:12]}"


def format_value(value: float, digits: int, unit: str = "") -> str:
    """A number for people: thousands separated, `digits` decimals; digits = −n means n significant digits.

    Bytes are printed in kB, MB or GB (powers of ten).
    """
    if unit == "bytes":
        power = min(3, int(math.log10(max(abs(value), 1)) // 3))
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
    number = f"{value:.{-digits}g}" if digits < 0 else f"{value:,.{digits}f}"
    if digits < 0 and "e" in number:
        mantissa, exponent = number.split("e")
        number = f"{mantissa} × 10^{int(exponent)}"
    number = number.replace("-", "−")
    return f"{number}{'' if unit == '%' else ' '}{unit}" if unit else number


def format_quantity(quantity: Quantity, *, interval: bool = True) -> str:
    """Value, interval in brackets where there is one, unit: `0.312 [0.291, 0.333]`."""
    if quantity.low is None or quantity.high is None or not interval:
        return format_value(quantity.value, quantity.digits, quantity.unit)
    low, high = (format_value(end, quantity.digits) for end in (quantity.low, quantity.high))
    text = f"{format_value(quantity.value, quantity.digits)} [{low}, {high}]"
    return f"{text} {quantity.unit}" if quantity.unit else text


def format_bound(quantity: Quantity) -> str:
    """The interval in words, of nats in per cent too: `0.02 to 0.04 nats (2.0 to 4.1 % perplexity)`."""
    ends = [end for end in (quantity.low, quantity.high) if end is not None and math.isfinite(end)]
    ends = ends if len(ends) == 2 else [quantity.value]
    said = f"{_span(ends, quantity.digits)} {SHORT.get(quantity.unit, quantity.unit)}".strip()
    if quantity.unit == NATS:
        changes = [100 * math.expm1(end) for end in ends]
        said += f" ({_span(changes, 0 if max(map(abs, changes)) >= ROUND else 1)} % perplexity)"
    return said


def _span(ends: list[float], digits: int) -> str:
    """`0.1 to 0.2`, or `−0.1 to +0.2` where the ends differ in sign."""
    sign = "+" if ends[0] < 0 < ends[-1] else ""
    return " to ".join([*(format_value(end, digits) for end in ends[:-1]), sign + format_value(ends[-1], digits)])


@dataclass(frozen=True)
class Claim:
    """A study's claim and what the records at hand say about it.

    effect: the first quantity that the verdict names, `name` its name; None until it is known.
    runs, missing: how many runs are determined, and how many of them have no record.  core_hours: of the missing ones,
    each as long as those at hand took on average; None where none is at hand.
    """

    study: Study
    verdict: Verdict
    name: str
    effect: Quantity | None
    runs: int
    missing: int
    core_hours: float | None = None

    @property
    def missing_runs(self) -> str:
        """The missing runs in words, with their hours where these are known."""
        hours = self.core_hours
        return f"{self.missing} of {self.runs} runs are missing" + (
            "" if hours is None else f", {hours:.1f} core-hours if they take as long as those made"
        )


def claims(store: Store | None = None) -> list[Claim]:
    """Every study's claim with its verdict, in the order of worth (`studies.NAMES`)."""
    where = store or default_store()
    return [claim(name, where) for name in NAMES]


def claim(name: str, store: Store) -> Claim:
    """The claim of one study."""
    study, verdict, found = get_study(name), study_verdict(name, store), study_quantities(name, store)
    named = next((one for one in verdict.quantities if one in found), "")
    states = study_runs(name, store)
    missing = sum(state == "missing" for _, state in states)
    hours = None
    if missing:
        paths = [store.path(key) for key, state in states if state != "missing"]
        made = [seconds for path in paths if path and (seconds := core_seconds(load_record(path))) is not None]
        hours = missing * statistics.fmean(made) / 3600 if made else None
    return Claim(study, verdict, named, found.get(named), len(states), missing, hours)


def core_seconds(record: Record) -> float | None:
    """Core-seconds of a run: wall-clock time × threads, inflated by other work beside it; None if unknown."""
    if record.wall_seconds is None:
        return None
    return record.wall_seconds * int(record.provenance.get("threads") or 1)


def count_verdicts(claims: list[Claim], own: bool = False, others: bool = False) -> dict[str, int]:
    """How many claims of papers have each outcome, the decided ones first; or of the book's own claims and tools.

    others: of claims, whosever they are, that runs of others decide, which count in neither. Studies that measure and
    put no claim to the test count nowhere.
    """
    judged = [one for one in claims if one.study.others == others and not one.study.measures]
    said = [one.verdict.outcome for one in judged if others or one.study.own == own]
    return {outcome: said.count(outcome) for outcome in (*OUTCOMES, *said) if outcome in said}


COMPUTED = {"fp32": "float32", "fp16": "float16"}  # said of a run; bfloat16 is the usual type


def describe(spec: specs.Run | specs.Probe) -> str:
    """What a run or a probe is, in one line: `lora on e2e, rank 16, rate 0.0004, 136,000 tokens, seed 0, test`."""
    if isinstance(spec, specs.Probe):
        parts = [spec.measure.rpartition(".")[2].replace("_", " ")]
        parts += [_setting(name, value) for name, value in spec.settings.items()]
        if len(spec.runs) == 1:
            return ", ".join([*parts, f"of {describe(spec.runs[0])}"])
        parts += [f"over {len(spec.runs)} runs"] if spec.runs else []
    else:
        parts = [f"{spec.method.full_kind} on {spec.task.name}", *_unusual(spec.method, ("kind", "name", "version"))]
        if spec.budget is not None:
            parts += [f"rate {spec.budget.learning_rate:g}", f"{spec.budget.tokens:,} tokens"]
            parts += _unusual(spec.budget, ("tokens", "learning_rate"))
        parts += [COMPUTED[spec.dtype]] if spec.dtype in COMPUTED else []
        parts += [f"from {spec.start[:12]}"] * bool(spec.start)
        parts += ["weights in bfloat16"] * (spec.weights == "bf16") + ["checkpointing"] * spec.checkpointing
    parts += [f"model {spec.model.name}"] if spec.model.name != specs.EMBEDDED_MODEL else []
    parts.append(f"seed {spec.seed}")
    if spec.purpose == "timing":
        parts.append("timing")
    elif isinstance(spec, specs.Run):
        parts.append(spec.evaluation.split)
    return ", ".join([*parts, spec.platform] if spec.platform != "cpu" else parts)


def _unusual(spec: Spec, known: tuple[str, ...]) -> Iterator[str]:
    """The fields that tell this spec from the default one of its class."""
    for name, value in spec:
        if name not in known and (name in SAID or value != type(spec).model_fields[name].default):
            yield WORDS[name].format(_plain(value)) if name in WORDS else _setting(name, value)


def _setting(name: str, value: object) -> str:
    """One field in words."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if isinstance(value, tuple):
        return f"{len(value)} {words}" if len(value) > LISTED else f"{words} {'+'.join(map(_plain, value))}"
    return f"{words} {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value[:12] if isinstance(value, str) and HASH.fullmatch(value) else str(value)
