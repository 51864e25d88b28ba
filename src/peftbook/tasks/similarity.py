"""Near duplicates: token sets whose Jaccard similarity is high, found without comparing every pair.

Two sets with similarity of at least t share a token among the first |s| - ceil(t |s|) + 1 of each, rarest first; only
sets that share one are compared. Source: Bayardo, Ma, Srikant 2007, Scaling up all pairs similarity search, section 4.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

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

    def similar(self, tokens: frozenset[str]) -> Iterator[frozenset[str]]:
        """The sets that were added and have at least the threshold's similarity with this one; an equal one first."""
        if tokens in self.known:
            yield tokens
        seen = {tokens}
        for token in self.prefix(tokens):
            for other in self.by_token.get(token, ()):
                self.effort += 1
                if min(len(tokens), len(other)) < self.threshold * max(len(tokens), len(other)) or other in seen:
                    continue
                self.effort += len(tokens)
                seen.add(other)
                if jaccard(tokens, other) >= self.threshold:
                    yield other

    def has_similar(self, tokens: frozenset[str]) -> bool:
        """Whether a set that was added is similar to this one; an empty set is similar to none."""
        return bool(tokens) and next(self.similar(tokens), None) is not None


def near_duplicates(texts: Sequence[str], against: Sequence[str]) -> list[bool]:
    """For each text, whether others have a near duplicate of it.

    All are compared unless that would take more than some seconds: then the list is shorter than the texts. Of very
    many long texts only the beginnings count.
    """
    each = chars_each(len(texts) + len(against))
    mine, others = token_sets(texts, each), token_sets(against, each)
    index = SimilarSets(Counter(token for tokens in (*mine, *others) for token in tokens))
    for tokens in others:
        index.add(tokens)
    found: list[bool] = []
    for tokens in mine:
        found.append(index.has_similar(tokens))
        if index.effort > EFFORT:
            break
    return found


def duplicate_clusters(texts: Sequence[str]) -> list[str]:
    """For each text the name of its cluster: texts that a chain of near duplicates connects share one.

    As far as some seconds find them; a text without words stands for itself.
    """
    sets = token_sets(texts, chars_each(len(texts)))
    index = SimilarSets(Counter(token for tokens in sets for token in tokens))
    names: dict[frozenset[str], str] = {}
    keys = []
    for place, tokens in enumerate(sets):
        own = names.setdefault(tokens, f"{place:09d}") if tokens else f"{place:09d}"
        near = index.similar(tokens) if tokens and index.effort <= EFFORT else ()
        keys.append([own, *(names[other] for other in near)])
        if tokens:
            index.add(tokens)
    return connected(keys)


def connected(keys: Sequence[Sequence[str]]) -> list[str]:
    """For each item, by its keys, the alphabetically first key of all items that a chain of shared keys connects with
    it (union-find).
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for first, *others in keys:
        for other in others:
            one, two = root(first), root(other)
            parent[max(one, two)] = min(one, two)
    return [root(first) for first, *_ in keys]


def chars_each(count: int) -> int:
    """Characters that are compared of each of so many texts."""
    return max(LEAST_EACH, MOST_CHARS // max(1, count))


def token_sets(texts: Iterable[str], chars: int) -> list[frozenset[str]]:
    """Token sets of the texts' beginnings; equal tokens are one object."""
    known: dict[str, str] = {}
    return [frozenset(known.setdefault(token, token) for token in text_tokens(text[:chars])) for text in texts]
