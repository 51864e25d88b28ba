"""ROUGE from scratch: n-grams and the longest common subsequence that two texts share, as F-measures."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain


def tokens(text: str) -> list[str]:
    """Lower-cased runs of a-z and 0-9; every other character separates, and nothing is stemmed.

    Source: rouge_score 0.1.2, tokenize.py.
    """
    return re.findall("[a-z0-9]+", text.lower())


def f_measure(shared: int, written: int, wanted: int) -> float:
    """F = 2PR / (P + R) = 2 shared / (written + wanted), with P = shared / written and R = shared / wanted."""
    return 2 * shared / (written + wanted) if shared else 0.0


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def rouge_n(text: str, reference: str, n: int = 1) -> float:
    """F over clipped n-grams: one that stands k times in one text and l times in the other is shared min(k, l) times.

    Source: Lin 2004, section 2, whose ROUGE-N is the recall; rouge_score 0.1.2 gives P, R and F.
    """
    x, y = (ngrams(tokens(words), n) for words in (text, reference))
    return f_measure((x & y).total(), x.total(), y.total())


def lcs_table(x: Sequence[str], y: Sequence[str]) -> list[list[int]]:
    """Lengths of the longest common subsequences of all beginnings, (len(y) + 1, len(x) + 1); the last is the answer.

    L[i][j] = L[i-1][j-1] + 1 where y_i = x_j, else max(L[i-1][j], L[i][j-1]).   Source: Lin 2004, section 3.
    """
    L = [[0] * (len(x) + 1) for _ in range(len(y) + 1)]
    for i, wanted in enumerate(y):
        for j, written in enumerate(x):
            L[i + 1][j + 1] = L[i][j] + 1 if wanted == written else max(L[i][j + 1], L[i + 1][j])
    return L


def rouge_l(text: str, reference: str) -> float:
    """F over the longest common subsequence: the same words in the same order, with gaps."""
    x, y = tokens(text), tokens(reference)
    return f_measure(lcs_table(x, y)[-1][-1], len(x), len(y))


def lcs_positions(x: Sequence[str], y: Sequence[str]) -> list[int]:
    """Where in y one longest common subsequence stands, read backwards from the end of the table."""
    L, i, j, positions = lcs_table(x, y), len(y), len(x), []
    while i and j:
        if y[i - 1] == x[j - 1]:
            i, j = i - 1, j - 1
            positions.append(i)
        elif L[i][j - 1] > L[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return positions[::-1]


def rouge_lsum(text: str, reference: str) -> float:
    """F over lines: each line of the reference is matched with every line of the text, and the matches are united.

    No word counts more often than it occurs in either text. On texts of one line it is ROUGE-L.
    Source: Lin 2004, section 3.2; the clipping is that of ROUGE-1.5.5 and rouge_score 0.1.2.
    """
    x, y = ([tokens(line) for line in words.split("\n")] for words in (text, reference))
    left = Counter(chain(*x)) & Counter(chain(*y))  # how often each word may still be counted
    shared = 0
    for wanted in y:
        for at in sorted({at for written in x for at in lcs_positions(written, wanted)}):
            if left[wanted[at]]:
                left[wanted[at]] -= 1
                shared += 1
    return f_measure(shared, sum(map(len, x)), sum(map(len, y)))
