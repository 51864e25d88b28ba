"""Learning from rewards: the estimate against the exact gradient, by listing every answer and every group."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.scratch.policy_gradient import (
    clipped_surrogate,
    group_advantages,
    leave_one_out_advantages,
    policy_gradient_loss,
    reward_bits,
    sample_answers,
)
from peftbook.scratch.preferences import answer_log_probs

VOCABULARY, LENGTH, GROUP = 3, 2, 2
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # (9, 2): all there are
REWARDS = (ANSWERS[:, 0] >= ANSWERS[:, 1]).float()  # 1 for the six that are sorted downwards
few = settings(max_examples=25, deadline=None)


class Table(torch.nn.Module):
    """A policy whose next token depends on the last one: logits are a row of a table."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.rows = torch.nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rows[ids]


def log_probs_of(policy: Table, answers: torch.Tensor) -> torch.Tensor:
    """Of answers to the question 0."""
    ids = torch.cat([torch.zeros(len(answers), 1, dtype=torch.long), answers], dim=1)
    each = policy(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return each.sum(dim=1)


def exact_gradient(policy: Table) -> torch.Tensor:
    """Of the mean reward, summed over every answer."""
    mean = (log_probs_of(policy, ANSWERS).exp() * REWARDS).sum()
    return torch.autograd.grad(mean, policy.rows)[0]


def expected_estimate(policy: Table, advantages) -> torch.Tensor:
    """The mean of the estimate over every group that can be drawn, each with its probability."""
    total = torch.zeros_like(policy.rows)
    for group in itertools.product(range(len(ANSWERS)), repeat=GROUP):
        drawn = torch.tensor(group)
        nats = log_probs_of(policy, ANSWERS[drawn])
        loss = policy_gradient_loss(nats, advantages(REWARDS[drawn][None]).flatten())
        total -= nats.detach().sum().exp() * torch.autograd.grad(loss, policy.rows)[0]
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_is_right_on_average(seed):
    """Without a baseline, and with the mean of the others; the mean of all shrinks it by 1 − 1/G."""
    policy = Table(seed)
    exact = exact_gradient(policy)
    assert exact.abs().max() > 1e-3
    assert torch.allclose(expected_estimate(policy, lambda rewards: rewards), exact)
    assert torch.allclose(expected_estimate(policy, leave_one_out_advantages), exact)
    assert torch.allclose(expected_estimate(policy, group_advantages), (1 - 1 / GROUP) * exact)


def test_dividing_by_the_standard_deviation_changes_the_direction():
    """Over two questions of different difficulty: GRPO's estimate is no multiple of the gradient (Dr. GRPO)."""

    def direction(advantages) -> torch.Tensor:
        """Of the expected pull on log-odds of two questions, whose answers are right with these probabilities."""
        pulls = []
        for right in (0.1, 0.5):
            pull = 0.0
            for rewards in itertools.product((0.0, 1.0), repeat=8):
                chance = math.prod(right if reward else 1 - right for reward in rewards)
                found = advantages(torch.tensor([rewards], dtype=torch.float64))[0]
                pull += chance * float((found * (torch.tensor(rewards) - right)).sum())
            pulls.append(pull)
        vector = torch.tensor(pulls)
        return vector / vector.norm()

    def divided(rewards: torch.Tensor) -> torch.Tensor:
        return group_advantages(rewards) / (rewards.std(dim=-1, keepdim=True) + 1e-8)

    exact = torch.tensor([0.1 * 0.9, 0.5 * 0.5])
    assert torch.allclose(direction(group_advantages), exact / exact.norm(), atol=1e-6)
    assert direction(divided)[0] > 1.2 * (exact / exact.norm())[0], "the hard question weighs more"


def test_a_baseline_takes_variance_away():
    """Rewards of 9 and 10 say the same as 0 and 1, and only the baseline knows."""
    policy = Table(0)
    nats = log_probs_of(policy, ANSWERS)

    def spread(values: torch.Tensor) -> float:
        each = torch.stack([torch.autograd.grad(value * one, policy.rows, retain_graph=True)[0].flatten()
                            for value, one in zip(values, nats, strict=True)])  # fmt: skip
        chance = nats.detach().exp()[:, None]
        return float((chance * (each - (chance * each).sum(dim=0)) ** 2).sum())

    mean = float((nats.detach().exp() * REWARDS).sum())
    assert spread(REWARDS - mean) < spread(REWARDS) < spread(REWARDS + 9) / 10


@few
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8))
def test_advantages_sum_to_zero_and_vanish_where_a_group_agrees(rewards):
    """A question that is always or never answered right teaches nothing; no shift of the rewards is seen."""
    table = torch.tensor([rewards])
    for advantages in (group_advantages, leave_one_out_advantages):
        found = advantages(table)
        assert abs(float(found.sum())) < 1e-5
        assert bool((found.abs() < 1e-6).all()) == (len(set(rewards)) == 1)
        assert torch.allclose(advantages(table + 7), found, atol=1e-5)
    others = [(sum(rewards) - one) / (len(rewards) - 1) for one in rewards]
    assert torch.allclose(leave_one_out_advantages(table)[0], torch.tensor(rewards) - torch.tensor(others), atol=1e-6)


def test_a_group_of_one_is_refused():
    """Its advantage would be zero, and nothing would be learned in silence."""
    for advantages in (group_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match="group of one"):
            advantages(torch.ones(3, 1))


def test_in_the_first_update_nothing_is_clipped():
    """GRPO's surrogate has the gradient of the plain policy gradient where the policy is the one that drew."""
    torch.manual_seed(0)
    tokens = torch.randn(4, 3).log_softmax(-1).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0])
    plain = torch.autograd.grad(policy_gradient_loss(tokens.sum(dim=1), advantages), tokens)[0]
    clipped = torch.autograd.grad(clipped_surrogate(tokens, tokens, advantages, 0.2), tokens)[0]
    assert torch.allclose(plain, clipped)


def test_what_has_gained_enough_is_left_alone():
    """A token whose ratio is beyond 1 + ε gets no more push upwards; downwards it is still pushed."""
    old = torch.zeros(2, 1)
    new = torch.full((2, 1), math.log(1.5)).requires_grad_()
    gradient = torch.autograd.grad(clipped_surrogate(new, old, torch.tensor([1.0, -1.0]), 0.2), new)[0]
    assert gradient[0] == 0 and gradient[1] > 0


def test_answers_are_drawn_from_the_policy():
    """Frequencies of all nine answers, within five standard errors of their probabilities."""
    policy, count = Table(1), 4000
    drawn = sample_answers(policy, torch.zeros(count, 1, dtype=torch.long), LENGTH, torch.Generator().manual_seed(0))
    assert drawn.shape == (count, 1 + LENGTH) and not drawn.requires_grad
    chances = log_probs_of(policy, ANSWERS).exp()
    for answer, chance in zip(ANSWERS, chances.tolist(), strict=True):
        share = (drawn[:, 1:] == answer).all(dim=1).double().mean()
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / count)


def test_the_log_probability_of_what_was_drawn_is_that_of_preferences():
    """One function serves both halves of the chapter."""
    policy = Table(2)
    ids = sample_answers(policy, torch.zeros(5, 1, dtype=torch.long), LENGTH, torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, True]]).expand(5, 3)
    assert torch.allclose(
        answer_log_probs(policy(ids), ids, mask).double(), log_probs_of(policy, ids[:, 1:]), atol=1e-6
    )


@few
@given(st.floats(0, 1))
def test_a_reward_tells_at_most_one_bit(rate):
    """Nothing where it is certain, most where it is a coin, the same for p and 1 − p."""
    assert 0 <= reward_bits(rate) <= 1 == reward_bits(0.5)
    assert math.isclose(reward_bits(rate), reward_bits(1 - rate), abs_tol=1e-9)
    assert reward_bits(0) == reward_bits(1) == 0
