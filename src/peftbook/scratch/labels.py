"""Which tokens are graded: labels of a padded batch, and two ways to average their losses."""

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100  # torch's cross-entropy leaves such labels out


def answer_labels(ids: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """The ids of each row's answer, IGNORE before and after it: (b, t).

    ids: (b, t), padded on the right.   starts, ends: (b,), where the answer begins
    and where its row ends, the end-of-turn token inside. The mask knows positions,
    never ids, so the padding may be any token.
    """
    at = torch.arange(ids.shape[1], device=ids.device)
    graded = (at >= starts[:, None]) & (at < ends[:, None])
    return ids.masked_fill(~graded, IGNORE)


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each token, 0 where not graded, and the graded ones: (b, t − 1) both.

    logits: (b, t, V).   labels: (b, t).   Position t grades the label of t + 1.
    """
    labels, scores = labels[:, 1:], logits[:, :-1].transpose(1, 2).float()  # (b, V, t − 1)
    nats = functional.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="none")
    return nats, labels != IGNORE


def mean_over_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ nats / Σ graded over the whole batch: every graded token weighs the same."""
    nats, graded = token_losses(logits, labels)
    return nats.sum() / graded.sum()


def mean_over_examples(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over rows of each row's own mean: every example weighs the same."""
    nats, graded = token_losses(logits, labels)
    return (nats.sum(dim=1) / graded.sum(dim=1)).mean()
