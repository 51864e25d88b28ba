"""Preferences: learning from pairs of answers, of which one was preferred, with no reward model in between."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional

from peftbook.scratch.lora import LoRALinear


def answer_log_probs(logits: Tensor, ids: Tensor, answer: Tensor) -> Tensor:
    """How probable each answer is as a whole, in nats: log π(y | x) = Σ_t log π(y_t | x, y_<t).

    logits: (n, t, V).   ids: (n, t).   answer: (n, t), bool, True at the tokens of y; False at those of x and at
    padding. Returns (n,).
    """
    each = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (n, t − 1)
    return (each * answer[:, 1:]).sum(dim=1)


def implicit_reward(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The reward under which a policy is the best one that stays near its reference: β log(π(y | x) / π_ref(y | x)).

    The maximum of E[r] − β KL(π ‖ π_ref) is π ∝ π_ref exp(r / β). Solved for r this is the value returned, plus
    β log Z(x), which is the same for every answer to a question.
    log_probs, reference: (n,), of the same answers.   Returns (n,), in the units of β.
    Source: Rafailov et al. 2023, DPO, arXiv:2305.18290, section 4, equation 5.
    """
    return beta * (log_probs - reference)


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """How improbable the preferences are under the policy's own reward: −log σ(r(x, y_w) − r(x, y_l)), the mean.

    By Bradley and Terry the answer y_w is preferred to y_l with probability σ(r(x, y_w) − r(x, y_l)), from which what
    depends on the question alone falls out.
    chosen, rejected: (2, n) each, log-probabilities of y_w and of y_l under the policy and under the reference.
    Returns a scalar in nats, log 2 where the policy is the reference.
    Source: Rafailov et al. 2023, DPO, arXiv:2305.18290, equation 7.
    """
    better, worse = (implicit_reward(policy, reference, beta) for policy, reference in (chosen, rejected))
    return -functional.logsigmoid(better - worse).mean()


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Within it the model is what it was before LoRA: the reference, for the bytes of none.

    γ = 0 adds 0 · B A x to what the frozen layer gives. A merged layer holds its update in the weight itself.
    Raises ValueError for one.
    """
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    if any(layer.merged for layer in layers):
        raise ValueError("a merged layer is no reference: unmerge it first.")
    scalings = [layer.scaling for layer in layers]
    try:
        for layer in layers:
            layer.scaling = 0.0
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling = scaling
