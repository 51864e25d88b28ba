"""Rounds: every contestant in turn, each in a process of its own, and one row for what they took.

All train the same weights (one seeded adapter) on the same examples, each seen once; rounds are interleaved (A, B, C,
A, B, C), so that a slow spell of the machine hits all. One function, ours, computes the validation loss of all of them
after training: that is the check that the work was the same. Before the rounds each contestant tries what it leaves
open: both types, and its rounds are run in the faster one. One that takes too long for two steps is a row that says so.
Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.contestants import CONTESTANTS, PEERS, Contestant, named
from peftbook.core import specs
from peftbook.core.errors import InputError, need
from peftbook.core.records import write_atomically
from peftbook.methods import get
from peftbook.runtime.processes import Child

VALIDATION_EXAMPLES = 64
LAST_STEPS = 5  # the end of a loss curve is the mean of its last steps: single batches are noisy
TRIAL_STEPS = 2  # the first of which pays for preparations
IMPORTED = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))  # by children
TRIAL_SECONDS = 90  # a trial that takes longer is lost


def train_bench(
    steps: int = 40,
    methods: Sequence[str] = ("lora",),
    peers: bool | Sequence[str] = True,
    out: Path | None = None,
    *,
    rounds: int = 3,
    model: str = specs.EMBEDDED_MODEL,
    task: str = "docstrings",
    validation: int = VALIDATION_EXAMPLES,
    compute: Callable[[dict], dict] | None = None,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Measure every contestant on `steps` × 8 examples, `rounds` times in turn; one row for each method and contestant.

    peers: names from PEERS (True: all, False or empty: only ours).   out: also write the rows there as JSON.
    Speeds leave the first step out (see `speed`). A contestant that fails gets a row that says why.
    Raises InputError for unknown names, fewer than two steps, and when TRL is asked for but not installed.
    """
    chosen = pick(peers)
    check(steps, rounds, methods)
    results: dict[tuple[str, str], list[dict]] = {}
    trials: dict[tuple[str, str], dict[str, dict]] = {}
    shared: dict[str, Any] = {"model": model, "task": task, "validation": validation}
    for turn in range(-1, rounds):
        for method in methods:
            for contestant in chosen:
                name = method, contestant.name
                job = shared | {"contestant": contestant.name, "method": method}
                if turn < 0:
                    trials[name] = try_types(contestant, job, compute or run_process, report)
                    continue
                dtype = max(trials[name], key=lambda dtype: trial_speed(trials[name][dtype]))
                if trials[name][dtype].get("failure"):
                    results.setdefault(name, []).append(trials[name][dtype])
                    continue
                report(f"round {turn + 1} of {rounds}: {method}, {contestant.name} {dtype}")
                result = (compute or run_process)(job | {"steps": steps, "dtype": dtype})
                results.setdefault(name, []).append(result)
                report("    " + (result.get("failure") or f"{speed(result, 'real_tokens'):.0f} real tokens/s"))
    rows = [aggregate(*name, made) for name, made in results.items()]
    for row, tried in zip(rows, trials.values(), strict=True):
        row["tokens_per_second_by_dtype"] = {dtype: trial_speed(each) for dtype, each in tried.items() if dtype}
    if out is not None:
        write_atomically(Path(out), (json.dumps(rows, indent=1) + "\n").encode())
    return rows


def try_types(
    contestant: Contestant, job: dict, compute: Callable[[dict], dict], report: Callable[[str], None]
) -> dict[str, dict]:
    """Type → what a training of TRIAL_STEPS gave; one that is left to its library has the type "" alone."""
    results = {}
    for dtype in contestant.dtypes or ("",):
        report(f"trial: {job['method']}, {contestant.name} {dtype}".rstrip())
        result = compute(job | {"steps": TRIAL_STEPS, "dtype": dtype, "seconds": TRIAL_SECONDS})
        report("    " + (result.get("failure") or f"{trial_speed(result):.0f} real tokens/s"))
        results[dtype] = result
    return results


def trial_speed(result: dict) -> float:
    """Real tokens a second of a trial; 0 where it failed."""
    return 0.0 if result.get("failure") else speed(result, "real_tokens")


def pick(peers: bool | Sequence[str]) -> list[Contestant]:
    """Ours, then the contestants of the named libraries."""
    names = tuple(peers) if not isinstance(peers, bool) else PEERS if peers else ()
    if unknown := [name for name in names if name not in PEERS]:
        raise InputError(f"Unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}.")
    if "trl" in names:
        need("trl", "The comparison with TRL")
    return [contestant for contestant in CONTESTANTS if contestant.library in ("ours", *names)]


def check(steps: int, rounds: int, methods: Sequence[str]) -> None:
    """Refuse what cannot be measured."""
    if steps < 2:
        raise InputError(f"steps = {steps} leaves nothing to time after the first step: use at least 2.")
    if rounds < 1:
        raise InputError(f"rounds = {rounds} measures nothing: use at least 1.")
    for name in methods:
        if not get(name).trains:
            raise InputError(f"Method {name!r} is not trained: choose full, lora, qlora or prompt.")


def run_process(job: dict) -> dict:
    """`measure` in a fresh process, of at most job["seconds"]; the result, or a dictionary with its `failure`."""
    with tempfile.TemporaryDirectory(prefix="peftbook-bench-") as folder:
        target = Path(folder) / "result.json"
        variables = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), "PYTHONPATH": IMPORTED}
        with Child("-m", "bench.measuring", str(target), variables=variables) as child:
            child.write(f"{json.dumps(job)}\n")
            if not child.wait(job.get("seconds")):
                return {"failure": f"{job['steps']} steps took more than {job['seconds']} s"}
            if child.status == 2:
                raise InputError(child.failure())
            return {"failure": child.failure()} if child.status else json.loads(target.read_text())


def aggregate(method: str, contestant: str, results: list[dict]) -> dict:
    """Medians and ranges over the rounds that succeeded; curve and settings of the first of them."""
    good = [result for result in results if not result.get("failure")]
    failure = next((result["failure"] for result in results if result.get("failure")), "")
    row: dict[str, Any] = {"contestant": contestant, "method": method, "rounds": len(good), "failure": failure}
    row["note"] = named(contestant).note
    if not good:
        return row
    names = ("examples", "label_tokens", "real_tokens")
    for name in names:
        row[f"{name}_per_second"] = spread([speed(result, name) for result in good])
    for name in ("peak_memory_mib", "load_memory_mib", "load_seconds", "prepare_seconds", "train_seconds"):
        row[name] = spread([result[name] for result in good])
    row["validation_loss_nats"] = spread([result["validation_loss_nats"] for result in good])
    first = good[0]
    for name in (*names, "padded_tokens"):
        row[name] = sum(step[name] for step in first["work"])
    row["steps"] = len(first["losses"])
    row["losses"] = first["losses"]
    row["loss_start_nats"] = first["losses"][0]
    row["loss_end_nats"] = statistics.fmean(first["losses"][-LAST_STEPS:])
    for name in ("set_here", "left_alone", "all_arguments", "machine"):
        row[name] = first[name]
    row["measurements"] = [{"ends": one["ends"], "load_average": one["machine"]["load_average"]} for one in good]
    return row


def speed(result: dict, name: str) -> float:
    """Units of `name` a second: real tokens a second, times the units per real token of the whole run.

    The first step is left out (it pays for allocations and first calls). Some samplers serve the longest examples
    first, so that a plain count of the examples after it would flatter them; real tokens do not.
    """
    ends, work = result["ends"], result["work"]
    rate = sum(step["real_tokens"] for step in work[1:]) / (ends[-1] - ends[0])
    return rate * sum(step[name] for step in work) / sum(step["real_tokens"] for step in work)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
