"""How fragile are the scores? ROUGE under other settings, and BERTScore on a sentence that says the opposite.

Written, margins included, before the probes; the default ROUGE-L and BERTScore of the same texts were known from the
study `methods`. The texts are those of its final runs on docstrings. Mean scores are read against the settings that
are printed with them: stemmer, tokenizer, treatment of lines and sentences, mean over examples or corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from peftbook.evidence import stats
from peftbook.records import Record, Store
from peftbook.specs import Probe, Run
from peftbook.studies import Quantity, Study, Verdict, methods
from peftbook.tasks import task_spec, test_groups

__all__ = ["ARMS", "SCORINGS", "SETTINGS", "STUDIES", "negation_probe", "settings_probe"]

ARMS = ("untuned", "fewshot", "full", "lora", "qlora", "prompt")
SCORINGS = ("default", "stem", "cased", "words", "whitespace", "lsum", "lsum_sentences")
SETTINGS = (*SCORINGS, "corpus")
PAIRS = (("lora", "prompt"), ("lora", "full"), ("qlora", "lora"), ("lora", "fewshot"), ("lora", "untuned"))
BOOTSTRAP_SEEDS = 50
EXAMPLES = 200
MARGIN_ROUGE = 0.01
MARGIN_BERTSCORE = 0.05


def settings_probe(store: Store) -> Probe | None:
    """The probe over all final texts of `methods`, once they are all there."""
    records = {arm: methods.final_records(arm, store) for arm in ARMS}
    if not all(records.values()):
        return None
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
    probe = settings_probe(store)
    return [*methods.runs(store), *([probe] if probe else [])]


def negation_runs(store: Store) -> list[Run | Probe]:
    """The probe, and the runs that it is compared with."""
    return [negation_probe(), *methods.runs(store)]


def settings_record(store: Store) -> Record | None:
    """The record of the settings probe, if it is there."""
    probe = settings_probe(store)
    return None if probe is None else store.get(probe)


def seeds_of(arm: str, record: Record) -> list[int]:
    """The seeds of an arm's runs."""
    spec = record.spec
    systems = spec.settings["systems"] if isinstance(spec, Probe) else ()
    runs = spec.runs if isinstance(spec, Probe) else ()
    return [run.seed for name, run in zip(systems, runs, strict=True) if name == arm]  # type: ignore[arg-type]


def scores(arm: str, record: Record, groups: tuple[str, ...] = ()) -> np.ndarray:
    """The arm's scores for each row of `stats.replicates`, seed and setting, (1 + replicates, seeds, SETTINGS).

    Each is the mean over examples; the last setting is the score of the corpus, 2 Σ LCS / Σ (tokens of text and
    reference) = Σ length · F / Σ length.
    """
    counts = stats.replicates(examples_of(record), groups)
    out = np.empty((len(counts), len(seeds_of(arm, record)), len(SETTINGS)))
    for at, seed in enumerate(seeds_of(arm, record)):
        columns = [np.array(record.per_example[f"{arm}_{seed}_{name}"], dtype=float) for name in SCORINGS]
        length = np.array(record.per_example[f"{arm}_{seed}_length"], dtype=float)
        out[:, at, :-1] = counts @ np.stack(columns, axis=1) / counts.sum(axis=1, keepdims=True)
        out[:, at, -1] = counts @ (length * columns[0]) / (counts @ length)
    return out


def spread(values: np.ndarray) -> np.ndarray:
    """Highest minus lowest over the settings."""
    return values.max(axis=-1) - values.min(axis=-1)


def examples_of(record: Record) -> int:
    """Test examples that the probe scored."""
    return next(len(values) for values in record.per_example.values())


Scored = Mapping[tuple[str, ...], Mapping[str, np.ndarray]]


def scored(record: Record) -> Scored:
    """`scores` of every arm on replicates over single examples, (), and over their groups."""
    groups = test_groups("docstrings", examples_of(record))
    return {units: {arm: scores(arm, record, units) for arm in ARMS} for units in ((), groups)}


def interval_of(found: Scored, pick: Callable[[Mapping[str, np.ndarray]], np.ndarray], examples: int) -> stats.Interval:
    """The interval of what `pick` makes of the arms' scores, over groups, with the one over single examples."""
    single, *grouped = (stats.statistic_interval(pick(arms), examples, units) for units, arms in found.items())
    return replace(grouped[0], by_example=(single.low, single.high)) if grouped else single


def spread_minus_gap(arms: Mapping[str, np.ndarray]) -> np.ndarray:
    """LoRA's spread over the settings minus how far it and prompt tuning are apart under the default settings."""
    return spread(arms["lora"]) - np.abs(arms["lora"][..., 0] - arms["prompt"][..., 0])


def settings_quantities(store: Store) -> Mapping[str, Quantity]:
    """Every arm's score under every setting, its spread and its bootstrap noise; differences of arms by setting."""
    record = settings_record(store)
    if record is None:
        return {}
    n, keys, found = examples_of(record), (record.key,), scored(record)
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        out |= by_setting(arm, lambda arms, arm=arm: arms[arm], found, keys, n)
        mids = record.curve[f"{arm}_mid"]
        out[f"{arm}_mid_range"] = Quantity(max(mids) - min(mids), "", keys, seeds=1, n=n, digits=4)
        out[f"{arm}_mid_sd"] = Quantity(float(np.std(mids, ddof=1)), "", keys, seeds=1, n=n, digits=5)
    for first, second in PAIRS:
        name = f"{first}_minus_{second}"
        out |= by_setting(name, lambda arms, one=first, two=second: arms[one] - arms[two], found, keys, n)
    out["spread_minus_gap"] = Quantity.of(interval_of(found, spread_minus_gap, n), "", keys)
    return out


def by_setting(
    name: str, pick: Callable[..., np.ndarray], found: Scored, keys: tuple[str, ...], examples: int
) -> dict[str, Quantity]:
    """A score or a difference of scores, which `pick` makes of the arms', under every setting, and its spread."""
    picks: dict[str, Callable] = {
        setting: lambda arms, at=at: pick(arms)[..., at] for at, setting in enumerate(SETTINGS)
    } | {"spread": lambda arms: spread(pick(arms))}
    return {
        f"{name}_{setting}": Quantity.of(interval_of(found, one, examples), "", keys) for setting, one in picks.items()
    }


def settings_verdict(store: Store) -> Verdict:
    """Do the settings move LoRA's score more than LoRA and prompt tuning differ?"""
    record = settings_record(store)
    if record is None:
        return Verdict("not yet run", "The texts of `methods` are not scored under other settings yet.")
    arms = scored(record)
    lora, prompt = (arms[()][name] for name in ("lora", "prompt"))
    found = interval_of(arms, spread_minus_gap, examples_of(record))
    score, lead = lora[0].mean(axis=0), (lora - prompt)[0].mean(axis=0)
    sentence = (
        f"Settings move LoRA's ROUGE-L from {score.min():.3f} to {score.max():.3f}; its lead over prompt tuning is "
        f"{lead[0]:+.3f} by default and {lead.min():+.3f} to {lead.max():+.3f} over the settings; spread minus lead "
        f"{found.mean:+.3f} (95 % interval {found.low:+.3f} to {found.high:+.3f}; margin {MARGIN_ROUGE})."
    )
    return Verdict(stats.judge(found, MARGIN_ROUGE, (0.0, math.inf)), sentence, ("spread_minus_gap", "lora_spread"))


def system_scores(arm: str, positions: list[int], store: Store) -> np.ndarray | None:
    """(seeds, examples) BERTScore F1 of an arm at these positions of the test split; None while a record is missing."""
    records = methods.final_records(arm, store)
    return methods.table(records, "bertscore_f1")[:, positions] if records else None


def negated_minus(arm: str, record: Record, store: Store) -> stats.Interval | None:
    """BERTScore F1 of the negated references minus that of the arm's texts, on the same examples."""
    texts = system_scores(arm, [int(at) for at in record.per_example["example"]], store)
    if texts is None:
        return None
    negated = np.array(record.per_example["negated_bertscore_f1"], dtype=float)
    return stats.score_interval(negated - texts, None, groups_of(record))


def groups_of(record: Record) -> tuple[str, ...]:
    """The packages of the references that were negated."""
    every = test_groups("docstrings", methods.TEST_EXAMPLES)
    return tuple(every[int(at)] for at in record.per_example["example"])


def best_system(record: Record, store: Store) -> str | None:
    """The arm with the highest mean BERTScore on the negated examples; None while a record is missing."""
    positions = [int(at) for at in record.per_example["example"]]
    found = {arm: system_scores(arm, positions, store) for arm in ARMS}
    if any(one is None for one in found.values()):
        return None
    return max(ARMS, key=lambda arm: float(np.mean(found[arm])))  # type: ignore[arg-type]


def negation_quantities(store: Store) -> Mapping[str, Quantity]:
    """Scores of negated copies and of other examples' references; the negated copy's lead over every arm."""
    record = store.get(negation_probe())
    if record is None:
        return {}
    keys, out = (record.key,), {}
    n = len(record.per_example["example"])
    out["negated_examples"] = Quantity(n, "examples", keys, digits=0)
    for name in ("negated_bertscore_f1", "negated_rougeL", "other_bertscore_f1", "other_rougeL"):
        values = [float(value) for value in record.per_example[name]]
        own = stats.example_interval(values, None, groups_of(record))
        out[name] = replace(Quantity.of(own, "", keys), seeds=0)
    for arm in ARMS:
        interval = negated_minus(arm, record, store)
        records = methods.final_records(arm, store)
        if interval is not None:
            both = (*keys, *(one.key for one in records))
            out[f"negated_minus_{arm}"] = Quantity.of(interval, "", both)
    if (best := best_system(record, store)) is not None:
        texts = system_scores(best, [int(at) for at in record.per_example["example"]], store)
        above = np.array(record.per_example["negated_bertscore_f1"], dtype=float) > texts
        out["negated_above_best"] = Quantity(100 * float(above.mean()), "%", out[f"negated_minus_{best}"].runs, n=n)
        out["negated_minus_best"] = out[f"negated_minus_{best}"]
    return out


def negation_verdict(store: Store) -> Verdict:
    """Does a reference with a "not" in it outscore the best system?"""
    record = store.get(negation_probe())
    best = None if record is None else best_system(record, store)
    interval = None if record is None or best is None else negated_minus(best, record, store)
    if record is None or interval is None:
        return Verdict("not yet run", "The negated copies or the texts that they are compared with are not there.")
    encoder = record.metrics_info.get("bertscore", {}).get("name", "the encoder")
    sentence = (
        f"By BERTScore with {encoder}, references turned into their opposite score {interval.mean:+.3f} against the "
        f"texts of the best system ({methods.LABELS[best or '']}; 95 % interval {interval.low:+.3f} to "
        f"{interval.high:+.3f}; margin {MARGIN_BERTSCORE})."
    )
    outcome = stats.judge(interval, MARGIN_BERTSCORE, (MARGIN_BERTSCORE, math.inf))
    return Verdict(outcome, sentence, ("negated_minus_best",))


STUDIES = {
    one.name: one
    for one in (
        Study(
            name="rouge_settings",
            title="How fragile is ROUGE?",
            claim="Settings that papers leave out move ROUGE as much as methods differ.",
            source="grusky2023, abstract",
            refuted_if="LoRA's spread over the settings is smaller than its lead over prompt tuning by more than "
            f"{MARGIN_ROUGE} ROUGE-L (the whole 95 % interval beyond it).",
            does_not_show="One task of single English sentences in ASCII, where line and Unicode handling have little "
            "to act on; eight settings of one package, which is neither all settings nor faulty packages. A setting "
            "that moves all systems alike changes no ranking: the leads by setting are listed too.",
            chapter="book/measuring",
            runs=settings_runs,
            quantities=settings_quantities,
            verdict=settings_verdict,
        ),
        Study(
            name="bertscore_negation",
            title='Does BERTScore notice a "not"?',
            claim="BERTScore is weak on small errors in texts that are otherwise alike.",
            source="hanna2021, abstract",
            refuted_if="negated copies of the references score below the texts of the best system (the whole 95 % "
            "interval below zero).",
            does_not_show="One small encoder, its last layer, no rescaling and no idf; a larger one, or another layer, "
            "may see more. Negation by a rule, on the sentences that the rule covers; other small errors are not "
            "tried.",
            chapter="book/measuring",
            runs=negation_runs,
            quantities=negation_quantities,
            verdict=negation_verdict,
        ),
    )
}
