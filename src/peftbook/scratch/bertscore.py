"""BERTScore from scratch: greedy matching of word vectors by cosine, idf weights and rescaling."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def greedy_match(
    x: Tensor, y: Tensor, x_weights: Tensor | None = None, y_weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """P, R and F1 = 2PR / (P + R) of a text x and its reference y, each a scalar.

    R = sum_j w_j max_i cos(x_i, y_j) / sum_j w_j: each word of the reference takes its best partner in the text,
    taken or not. P is the same with x and y exchanged.
    x: (n, d).   y: (m, d).   x_weights, y_weights: (n,) and (m,), all equal if None.
    Source: Zhang et al. 2019, BERTScore, arXiv:1904.09675, section 3.
    """
    cosines = nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(y, dim=-1).T  # (n, m)
    x_weights = torch.ones(len(x)) if x_weights is None else x_weights
    y_weights = torch.ones(len(y)) if y_weights is None else y_weights
    precision = (x_weights * cosines.amax(dim=1)).sum() / x_weights.sum()
    recall = (y_weights * cosines.amax(dim=0)).sum() / y_weights.sum()
    return precision, recall, 2 * precision * recall / (precision + recall)


def idf(references: Sequence[Sequence[str]]) -> dict[str, float]:
    """log((M + 1) / (df + 1)) of each word, df of the M references containing it; an unseen one has log(M + 1).

    Source: bert_score 0.3.13, get_idf_dict; section 3 of the paper without the ones.
    """
    df = Counter(word for words in references for word in set(words))
    return {word: math.log((len(references) + 1) / (count + 1)) for word, count in df.items()}


def rescale(score: float, baseline: float) -> float:
    """(score - b) / (1 - b): 0 at the mean score of random pairs, 1 at that of equal texts."""
    return (score - baseline) / (1 - baseline)
