"""pass@k: how likely is one right answer among k, judged from n answers of which c were right?"""

import numpy as np


def pass_at_k(samples: int, right: np.ndarray, k: int) -> np.ndarray:
    """The share of all subsets of k answers that hold a right one: 1 − C(n − c, k) / C(n, k), unbiased.

    Any k of the n answers are k independent draws, so each subset holds a right one with probability 1 − (1 − p)^k, and
    the mean over subsets has that expectation. The quotient is computed as Π (1 − k / i) over i = n − c + 1 … n: no
    factor is large, and where fewer than k answers are wrong the one with i = k is zero.
    samples: n, answers to each question.   right: c, (questions,), integers 0–n.   Returns (questions,), 0–1.
    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    Source: Chen et al. 2021, Codex, arXiv:2107.03374, equation 1 and figure 3.
    """
    counts = check_counts(samples, right, k)
    draws = np.arange(1, samples + 1)
    factors = np.where(draws > samples - counts[:, None], 1 - k / draws, 1.0)  # (questions, n)
    return 1 - factors.prod(axis=1)


def plug_in(samples: int, right: np.ndarray, k: int) -> np.ndarray:
    """1 − (1 − c / n)^k: what c / n in place of p gives. Too low on average for k > 1, since the curve is concave.

    The bias is about −k (k − 1) / 2 · p (1 − p)^(k − 1) / n.   Arguments and errors as of `pass_at_k`.
    """
    return 1 - (1 - check_counts(samples, right, k) / samples) ** k


def reliability(samples: int, right: np.ndarray, k: int) -> np.ndarray:
    """The share of all subsets of k answers that are right throughout: C(c, k) / C(n, k), unbiased for p^k.

    It is one minus the pass@k of the wrong answers.   Arguments and errors as of `pass_at_k`.
    """
    return 1 - pass_at_k(samples, samples - np.asarray(right), k)


def check_counts(samples: int, right: np.ndarray, k: int) -> np.ndarray:
    """c as an array. Raises ValueError for what no set of answers has."""
    counts = np.asarray(right)
    if not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} cannot be judged from {samples} answers: draw {max(k, 1)} or more to each question."
        )
    if counts.ndim != 1 or ((counts < 0) | (counts > samples)).any():
        raise ValueError(f"right counts one number for each question, from 0 to {samples}, not {counts.tolist()}.")
    return counts
