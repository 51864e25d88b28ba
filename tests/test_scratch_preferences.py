"""Learning from pairs: the loss against TRL's, its derivation in numbers, and a reference that costs no copy."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from peftbook.scratch.lora import LoRALinear, add_lora
from peftbook.scratch.preferences import answer_log_probs, dpo_loss, implicit_reward, without_lora


def log_probs(seed: int, count: int = 5) -> torch.Tensor:
    """(2, count): log-probabilities of some answers under a policy and under its reference."""
    return -10 * torch.rand(2, count, generator=torch.Generator().manual_seed(seed))


def test_the_log_probability_of_an_answer_is_that_of_its_tokens_alone():
    """Against cross entropy, with answers of different lengths, which start at different places."""
    torch.manual_seed(0)
    logits, ids = torch.randn(2, 6, 7), torch.randint(7, (2, 6))
    answer = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]]).bool()
    found = answer_log_probs(logits, ids, answer)
    for row, (start, end) in enumerate([(2, 6), (1, 3)]):
        nats = functional.cross_entropy(logits[row, start - 1 : end - 1], ids[row, start:end], reduction="sum")
        assert math.isclose(-nats, found[row], rel_tol=1e-5)
    changed = ids.clone()
    changed[1, 3:] = (changed[1, 3:] + 1) % 7
    assert torch.equal(answer_log_probs(logits, changed, answer), found), "padding does not count"


def test_the_probabilities_of_all_answers_sum_to_one():
    """Over every answer of two tokens, for any logits that depend on what was read."""
    torch.manual_seed(1)
    table = torch.randn(4, 4)  # the next token depends on the last one
    ids = torch.tensor([[0, first, second] for first in range(4) for second in range(4)])
    mask = torch.tensor([[False, True, True]]).expand(16, 3)
    assert math.isclose(answer_log_probs(table[ids], ids, mask).exp().sum(), 1, rel_tol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_loss_is_that_of_trl(beta):
    """TRL's sigmoid loss on the difference of its two log-ratios, as its trainer writes it."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("trl is not installed")
    source = (Path(trl.origin).parent / "trainer" / "dpo_trainer.py").read_text(encoding="utf-8")  # seconds to import
    assert "chosen_logratios = chosen_logps - ref_chosen_logps" in source
    assert "delta_score = chosen_scores - rejected_scores" in source
    assert "per_sequence_loss = -F.logsigmoid(self.beta * delta_score)" in source
    chosen, rejected = log_probs(0), log_probs(1)
    delta = (chosen[0] - chosen[1]) - (rejected[0] - rejected[1])
    assert torch.allclose(dpo_loss(chosen, rejected, beta), -functional.logsigmoid(beta * delta).mean())


def test_before_training_every_preference_is_a_coin():
    """Where the policy is its reference the loss is log 2, whatever the answers are worth to it."""
    chosen, rejected = log_probs(0)[:1].expand(2, -1), log_probs(1)[:1].expand(2, -1)
    assert math.isclose(dpo_loss(chosen, rejected, 0.1), math.log(2), rel_tol=1e-6)


def test_the_policy_is_the_best_one_for_its_own_reward():
    """No other policy has a higher E[r] − β KL(π ‖ π_ref) under the implicit reward, over all answers to a question."""
    generator, beta = torch.Generator().manual_seed(2), 0.3
    policy, reference = torch.randn(2, 9, generator=generator).log_softmax(-1)
    reward = implicit_reward(policy, reference, beta)

    def value(other: torch.Tensor) -> float:
        return float((other.exp() * (reward - beta * (other - reference))).sum())

    best = value(policy)
    for step in (0.01, 0.1, 1.0):
        for _ in range(20):
            assert value((policy + step * torch.randn(9, generator=generator)).log_softmax(-1)) < best


def test_the_gradient_weighs_a_pair_by_how_wrong_the_reward_is():
    """∇ = −β σ(r_l − r_w) (∇log π(y_w) − ∇log π(y_l)), section 4 of the paper: a settled pair moves nothing."""
    chosen, rejected, beta = log_probs(3, 1), log_probs(4, 1), 0.5
    policy = torch.stack([chosen[0], rejected[0]]).requires_grad_()
    dpo_loss(torch.stack([policy[0], chosen[1]]), torch.stack([policy[1], rejected[1]]), beta).backward()
    wrong = torch.sigmoid(implicit_reward(*rejected, beta) - implicit_reward(*chosen, beta))
    assert policy.grad is not None
    assert torch.allclose(policy.grad, torch.stack([-beta * wrong, beta * wrong]), rtol=1e-5)


def test_without_its_adapter_a_model_is_its_own_reference():
    """Bit by bit, and with its adapter again afterwards, also where something inside went wrong."""
    torch.manual_seed(0)
    reference = torch.nn.Linear(6, 3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 3))
    model[0].load_state_dict(reference.state_dict())
    add_lora(model, {"0"}, rank=2, alpha=8)
    assert isinstance(model[0], LoRALinear)
    torch.nn.init.normal_(model[0].B)
    x = torch.randn(4, 6)
    tuned = model(x)
    assert not torch.allclose(tuned, reference(x))
    with pytest.raises(RuntimeError, match="inside"), without_lora(model):
        assert torch.equal(model(x), reference(x))
        raise RuntimeError("inside")
    assert torch.equal(model(x), tuned)


def test_a_merged_adapter_cannot_be_switched_off():
    """Its update is in the weight: the reference would be the policy, and every preference a coin."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 3))
    add_lora(model, {"0"}, rank=2, alpha=8)
    assert isinstance(model[0], LoRALinear)
    model[0].merge()
    with pytest.raises(ValueError, match="unmerge"), without_lora(model):
        pass
