"""Does the byte model hold? Predicted and measured bytes of a training step, and what 4 bits cost in time.

Models with random weights. The open cases have two shapes, SmolLM2-135M's and, at 128 tokens, that of Llama-2-7B at
its full depth: one row, bfloat16 without autocast, fused attention, AdamW; adapters on all linear layers in the dtype
that a case names. The held-out cases have six published shapes of five families at their own widths and, but for
Mistral's, at their full depth; ways of training, rows, tokens, padding, attention and checkpointing are drawn for each
by name, and the hash of their names and settings (`memory_cases`) was committed before any case was measured. The
prediction is `peftbook.memory`'s; nothing of it is fitted to these runs.

tensors: the predicted peak against the most that torch's allocator held for tensors.  process: against the peak
memory of the process beyond what it held before the model was built; what libraries take, and blocks that the system's
allocator keeps, count as the model's error.

LoRA-FA: the peak of tensors with A frozen against LoRA's, at 512 tokens.

Time: LoRA on a bfloat16 base and QLoRA in one process, step by step in random order; three processes. Layers of the
7B's shape decide, since that is where QLoRA is used; the small shape is shown.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.core.specs import Model
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured, table
from peftbook.memory import Configuration
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.memory_cases import CASES, HALVES, LARGE, LARGE_CASES, SETUPS, SMALL, SMALL_CASES
from peftbook.studies.merging import MACHINE, log_ratio, ratio_quantity, said_ratio, timing

MARGIN = 0.10  # of the measured peak
MARGIN_TIME = margins.SHARE
MARGIN_FROZEN = margins.SHARE
REPEATS = (0, 1, 2)

# The model is made from the settings and the seed: no weights are loaded.
SCRATCH = Model(name="random-decoder", revision="made from settings and seed")

# name → shape, tokens, trials of a process; the first decides
TIMED = {
    "7b_layers": (replace(LARGE, layers=4, sliding=()), 128, 8),
    "135m_128": (SMALL, 128, 8),
    "135m_512": (SMALL, 512, 4),
}
CONTENDERS = ("lora", "qlora_single", "qlora")
LARGE_RIVALS, HALF = ("qlora_7b", "lora_7b"), 0.5
FROZEN = ("lora_fa_512", "lora_512")  # cases of the study of LoRA-FA


def predicted(one: Configuration) -> dict[str, float]:
    """The terms of a step's memory in bytes.

    weights, constants (of quantisation), adapter, moments; gradients of what is trained; kept between forward and
    backward; total: the peak.
    """
    step = one.step
    state = step.numbers(step.state)
    return {name: state.get(name, 0.0) for name in ("weights", "adapter", "moments")} | {
        "constants": state.get("quantisation constants", 0.0),
        "gradients": step.numbers({"gradients": step.gradients})["gradients"],
        "kept": sum(step.numbers(step.kept).values()),
        "total": step.peak().total,
    }


def probe(name: str, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that measures one case."""
    return timing("memory.peak", seed, machine, SCRATCH, configuration=CASES[name].text, trials=2)


def repeats(name: str) -> tuple[int, ...]:
    """Seeds of a case: three at the smallest shape; one at the others, where the process adds little to the tensors."""
    return REPEATS if name in SMALL_CASES else REPEATS[:1]


def runs(store: Store) -> list[specs.Probe]:
    """Every case once, the held-out ones first; then the repeats in turn."""
    order = [*HALVES["held-out"], *LARGE_CASES, *SMALL_CASES]
    return [probe(name, seed) for seed in REPEATS for name in order if seed in repeats(name)]


def records(name: str, store: Store) -> list[Record]:
    """The repeats of a case. Raises Missing."""
    return store.need_all(probe(name, seed) for seed in repeats(name))


def term_bytes(record: Record, term: str) -> float:
    """Bytes of a term in a record."""
    return float(record.measurements[f"{term}_bytes"] or 0)


def errors(name: str, found: list[Record], against: str) -> list[float]:
    """Predicted total over measured − 1 of every repeat. against: process_peak or tensor_peak."""
    total = predicted(CASES[name])["total"]
    return [total / term_bytes(record, against) - 1 for record in found]


def points(cases: Mapping[str, Configuration], store: Store, against: str) -> list[tuple[float, float]]:
    """(measured gigabytes, predicted / measured) of each case, in the median of its repeats."""
    found = []
    for name in cases:
        peak = median(term_bytes(record, against) for record in records(name, store))
        found.append((peak / 1e9, predicted(cases[name])["total"] / peak))
    return found


# predicted term → what is measured of it
MEASURED = {
    **{name: name for name in ("weights", "constants", "adapter", "gradients", "moments", "kept")},
    "total": "process_peak",
}


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Every predicted and every measured term of each case, the errors of the total, and the seconds of a step."""
    each = gathered(lambda name: case_quantities(name, records(name, store)), CASES)
    return each | gathered(lambda part: half_quantities(part, store), HALVES)


def case_quantities(name: str, found: list[Record]) -> dict[str, Quantity]:
    """Of one case."""
    out, keys = {}, keys_of(found)
    for term, value in predicted(CASES[name]).items():
        out[f"{name}_{term}_predicted"] = Quantity(value, "bytes", keys, note="computed from the shape")
    for term in (*MEASURED.values(), "tensor_peak", "process_rest"):
        middle = median(term_bytes(record, term) for record in found)
        out[f"{name}_{term}_measured"] = Quantity(middle, "bytes", keys, seeds=len(found))
    for against in ("process_peak", "tensor_peak"):
        values = [100 * error for error in errors(name, found, against)]
        out[f"{name}_{against}_error"] = spread(values, "%", keys, 1)
    return out | {f"{name}_step_seconds": spread(measured(found, "step_seconds"), "s", keys, 2)}


def half_quantities(part: str, store: Store) -> dict[str, Quantity]:
    """Of one half: the median error, the largest, and predicted over measured. Raises Missing."""
    known, out = {name: records(name, store) for name in HALVES[part]}, dict[str, Quantity]()
    keys = keys_of(*known.values())
    each = functools.partial(Quantity, runs=keys, n=len(known))
    for against in ("process_peak", "tensor_peak"):
        typical = [median(errors(name, found, against)) for name, found in known.items()]
        sizes = [100 * abs(error) for error in typical]
        stem, digits = f"{part.replace('-', '_')}_{against}", 1 if against == "process_peak" else 4
        out[f"{stem}_median_error"] = each(median(sizes), "%", digits=digits)
        out[f"{stem}_largest_error"] = each(max(sizes), "%", digits=digits)
    return out


def spread(values: list[float], unit: str, keys: tuple[str, ...], digits: int) -> Quantity:
    """Median and range of repeats; no range where there is one."""
    if len(values) == 1:
        return Quantity(values[0], unit, keys, seeds=1, digits=digits, note="one run")
    return Quantity.middle(values, unit, keys, "median and range of the repeats", seeds=len(values), digits=digits)


def decide(store: Store, against: str, what: str) -> Verdict:
    """Is the predicted total within the margin of a measured peak in every case?"""
    known = {name: records(name, store) for name in CASES}
    beyond = {name: [abs(one) > MARGIN for one in errors(name, found, against)] for name, found in known.items()}
    broken = sum(all(repeats) for repeats in beyond.values())
    outcome = "refuted" if broken else "undecided" if any(map(any, beyond.values())) else "reproduced"
    worst = max(known, key=lambda name: max(map(abs, errors(name, known[name], against))))
    share = max(errors(worst, known[worst], against), key=abs)
    sentence = (
        f"The predicted total misses the peak of {what} by more than {MARGIN:.0%} in {broken} of {len(CASES)} cases; "
        f"the largest error of a repeat is {100 * share:+.3g} % ({worst})."
    )
    return Verdict(outcome, sentence, (f"{worst}_{against}_error",))


@study("memory", runs, quantities)
def verdict(store: Store) -> Verdict:
    """The claim about tensors."""
    return decide(store, "tensor_peak", "torch's tensors")


@study("memory_process", runs, quantities)
def process_verdict(store: Store) -> Verdict:
    """The claim about the process."""
    return decide(store, "process_peak", "the process")


def large_runs(store: Store) -> list[specs.Probe]:
    """Both cases at Llama-2-7B's shape."""
    return [probe(name, 0) for name in LARGE_RIVALS]


def large_quantities(store: Store) -> Mapping[str, Quantity]:
    """Peaks of tensors and of the process, and QLoRA's tensors over LoRA's."""
    known, (small, large) = quantities(store), LARGE_RIVALS
    keys = keys_of(store.need_all(large_runs(store)))
    out = {
        f"{name}_{term}": known[f"{name}_{term}_measured"]
        for name in LARGE_RIVALS
        for term in ("tensor_peak", "process_peak")
    }
    ratio = out[f"{small}_tensor_peak"].value / out[f"{large}_tensor_peak"].value
    return {"qlora_over_lora_peak": Quantity(ratio, "×", keys, digits=2, note="bytes, counted")} | out


@study("qlora_7b_memory", large_runs, large_quantities)
def large_verdict(store: Store) -> Verdict:
    """Is the peak of QLoRA's tensors below half of LoRA's?"""
    known = large_quantities(store)
    ratio, (small, large) = known["qlora_over_lora_peak"].value, LARGE_RIVALS
    tensors, process = (
        [known[f"{name}_{term}"].value / 1e9 for name in (small, large)] for term in ("tensor_peak", "process_peak")
    )
    sentence = (
        f"A QLoRA step of Llama-2-7B's shape has {tensors[0]:.1f} GB of tensors at its peak, {ratio:.2f} times the "
        f"{tensors[1]:.1f} GB of a LoRA step over bfloat16 weights ({process[0]:.1f} and {process[1]:.1f} GB with the "
        "rest of the process)."
    )
    return Verdict("reproduced" if ratio < HALF else "refuted", sentence, ("qlora_over_lora_peak",))


def frozen_saving(store: Store) -> stats.Interval:
    """log(peak of LoRA-FA's tensors / that of LoRA's) at 512 tokens, paired by repeat. Raises Missing."""
    one, two = ([term_bytes(record, "tensor_peak") for record in records(name, store)] for name in FROZEN)
    return stats.seed_interval([math.log(a / b) for a, b in zip(one, two, strict=True)])


def frozen_quantities(store: Store) -> Mapping[str, Quantity]:
    """The ratio of the peaks, and what both keep between forward and backward."""
    found = frozen_saving(store)
    keys = keys_of(*(records(name, store) for name in FROZEN))
    out, known = {"lora_fa_over_lora_peak": replace(Quantity.ratio(found, keys), n=0)}, quantities(store)
    return out | {
        f"{name}_{term}": known[f"{name}_{term}_measured"] for name in FROZEN for term in ("kept", "tensor_peak")
    }


@study("lora_fa_memory", lambda store: [probe(name, seed) for seed in REPEATS for name in FROZEN], frozen_quantities)
def frozen_verdict(store: Store) -> Verdict:
    """Is the peak of LoRA-FA lower than LoRA's by more than the margin?"""
    found = frozen_saving(store)
    outcome = stats.judge(found, 0.0, (-math.inf, math.log(1 - MARGIN_FROZEN)))
    sentence = (
        f"At SmolLM2-135M's shape and 512 tokens {said_ratio('the tensors of LoRA-FA take', found)} the memory of "
        f"LoRA's at the peak; margin {MARGIN_FROZEN:.0%}."
    )
    return Verdict(outcome, sentence, ("lora_fa_over_lora_peak",))


def time_probe(name: str, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that times LoRA and QLoRA at one shape."""
    shape, tokens, trials = TIMED[name]
    texts = tuple(Configuration(shape, replace(SETUPS[one], seq=tokens)).text for one in CONTENDERS)
    return timing(
        "memory.step_time", seed, machine, SCRATCH, contenders=CONTENDERS, configurations=texts, trials=trials
    )


time_records = by_seed(time_probe, REPEATS)


def slowdown(found: list[Record], first: str, second: str = "lora") -> stats.Interval:
    """log(seconds of first / seconds of second)."""
    return log_ratio(table(found, f"{first}_seconds"), table(found, f"{second}_seconds"))


def time_quantities(store: Store) -> Mapping[str, Quantity]:
    """Median seconds of a step for every contender and shape, and QLoRA's time over LoRA's."""
    return gathered(lambda name: shape_quantities(name, time_records(name, store)), TIMED)


def shape_quantities(name: str, found: list[Record]) -> dict[str, Quantity]:
    """Of one shape."""
    out, keys, note = {}, keys_of(found), "median and range of the processes' medians"
    for contender in CONTENDERS:
        values = measured(found, f"{contender}_seconds")
        out[f"{contender}_{name}_seconds"] = Quantity.middle(
            values, "s", keys, note, seeds=len(values), n=TIMED[name][2]
        )
    for contender in CONTENDERS[1:]:
        out[f"{contender}_over_lora_{name}"] = ratio_quantity(slowdown(found, contender), keys)
    return out


@study(
    "quantised_step_time",
    lambda store: [time_probe(name, seed) for name in TIMED for seed in REPEATS],
    time_quantities,
    least=1 + MARGIN_TIME,
)
def time_verdict(store: Store) -> Verdict:
    """Is QLoRA's step slower than LoRA's by more than the margin in layers of the 7B's shape?"""
    name = next(iter(TIMED))
    interval = slowdown(time_records(name, store), "qlora")
    outcome = stats.judge(interval, 0.0, (math.log(1 + MARGIN_TIME), math.inf))
    shape, tokens, _ = TIMED[name]
    sentence = (
        f"In {shape.layers} layers of Llama-2-7B's shape at {tokens} tokens "
        f"{said_ratio('a step of QLoRA takes', interval)} that of LoRA on a bfloat16 base; margin {MARGIN_TIME:.0%}."
    )
    return Verdict(outcome, sentence, (f"qlora_over_lora_{name}",))
