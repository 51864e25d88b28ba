"""Policy gradient: learning from the reward of answers that the model drew itself, with no right one to imitate."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def sample_answers(
    policy: Callable[[Tensor], Tensor], questions: Tensor, length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw `length` tokens after each question from the policy itself: y_t ~ π(· | x, y_<t), at temperature 1.

    policy: ids (n, t) to logits (n, t, V).   questions: (n, q).   Returns (n, q + length).
    Every token reads all before it again; a cache of keys and values draws the same for less.
    """
    ids = questions
    with torch.no_grad():
        for _ in range(length):
            probabilities = policy(ids)[:, -1].float().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return ids


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A loss whose gradient estimates that of minus the mean reward: −mean of A log π(y | x).

    J = Σ_y π(y | x) r(x, y), and ∇π = π ∇log π, so that ∇J = E_y[r ∇log π]. Any b that does not depend on y may be
    taken from r, since E[b ∇log π] = b ∇Σ_y π = 0: A = r − b has the same mean and less variance.
    log_probs: (n,), of answers that the policy drew.   advantages: (n,), through which no gradient flows.
    The value of the loss means nothing; only its gradient does.
    Source: Williams 1992, REINFORCE.
    """
    return -(advantages.detach() * log_probs).mean()


def group_advantages(rewards: Tensor) -> Tensor:
    """What an answer earned above the mean of its group: A_i = r_i − (1/G) Σ_j r_j.

    rewards: (questions, G), of G answers to each question.   Returns the same shape; all zero where a group agrees.
    The mean holds r_i itself, so the gradient comes out as 1 − 1/G of what it should be, in the right direction.
    GRPO also divides by the group's standard deviation, which weighs questions by how sure the model is of them.
    Source: Shao et al. 2024, GRPO, arXiv:2402.03300, section 4.1; without the division Liu et al. 2025, Dr. GRPO,
    arXiv:2503.20783.  Raises ValueError for groups of one.
    """
    if rewards.shape[-1] < 2:
        raise ValueError("a group of one has nothing to be compared with: draw 2 or more answers to each question.")
    return rewards - rewards.mean(dim=-1, keepdim=True)


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """What an answer earned above the mean of the *others*: A_i = r_i − Σ_{j≠i} r_j / (G − 1), which is unbiased.

    It is G / (G − 1) times `group_advantages`; under Adam, which does not see a constant factor, the two train alike.
    rewards: (questions, G).   Source: Ahmadian et al. 2024, RLOO, arXiv:2402.14740.
    """
    size = rewards.shape[-1]
    return group_advantages(rewards) * size / max(size - 1, 1)


def clipped_surrogate(log_probs: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """GRPO's loss without its KL term: −mean of Σ_t min(ρ_t A, clip(ρ_t, 1 − ε, 1 + ε) A), ρ_t = π(y_t) / π_old(y_t).

    log_probs, old: (n, t), of each token under the policy and under the one that drew it.   advantages: (n,).
    In the first update after drawing ρ = 1: nothing is clipped, and the gradient is that of `policy_gradient_loss`.
    Tokens are summed, as Dr. GRPO has it, where GRPO takes the mean over each answer.
    """
    ratio, weight = (log_probs - old.detach()).exp(), advantages.detach()[:, None]
    return -torch.minimum(ratio * weight, ratio.clamp(1 - epsilon, 1 + epsilon) * weight).sum(dim=1).mean()


def reward_bits(rate: float) -> float:
    """The most that one reward of 0 or 1 can tell, in bits: H(p) = −p log2 p − (1 − p) log2(1 − p), at most 1.

    rate: share p of the answers that are rewarded, 0–1. Where none or all are, a reward tells nothing.
    """
    return -sum(share * math.log2(share) for share in (rate, 1 - rate) if share > 0)
