"""How fragile are the scores? ROUGE under other settings, and BERTScore on a sentence that says the opposite.

Written, margins included, before the probes; the default ROUGE-L and BERTScore of the same texts were known from the
study `methods`. The texts are those of its final runs on docstrings. Mean scores are read against the settings that
are printed with them: stemmer, tokenizer, treatment of lines and sentences, mean over examples or corpus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from peftbook.core.records import Missing, Record, Store
from peftbook.core.specs import Probe, Run
from peftbook.core.tracking import untracked
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import keys_of, table
from peftbook.evidence.planning import judge_claim
from peftbook.studies import Quantity, Verdict, available, gathered, margins, methods, study
from peftbook.tasks import task_spec, test_groups

ARMS = ("untuned", "fewshot", "full", "lora", "qlora", "prompt")
SCORINGS = ("default", "stem", "cased", "words", "whitespace", "lsum", "lsum_sentences")
SETTINGS = (*SCORINGS, "corpus")
PAIRS = (("lora", "prompt"), ("lora", "full"), ("qlora", "lora"), ("lora", "fewshot"), ("lora", "untuned"))
BOOTSTRAP_SEEDS = 50
EXAMPLES = 200
MARGIN_ROUGE = margins.ROUGE
PARAPHRASES = ("added", "replaced")
MARGIN_PARAPHRASE = 0.02  # a fifth of the tenth that the "not" was known to take from a copy's score of 1


def settings_probe(store: Store) -> Probe:
    """The probe over all final texts of `methods`. Raises Missing until they are all there."""
    for arm in ARMS:
        methods.final_records(arm, store)
    final = [(arm, run) for arm in ARMS for run in methods.final_runs(arm, store)]
    return Probe(
        measure="rouge.settings",
        settings={"systems": tuple(arm for arm, _ in final), "scorings": SCORINGS, "bootstrap_seeds": BOOTSTRAP_SEEDS},
        runs=tuple(run for _, run in final),
    )


def negation_probe() -> Probe:
    """Negated copies of the references of the docstrings test examples that `methods` generated."""
    return Probe(measure="rouge.negation", settings=references())


def paraphrase_probe(kind: str) -> Probe:
    """Paraphrases of the references that are negated, by one kind of rule, as many words from them."""
    return Probe(measure="paraphrases.scores", settings=references(kind=kind))


def references(**more: str) -> dict[str, Any]:
    """The references that are edited, as settings of a probe, and more of its settings."""
    task = task_spec("docstrings")
    return {"task": task.name, "data_sha256": task.data_sha256, "examples": EXAMPLES, **more}


def negation_runs(store: Store) -> list[Run | Probe]:
    """The probes, and the runs that the negated copies are compared with."""
    return [negation_probe(), *map(paraphrase_probe, PARAPHRASES), *methods.runs(store)]


def settings_record(store: Store) -> Record:
    """The record of the settings probe. Raises Missing."""
    with untracked():
        probe = settings_probe(store)
    return store.need(probe)


def seeds_of(arm: str, record: Record) -> list[int]:
    """The seeds of an arm's runs."""
    spec = record.spec
    systems = spec.settings["systems"] if isinstance(spec, Probe) else ()
    runs = spec.runs if isinstance(spec, Probe) else ()
    return [run.seed for name, run in zip(systems, runs, strict=True) if name == arm]  # type: ignore[arg-type]


def scores(arm: str, record: Record, groups: tuple[str, ...] = ()) -> np.ndarray:
    """The arm's scores for each row of `resampling.replicates`, seed and setting, (1 + replicates, seeds, SETTINGS).

    Each is the mean over examples; the last setting is the score of the corpus, 2 Σ LCS / Σ (tokens of text and
    reference) = Σ length · F / Σ length.
    """
    counts = resampling.replicates(examples_of(record), groups)
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
    single, *grouped = (resampling.statistic_interval(pick(arms), examples, units) for units, arms in found.items())
    return replace(grouped[0], by_example=(single.low, single.high)) if grouped else single


def spread_minus_gap(arms: Mapping[str, np.ndarray]) -> np.ndarray:
    """LoRA's spread over the settings minus how far it and prompt tuning are apart under the default settings."""
    return spread(arms["lora"]) - np.abs(arms["lora"][..., 0] - arms["prompt"][..., 0])


def settings_quantities(store: Store) -> Mapping[str, Quantity]:
    """Every arm's score under every setting, its spread and its bootstrap noise; differences of arms by setting."""
    record = settings_record(store)
    n, keys, found = examples_of(record), (record.key,), scored(record)
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        out |= by_setting(arm, lambda arms, arm=arm: arms[arm], found, keys, n)
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


@study("rouge_settings", lambda store: [*methods.runs(store), *available(settings_probe, [store])], settings_quantities)
def settings_verdict(store: Store) -> Verdict:
    """Do the settings move LoRA's score more than LoRA and prompt tuning differ?"""
    record = settings_record(store)
    arms = scored(record)
    lora, prompt = (arms[()][name] for name in ("lora", "prompt"))
    found = interval_of(arms, spread_minus_gap, examples_of(record))
    score, lead = lora[0].mean(axis=0), (lora - prompt)[0].mean(axis=0)
    sentence = (
        f"Settings move LoRA's ROUGE-L from {score.min():.3f} to {score.max():.3f}; its lead over prompt tuning is "
        f"{lead[0]:+.3f} by default and {lead.min():+.3f} to {lead.max():+.3f} over the settings; spread minus lead "
        f"{found.mean:+.3f} (95 % interval {found.low:+.3f} to {found.high:+.3f}; margin {MARGIN_ROUGE})."
    )
    outcome, part = judge_claim(found, MARGIN_ROUGE, (0.0, math.inf))
    return Verdict(outcome, sentence, ("spread_minus_gap", "lora_spread"), (part,))


def system_scores(arm: str, record: Record, store: Store) -> np.ndarray:
    """(seeds, examples) BERTScore F1 of an arm on the examples of the negated copies. Raises Missing."""
    positions = [int(at) for at in record.per_example["example"]]
    return table(methods.final_records(arm, store), "bertscore_f1")[:, positions]


def negated_minus(arm: str, record: Record, store: Store) -> stats.Interval:
    """BERTScore F1 of the negated references minus that of the arm's texts, on the same examples. Raises Missing."""
    negated = np.array(record.per_example["negated_bertscore_f1"], dtype=float)
    return stats.score_interval(negated - system_scores(arm, record, store), None, groups_of(record))


def groups_of(record: Record) -> tuple[str, ...]:
    """The packages of the references that were negated."""
    every = test_groups("docstrings", methods.TEST_EXAMPLES)
    return tuple(every[int(at)] for at in record.per_example["example"])


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
        own = stats.example_interval(values, None, groups_of(record))
        out[name] = replace(Quantity.of(own, "", keys), seeds=0)
    for arm in ARMS:
        with suppress(Missing):
            both = keys_of([record], methods.final_records(arm, store))
            out[f"negated_minus_{arm}"] = Quantity.of(negated_minus(arm, record, store), "", both)
    with suppress(Missing):
        best = best_system(record, store)
        out["negated_minus_best"] = out[f"negated_minus_{best}"]
    return out | gathered(lambda kind: paraphrase_quantities(kind, store.need(paraphrase_probe(kind))), PARAPHRASES)


def above_negated(record: Record) -> np.ndarray:
    """(examples,) BERTScore F1 of each paraphrase minus that of its reference's negated copy."""
    own, negated = (
        np.array(record.per_example[f"{name}_bertscore_f1"], dtype=float) for name in ("paraphrase", "negated")
    )
    return own - negated


def paraphrase_minus_negated(record: Record) -> stats.Interval:
    """Their mean, over the packages of the references."""
    return stats.example_interval(list(above_negated(record)), None, groups_of(record))


def paraphrase_quantities(kind: str, record: Record) -> dict[str, Quantity]:
    """How many pairs of equal size there are, by words apart, their scores and the difference."""
    keys, edits = (record.key,), [int(size) for size in record.per_example["edits"]]
    out = {f"{kind}_pairs": Quantity(len(edits), "pairs", keys, digits=0)}
    for size in sorted(set(edits)):
        out[f"{kind}_pairs_{size}_words"] = Quantity(edits.count(size), "pairs", keys, digits=0)
    for score in ("bertscore_f1", "rougeL"):
        for name, column in ((kind, f"paraphrase_{score}"), (f"{kind}_negated", f"negated_{score}")):
            values = [float(value) for value in record.per_example[column]]
            own = stats.example_interval(values, None, groups_of(record))
            out[f"{name}_{score}"] = replace(Quantity.of(own, "", keys), seeds=0)
    difference = paraphrase_minus_negated(record)
    out[f"{kind}_minus_negated"] = replace(Quantity.of(difference, "", keys), seeds=0)
    beaten = 100 * float((above_negated(record) < 0).mean())
    out[f"{kind}_below_negated"] = Quantity(beaten, "%", keys, n=len(edits))
    return out


@study("bertscore_negation", negation_runs, negation_quantities)
def negation_verdict(store: Store) -> Verdict:
    """Does a reference with a "not" in it score as high as a paraphrase with as many words changed, of both kinds?"""
    record = store.need(negation_probe())
    best = best_system(record, store)
    lead = negated_minus(best, record, store)
    added, replaced = (paraphrase_minus_negated(store.need(paraphrase_probe(kind))) for kind in PARAPHRASES)
    encoder = record.metrics_info.get("bertscore", {}).get("name", "the encoder")
    claim = (-math.inf, MARGIN_PARAPHRASE)
    outcomes, parts = zip(*(judge_claim(difference, 0.0, claim) for difference in (added, replaced)), strict=True)
    sentence = (
        f"By BERTScore with {encoder}, paraphrases score, against opposites as many words from the reference, "
        f"{added.mean:+.3f} where words are added (95 % interval {added.low:+.3f} to {added.high:+.3f}; {outcomes[0]}) "
        f"and {replaced.mean:+.3f} where the verb is replaced ({replaced.low:+.3f} to {replaced.high:+.3f}; "
        f"{outcomes[1]}); margin {MARGIN_PARAPHRASE}. The opposites score {lead.mean:+.3f} against the texts of the "
        f"best system ({methods.LABELS[best]}; {lead.low:+.3f} to {lead.high:+.3f})."
    )
    names = (*(f"{kind}_minus_negated" for kind in PARAPHRASES), "negated_minus_best")
    return Verdict(stats.together(outcomes), sentence, names, parts)
