"""The control of `rouge.negation`: edits that keep a reference's meaning, of as many words and in the same place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.training.probes import Findings
from peftbook.training.probes.rouge import (
    AUXILIARY,
    OPENINGS,
    first_references,
    insert_word,
    negate,
    scored_edits,
)

# Two words that say what the verb says, whatever its object is; verbs without such a pair are left out.
PHRASES = {
    "build": "put together", "calculate": "work out", "combine": "join together", "compute": "work out",
    "construct": "put together", "create": "put together", "determine": "find out", "divide": "split up",
    "emit": "send out", "ensure": "make sure", "execute": "carry out", "extract": "pull out", "handle": "deal with",
    "load": "read in", "make": "put together", "merge": "join together", "perform": "carry out", "print": "write out",
    "rebuild": "build again", "recalculate": "compute again", "reload": "load again", "remove": "take away",
    "return": "give back", "search": "look through",
}  # fmt: skip
BOTH_WAYS = " or not"  # "whether or not it is not x" says what "whether or not it is x" does: no opposite to control


def add_words(sentence: str) -> str | None:
    """The sentence with words that add nothing where `negate` adds its own; None where it adds none.

    "This will" for "Do not" and "Does not" ("Return x." → "This will return x."), "indeed" for the "not" behind an
    auxiliary ("Whether x is y." → "Whether x is indeed y.").
    """
    if BOTH_WAYS in sentence:
        return None
    first, blank, rest = sentence.partition(" ")
    if blank and first.lower() in OPENINGS:
        return f"This will {base_form(first)} {rest}"
    changed, count = AUXILIARY.subn(lambda match: insert_word(match.group(), "indeed"), sentence, count=1)
    return changed if count else None


def replace_verb(sentence: str) -> str | None:
    """The sentence with another verb of the same meaning, from PHRASES, where `negate` adds words; None without one.

    "Return x." → "Give back x."; in the third person "Returns x." → "Will give back x.".
    """
    first, blank, rest = sentence.partition(" ")
    if BOTH_WAYS in sentence or not blank or first.lower() not in OPENINGS:
        return None
    if (phrase := PHRASES.get(base_form(first))) is None:
        return None
    opening = phrase if base_form(first) == first.lower() else f"will {phrase}"
    return f"{opening.capitalize()} {rest}"


def base_form(verb: str) -> str:
    """`Returns` → `return`, for a verb of OPENINGS."""
    return OPENINGS[verb.lower()].rpartition(" ")[2]


KINDS: Mapping[str, Callable[[str], str | None]] = {"added": add_words, "replaced": replace_verb}
EDITED = ("paraphrase", "negated")


def words_apart(text: str, other: str) -> int:
    """How many words must be inserted, deleted or replaced to turn one text into the other; case is ignored.

    d_ij = min(d_{i−1,j} + 1, d_{i,j−1} + 1, d_{i−1,j−1} + [x_i ≠ y_j]), d_i0 = i, d_0j = j. Source: Levenshtein 1966.
    """
    x, y = text.lower().split(), other.lower().split()
    row = list(range(len(y) + 1))
    for i, word in enumerate(x, 1):
        corner, row[0] = row[0], i
        for j, right in enumerate(y, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != right))
    return row[-1]


def scores(probe: specs.Probe) -> Findings:
    """Scores of paraphrases that are as many words from their reference as the negated copy is.

    settings: task, data_sha256, examples, as of `rouge.negation`; kind, of KINDS. Recorded for the pairs of equal size:
    `example`, the position in the split; the paraphrases; `edits`, words apart; BERTScore F1 and ROUGE-L F of
    paraphrase and negated copy, with the reference as the right answer. Measured: references with an opposite, with a
    paraphrase too, and how many of these have negated copies, and paraphrases, so many words apart.
    """
    if (kind := probe.word("kind")) not in KINDS:
        raise InputError(f"Paraphrase kind {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
    answers = first_references(probe)
    opposites = {at: text for at, answer in enumerate(answers) if (text := negate(answer)) is not None}
    both = {at: (text, opposites[at]) for at in opposites if (text := KINDS[kind](answers[at])) is not None}
    sizes = {at: [words_apart(text, answers[at]) for text in texts] for at, texts in both.items()}
    chosen = [at for at, (own, opposite) in sizes.items() if own == opposite]
    right = [answers[at] for at in chosen]
    texts = {name: [both[at][place] for at in chosen] for place, name in enumerate(EDITED)}
    counts = {
        f"{name}_{size}_words_apart": count
        for place, name in enumerate(EDITED)
        for size, count in sorted(Counter(pair[place] for pair in sizes.values()).items())
    }
    numbers = {"opposites": len(opposites), "with_paraphrase": len(both), "pairs": len(chosen)}
    known: dict[str, list[float] | list[str]] = {
        "example": [float(at) for at in chosen],
        "paraphrase": texts["paraphrase"],
        "edits": [float(sizes[at][0]) for at in chosen],
    }
    return scored_edits(texts, right, numbers | counts, known)
