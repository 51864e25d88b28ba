"""Near duplicates: token sets whose Jaccard similarity is high, found without comparing every pair.

Two sets with similarity of at least t share a token among the first |s| - ceil(t |s|) + 1 of each, rarest first; only
sets that share one are compared. Source: Bayardo, Ma, Srikant 2007, Scaling up all pairs similarity search, section 4.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

NEAR_DUPLICATE = 0.8
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # scripts without spaces between words: each letter is a token
TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
MOST_CHARS, LEAST_EACH = 10_000_000, 100  # of all texts together, and of one
EFFORT = 10_000_000  # tokens that comparisons look at, some seconds


def text_tokens(text: str) -> frozenset[str]:
    """The set of words, numbers and symbols in a text, without case."""
    return frozenset(TOKEN.findall(text.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a & b| / |a | b|."""
    return len(a & b) / len(a | b)


class SimilarSets:
    """Token sets, to be asked whether one of them is similar to another.

    frequency: of each token, the same for all that is added or asked for.  effort: tokens that comparisons have looked
    at so far.
    """

    def __init__(self, frequency: Mapping[str, int], threshold: float = NEAR_DUPLICATE):
        self.frequency = frequency
        self.threshold = threshold
        self.effort = 0
        self.known: set[frozenset[str]] = set()
        self.by_token: dict[str, list[frozenset[str]]] = defaultdict(list)

    def prefix(self, tokens: frozenset[str]) -> list[str]:
        """The rarest tokens, one of which a similar set must share."""
        ordered = sorted(tokens, key=lambda token: (self.frequency[token], token))
        return ordered[: len(tokens) - math.ceil(self.threshold * len(tokens)) + 1]

    def add(self, tokens: frozenset[str]) -> None:
        """One set more."""
        if tokens not in self.known:
            self.known.add(tokens)
            for token in self.prefix(tokens):
                self.by_token[token].append(tokens)

    def has_similar(self, tokens: frozenset[str]) -> bool:
        """Whether a set that was added has at least the threshold's similarity with this one."""
        if tokens in self.known:
            return bool(tokens)
        seen: set[frozenset[str]] = set()
        for token in self.prefix(tokens):
            for other in self.by_token.get(token, ()):
                self.effort += 1
                if min(len(tokens), len(other)) < self.threshold * max(len(tokens), len(other)) or other in seen:
                    continue
                self.effort += len(tokens)
                if jaccard(tokens, other) >= self.threshold:
                    return True
                seen.add(other)
        return False


def count_near_duplicates(texts: Sequence[str], against: Sequence[str]) -> tuple[int, int]:
    """(how many texts have a near duplicate among others, how many texts were compared).

    All are compared unless that would take more than some seconds. Of very many long texts only the beginnings count.
    """
    each = max(LEAST_EACH, MOST_CHARS // max(1, len(texts) + len(against)))
    mine, others = token_sets(texts, each), token_sets(against, each)
    frequency = Counter(token for tokens in (*mine, *others) for token in tokens)
    index, similar = SimilarSets(frequency), 0
    for tokens in others:
        index.add(tokens)
    for compared, tokens in enumerate(mine, start=1):
        similar += index.has_similar(tokens)
        if index.effort > EFFORT:
            return similar, compared
    return similar, len(mine)


def token_sets(texts: Iterable[str], chars: int) -> list[frozenset[str]]:
    """Token sets of the texts' beginnings; equal tokens are one object."""
    known: dict[str, str] = {}
    return [frozenset(known.setdefault(token, token) for token in text_tokens(text[:chars])) for text in texts]
