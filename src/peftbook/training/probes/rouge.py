"""What a ROUGE or BERTScore depends on: its settings, and whether it notices a "not"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.evidence import metrics
from peftbook.tasks import get_task, references
from peftbook.training.probes import Findings
from peftbook.training.scoring import bertscore, embedded_encoder

# What a token is where rouge_score's own tokenizer (lower case, runs of a–z and 0–9) is replaced.
PATTERNS = {"cased": (r"[A-Za-z0-9]+", False), "words": (r"\w+", True), "whitespace": (r"\S+", True)}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Pattern(Tokenizer):
    """Tokens are the matches of a regular expression (Unicode), in lower case if asked."""

    def __init__(self, pattern: str, lower: bool):
        self.pattern, self.lower = re.compile(pattern), lower

    def tokenize(self, text: str) -> list[str]:
        return self.pattern.findall(text.lower() if self.lower else text)


def rouge_l(texts: Sequence[str], answers: Sequence[str], setting: str) -> list[float]:
    """ROUGE-L F of every pair, 0–1, by rouge_score under one named setting.

    default: lower-cased runs of a–z and 0–9, no stemmer, line breaks ignored.   stem: Porter's stemmer.
    cased: case counts.   words: Unicode words, so that `snake_case` is one token.   whitespace: what stands between
    blanks, with its punctuation.   lsum: Lsum, each line its own sentence.   lsum_sentences: Lsum, each sentence too.
    Raises InputError for another name. Source: Lin 2004; Google's rouge_score 0.1.2.
    """
    known = ("default", "stem", "lsum", "lsum_sentences", *PATTERNS)
    if setting not in known:
        raise InputError(f"ROUGE setting {setting!r} is unknown: choose one of {', '.join(known)}.")
    kind = "rougeLsum" if setting.startswith("lsum") else "rougeL"
    tokenizer = Pattern(*PATTERNS[setting]) if setting in PATTERNS else None
    scorer = RougeScorer([kind], use_stemmer=setting == "stem", tokenizer=tokenizer)
    if setting == "lsum_sentences":
        texts, answers = ([SENTENCE_END.sub("\n", text) for text in many] for many in (texts, answers))
    return [scorer.score(right, text)[kind].fmeasure for text, right in zip(texts, answers, strict=True)]


def settings(probe: specs.Probe) -> Findings:
    """ROUGE-L of stored texts under several settings, and how much rouge_score's bootstrap moves its own middle.

    settings: systems, a name for each of the probe's runs; scorings, names known to `rouge_l`; bootstrap_seeds.
    Recorded for each run, as `<system>_<seed>_…`: the F of every example under each setting; `length`, its tokens in
    text and reference together (default tokenizer), from which the corpus score is Σ length · F / Σ length; and for
    the system's first run the "mid" of the aggregator for each bootstrap seed.
    """
    store = default_store()
    systems, scorings = probe.words("systems"), probe.words("scorings")
    if len(systems) != len(probe.runs):
        raise InputError(f"The probe names {len(systems)} systems for {len(probe.runs)} runs: give one name for each.")
    measured: dict[str, float | int | None] = {}
    per_example: dict[str, list[float] | list[str]] = {}
    curve: dict[str, list[float]] = {}
    for system, run in zip(systems, probe.runs, strict=True):
        name = f"{system}_{run.seed}"
        texts, answers = stored_texts(run, store)
        for scoring in scorings:
            scores = rouge_l(texts, answers, scoring)
            measured[f"{name}_{scoring}"] = fmean(scores)
            per_example[f"{name}_{scoring}"] = [round(score, 4) for score in scores]
        count = DefaultTokenizer().tokenize
        lengths = zip(texts, answers, strict=True)
        per_example[f"{name}_length"] = [float(len(count(text)) + len(count(right))) for text, right in lengths]
        if f"{system}_mid" not in curve:
            curve[f"{system}_mid"] = bootstrap_mids(texts, answers, probe.whole("bootstrap_seeds"))
            measured[f"{system}_mid_sd"] = stdev(curve[f"{system}_mid"])
    info = {"package": "rouge_score", "measure": "f", "kind": "rougeL", "settings": list(scorings)}
    return Findings(measurements=measured, per_example=per_example, curve=curve, metrics_info={"rouge": info})


def stored_texts(run: specs.Run, store: Store) -> tuple[list[str], list[str]]:
    """The texts that a run generated and the reference of each. Raises InputError if there is no record of it."""
    record = store.get(run)
    texts = store.texts(record) if record is not None else []
    if not texts:
        raise InputError(f"Run {run.key[:12]} has no stored texts: run `peftbook run methods` first.")
    task = get_task(run.task.name)
    known = references(task)
    return texts, [known[example.id][0] for example in task.splits[run.evaluation.split][: len(texts)]]


def bootstrap_mids(texts: Sequence[str], answers: Sequence[str], seeds: int) -> list[float]:
    """The "mid" ROUGE-L F of rouge_score's BootstrapAggregator for each seed 0 … seeds − 1 of NumPy's global generator.

    The generator's state is put back afterwards. Source: rouge_score 0.1.2, scoring.py: 1,000 resamples, the median.
    """
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(right, text) for text, right in zip(texts, answers, strict=True)]
    state = np.random.get_state()
    mids = []
    for seed in range(seeds):
        np.random.seed(seed)
        aggregator = BootstrapAggregator()
        for score in scores:
            aggregator.add_scores(score)
        mids.append(float(aggregator.aggregate()["rougeL"].mid.fmeasure))
    np.random.set_state(state)
    return mids


IMPERATIVES = (
    "accept add adjust append apply assert assign build calculate call cast check clear close combine compare compute"
    " configure construct convert copy count create decide decode declare decorate define delete deserialize detect"
    " determine discretize display divide download draw emit encode ensure estimate evaluate execute expand extract"
    " fetch fill filter find fit format generate get give handle identify import indicate infer initialize insert join"
    " load log look make map mark mask merge modify move normalize open parse perform plot pop prepare print process"
    " produce provide raise read rebuild recalculate reduce register reload remove rename render replace report request"
    " reset resolve retrieve return reverse revert rotate round run save scale search select send serialize set show"
    " simplify smooth solve sort split start stop store strip subtract swap test toggle transform translate try turn"
    " update use validate verify wait warn wrap write yield"
)
AUXILIARIES = ("is", "are", "was", "were", "has been", "have been", "can", "could", "should", "must", "will", "would")


def third_person(verb: str) -> str:
    """`return` → `returns`, `apply` → `applies`, `search` → `searches`."""
    if verb.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


OPENINGS = {
    **{verb: f"Do not {verb}" for verb in IMPERATIVES.split()},
    **{third_person(verb): f"Does not {verb}" for verb in IMPERATIVES.split()},
}
AUXILIARY = re.compile(rf"\b({'|'.join(AUXILIARIES)})\b(?!n't| not\b)")


def negate(sentence: str) -> str | None:
    """The sentence with the opposite meaning, by the smallest rule that applies; None where none does.

    A verb of IMPERATIVES at the start gets "Do not" or "Does not" ("Return x." → "Do not return x."); else the first
    auxiliary gets a "not" ("Whether x is y." → "Whether x is not y.").
    """
    first, blank, rest = sentence.partition(" ")
    if blank and first.lower() in OPENINGS:
        return f"{OPENINGS[first.lower()]} {rest}"
    changed, count = AUXILIARY.subn(lambda match: insert_word(match.group(), "not"), sentence, count=1)
    return changed if count else None


def insert_word(auxiliary: str, word: str) -> str:
    """`is` → `is not`, `has been` → `has not been`."""
    first, blank, rest = auxiliary.partition(" ")
    return f"{first} {word}{blank}{rest}"


def first_references(probe: specs.Probe) -> list[str]:
    """The references of the first `examples` of the test split of the probe's `task`, whose data are `data_sha256`."""
    task = get_task(probe.word("task"))
    if task.data_sha256 != probe.word("data_sha256"):
        raise InputError(f"Task {task.name!r} has data {task.data_sha256[:12]}…, not those that the probe names.")
    return [example.target for example in task.splits["test"][: probe.whole("examples")]]


def negation(probe: specs.Probe) -> Findings:
    """Scores of references against their own negations, and against another example's reference as the floor.

    settings: task, data_sha256 (its pinned data), examples (the first so many of the test split). References that no
    rule of `negate` covers are left out. Recorded: `example`, the position in the split; the negated texts; BERTScore
    F1 and ROUGE-L F of negated copy and of the next example's reference, with the reference as the right answer.
    """
    answers = first_references(probe)
    pairs = [(at, text) for at, answer in enumerate(answers) if (text := negate(answer)) is not None]
    chosen, negated = [at for at, _ in pairs], [text for _, text in pairs]
    right = [answers[at] for at in chosen]
    other = right[1:] + right[:1]
    counts = {"examples": len(answers), "negated_examples": len(negated)}
    known: dict[str, list[float] | list[str]] = {"example": [float(at) for at in chosen], "negated": negated}
    return scored_edits({"negated": negated, "other": other}, right, counts, known)


def scored_edits(
    edited: Mapping[str, list[str]],
    right: list[str],
    counts: Mapping[str, int],
    known: Mapping[str, list[float] | list[str]],
) -> Findings:
    """BERTScore F1 and ROUGE-L F of each list of edited texts, beside the counts and what is known of each example."""
    scores = {}
    for name, texts in edited.items():
        scores[f"{name}_bertscore_f1"] = bertscore(texts, right)
        scores[f"{name}_rougeL"] = metrics.rouge(texts, right)["rougeL"]
    return Findings(
        measurements={**counts, **{name: fmean(values) for name, values in scores.items()}},
        per_example={**known, **{name: [round(value, 6) for value in values] for name, values in scores.items()}},
        metrics_info={"bertscore": embedded_encoder(), "rouge": {"package": "rouge_score", "stemmer": False}},
    )
