"""How fragile are the scores? ROUGE under other settings, and BERTScore on a sentence that says the opposite.

Written, margins included, before the probes; the default ROUGE-L and BERTScore of the same texts were known from the
study `methods`. The texts are those of its final runs on docstrings. Mean scores are read against the settings that
are printed with them: stemmer, tokenizer, treatment of lines and sentences, mean over examples or corpus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from peftbook import metrics
from peftbook.records import Missing, Record, Store, aside
from peftbook.specs import Probe, Run
from peftbook.studies import Quantity, Verdict, methods, study
from peftbook.studies.sweep import as_quantity
from peftbook.tasks import task_spec

__all__ = ["ARMS", "SCORINGS", "SETTINGS", "negation_probe", "settings_probe"]

ARMS = ("untuned", "fewshot", "full", "lora", "qlora", "prompt")
SCORINGS = ("default", "stem", "cased", "words", "whitespace", "lsum", "lsum_sentences")
SETTINGS = (*SCORINGS, "corpus")
PAIRS = (("lora", "prompt"), ("lora", "full"), ("qlora", "lora"), ("lora", "fewshot"), ("lora", "untuned"))
BOOTSTRAP_SEEDS = 50
EXAMPLES = 200
MARGIN_ROUGE = 0.01
MARGIN_BERTSCORE = 0.05


def settings_probe(store: Store) -> Probe:
    """The probe over all final texts of `methods`. Raises Missing until they are all there."""
    for arm in ARMS:
        methods.final_records(arm, store)
    final = [(arm, run) for arm in ARMS for run in methods.final_runs(arm, store)]
    return Probe(
        measure="rouge.settings",
        settings={
            "systems": tuple(arm for arm, _ in final),
            "scorings": SCORINGS,
            "bootstrap_seeds": BOOTSTRAP_SEEDS,
        },
        runs=tuple(run for _, run in final),
    )


def negation_probe() -> Probe:
    """Negated copies of the references of the docstrings test examples that `methods` generated."""
    task = task_spec("docstrings")
    return Probe(
        measure="rouge.negation",
        settings={"task": task.name, "data_sha256": task.data_sha256, "examples": EXAMPLES},
    )


def settings_runs(store: Store) -> list[Run | Probe]:
    """The runs whose texts are scored, then the probe."""
    runs: list[Run | Probe] = [*methods.runs(store)]
    with suppress(Missing):
        runs.append(settings_probe(store))
    return runs


def negation_runs(store: Store) -> list[Run | Probe]:
    """The probe, and the runs that it is compared with."""
    return [negation_probe(), *methods.runs(store)]


def settings_record(store: Store) -> Record:
    """The record of the settings probe. Raises Missing."""
    with aside():
        probe = settings_probe(store)
    return store.need(probe)


def seeds_of(arm: str, record: Record) -> list[int]:
    """The seeds of an arm's runs; an arm with one run stands for all seeds."""
    spec = record.spec
    systems = spec.settings["systems"] if isinstance(spec, Probe) else ()
    runs = spec.runs if isinstance(spec, Probe) else ()
    found = [run.seed for name, run in zip(systems, runs, strict=True) if name == arm]  # type: ignore[arg-type]
    return found * len(methods.SEEDS) if len(found) == 1 else found


def scores(arm: str, record: Record) -> np.ndarray:
    """The arm's scores for each row of `metrics.resamples`, seed and setting, (1 + draws, seeds, SETTINGS).

    Each is the mean over examples; the last setting is the score of the corpus, 2 Σ LCS / Σ (tokens of text and
    reference) = Σ length · F / Σ length.
    """
    counts = metrics.resample_counts(examples_of(record))
    out = np.empty((len(counts), len(seeds_of(arm, record)), len(SETTINGS)))
    for at, seed in enumerate(seeds_of(arm, record)):
        columns = [np.array(record.per_example[f"{arm}_{seed}_{name}"], dtype=float) for name in SCORINGS]
        length = np.array(record.per_example[f"{arm}_{seed}_length"], dtype=float)
        out[:, at, :-1] = counts @ np.stack(columns, axis=1) / counts.shape[1]
        out[:, at, -1] = counts @ (length * columns[0]) / (counts @ length)
    return out


def spread(values: np.ndarray) -> np.ndarray:
    """Highest minus lowest over the settings."""
    return values.max(axis=-1) - values.min(axis=-1)


def examples_of(record: Record) -> int:
    """Test examples that the probe scored."""
    return next(len(values) for values in record.per_example.values())


def spread_minus_gap(lora: np.ndarray, prompt: np.ndarray, examples: int) -> metrics.Interval:
    """LoRA's spread over the settings minus how far it and prompt tuning are apart under the default settings."""
    return metrics.statistic_interval(spread(lora) - np.abs(lora[..., 0] - prompt[..., 0]), examples)


def settings_quantities(store: Store) -> Mapping[str, Quantity]:
    """Every arm's score under every setting, its spread and its bootstrap noise; differences of arms by setting."""
    record = settings_record(store)
    n, keys = examples_of(record), (record.key,)
    seeds = {arm: len(set(seeds_of(arm, record))) for arm in ARMS}
    scored = {arm: scores(arm, record) for arm in ARMS}
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        out |= by_setting(arm, scored[arm], keys, seeds[arm], n)
        mids = record.curve[f"{arm}_mid"]
        out[f"{arm}_mid_range"] = Quantity(max(mids) - min(mids), "", keys, seeds=1, n=n, digits=4)
        out[f"{arm}_mid_sd"] = Quantity(float(np.std(mids, ddof=1)), "", keys, seeds=1, n=n, digits=5)
    for first, second in PAIRS:
        most = max(seeds[first], seeds[second])
        out |= by_setting(f"{first}_minus_{second}", scored[first] - scored[second], keys, most, n)
    out["spread_minus_gap"] = as_quantity(
        spread_minus_gap(scored["lora"], scored["prompt"], n), "", keys, seeds["lora"]
    )
    return out


def by_setting(name: str, values: np.ndarray, keys: tuple[str, ...], seeds: int, examples: int) -> dict[str, Quantity]:
    """A score or a difference of scores under every setting, and its spread. values: as `scores` gives them."""
    columns = {setting: values[..., at] for at, setting in enumerate(SETTINGS)} | {"spread": spread(values)}
    return {
        f"{name}_{setting}": as_quantity(metrics.statistic_interval(column, examples), "", keys, seeds)
        for setting, column in columns.items()
    }


@study("rouge_settings", settings_runs, settings_quantities)
def settings_verdict(store: Store) -> Verdict:
    """Do the settings move LoRA's score more than LoRA and prompt tuning differ?"""
    record = settings_record(store)
    lora, prompt = scores("lora", record), scores("prompt", record)
    found = spread_minus_gap(lora, prompt, examples_of(record))
    score, lead = lora[0].mean(axis=0), (lora - prompt)[0].mean(axis=0)
    sentence = (
        f"Settings move LoRA's ROUGE-L from {score.min():.3f} to {score.max():.3f}; its lead over prompt tuning is "
        f"{lead[0]:+.3f} by default and {lead.min():+.3f} to {lead.max():+.3f} over the settings; spread minus lead "
        f"{found.mean:+.3f} (95 % interval {found.low:+.3f} to {found.high:+.3f}; margin {MARGIN_ROUGE})."
    )
    return Verdict(metrics.judge(found, MARGIN_ROUGE, (0.0, math.inf)), sentence, ("spread_minus_gap", "lora_spread"))


def system_scores(arm: str, record: Record, store: Store) -> np.ndarray:
    """(seeds, examples) BERTScore F1 of an arm on the examples of the negated copies. Raises Missing."""
    positions = [int(at) for at in record.per_example["example"]]
    return np.array(methods.table(methods.final_records(arm, store), "bertscore_f1"))[:, positions]


def negated_minus(arm: str, record: Record, store: Store) -> metrics.Interval:
    """BERTScore F1 of the negated references minus that of the arm's texts, on the same examples. Raises Missing."""
    negated = np.array(record.per_example["negated_bertscore_f1"], dtype=float)
    return metrics.mean_interval((negated - system_scores(arm, record, store)).tolist())


def best_system(record: Record, store: Store) -> str:
    """The arm with the highest mean BERTScore on the negated examples. Raises Missing."""
    means = {arm: float(np.mean(system_scores(arm, record, store))) for arm in ARMS}
    return max(means, key=lambda arm: means[arm])


def negation_quantities(store: Store) -> Mapping[str, Quantity]:
    """Scores of negated copies and of other examples' references; the negated copy's lead over every arm."""
    record = store.need(negation_probe())
    keys, out = (record.key,), {}
    n = len(record.per_example["example"])
    out["negated_examples"] = Quantity(n, "examples", keys, digits=0)
    for name in ("negated_bertscore_f1", "negated_rougeL", "other_bertscore_f1", "other_rougeL"):
        values = [float(value) for value in record.per_example[name]]
        half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(n)
        mean = float(np.mean(values))
        note = "interval over examples only"
        out[name] = Quantity(mean, "", keys, mean - half, mean + half, 0, n, 3, note)
    for arm in ARMS:
        with suppress(Missing):
            records = methods.final_records(arm, store)
            both = (*keys, *(each.key for each in records))
            out[f"negated_minus_{arm}"] = as_quantity(negated_minus(arm, record, store), "", both, len(records))
    with suppress(Missing):
        best = best_system(record, store)
        above = np.array(record.per_example["negated_bertscore_f1"], dtype=float) > system_scores(best, record, store)
        out["negated_above_best"] = Quantity(100 * float(above.mean()), "%", out[f"negated_minus_{best}"].runs, n=n)
        out["negated_minus_best"] = out[f"negated_minus_{best}"]
    return out


@study("bertscore_negation", negation_runs, negation_quantities)
def negation_verdict(store: Store) -> Verdict:
    """Does a reference with a "not" in it outscore the best system?"""
    record = store.need(negation_probe())
    best = best_system(record, store)
    interval = negated_minus(best, record, store)
    encoder = record.metrics_info.get("bertscore", {}).get("name", "the encoder")
    sentence = (
        f"By BERTScore with {encoder}, references turned into their opposite score {interval.mean:+.3f} against the "
        f"texts of the best system ({methods.LABELS[best]}; 95 % interval {interval.low:+.3f} to "
        f"{interval.high:+.3f}; margin {MARGIN_BERTSCORE})."
    )
    outcome = metrics.judge(interval, MARGIN_BERTSCORE, (MARGIN_BERTSCORE, math.inf))
    return Verdict(outcome, sentence, ("negated_minus_best",))
