"""What a limit on the length leaves of an example, and what a loss over the rest can say."""

from collections.abc import Iterable


def remaining_tokens(context: int, target: int, limit: int, side: str = "right") -> tuple[int, int]:
    """Tokens of context and of target that are left after a cut at `limit`.

    right: the end is cut, so the target loses max(0, context + target − limit) tokens, at most all.   left: the
    beginning is cut.   Raises ValueError for another side.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}: cut 'left' or 'right'.")
    if side == "right":
        before = min(context, limit)
        return before, min(target, limit - before)
    after = min(target, limit)
    return min(context, limit - after), after


def graded_share(lengths: Iterable[tuple[int, int]], limit: int, side: str = "right") -> float:
    """Share of the target tokens of many examples that a cut leaves. lengths: (context, target) of each."""
    pairs = list(lengths)
    return sum(remaining_tokens(*pair, limit, side)[1] for pair in pairs) / sum(target for _, target in pairs)


def upper_bound(looks: int, level: float = 0.05) -> float:
    """The largest success rate that `looks` outputs without a success leave open: 1 − level^(1 / looks).

    For any larger rate p, the chance (1 − p)^looks to see no success is below `level`.
    """
    return 1 - level ** (1 / looks)
