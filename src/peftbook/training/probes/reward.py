"""Sorting learned from a reward: a small Llama that sorts some lists right goes on with its own answers alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from statistics import fmean

import numpy as np
import torch
from torch import nn

from peftbook.core import specs
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.scratch.policy_gradient import leave_one_out_advantages, policy_gradient_loss, reward_bits
from peftbook.scratch.preferences import answer_log_probs
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method, causal_model, trainable_state
from peftbook.training.probes import Findings, positive
from peftbook.training.probes.synthetic import Alphabet, exact, fit, small_llama

HELD = {"validation": 512, "test": 1024}
HELD_SEED = 2503  # of the validation and test lists, which are the same whatever the seed of a run
ALPHA = 32  # of LoRA at every rank, as in the source
WARM = 0.1  # share of the steps over which the rate rises
MAX_GRAD_NORM = 1.0
EVERY = 20  # steps between two looks at the validation lists

Numbers = tuple[int, ...]


def new_lists(
    rng: np.random.Generator, values: int, length: int, taken: Collection[frozenset] = ()
) -> Iterator[Numbers]:
    """Lists of different values 0 … values − 1 in random order, without end; none has a set of values in `taken`."""
    while True:
        numbers = tuple(rng.permutation(values)[:length].tolist())
        if frozenset(numbers) not in taken:
            yield numbers


def held_lists(values: int, length: int) -> dict[str, list[Numbers]]:
    """The lists on which rates are chosen and those on which arms are compared, no set of values twice."""
    rng, taken = np.random.default_rng(HELD_SEED), set[frozenset]()
    held: dict[str, list[Numbers]] = {}
    for split, size in HELD.items():
        held[split] = []
        for _ in range(size):
            held[split].append(next(new_lists(rng, values, length, taken)))
            taken.add(frozenset(held[split][-1]))
    return held


def sorting(numbers: Numbers, values: int) -> Encoded:
    """The list, a separator (the id `values`) and the list in ascending order, which is the answer."""
    return Encoded((*numbers, values, *sorted(numbers)), len(numbers) + 1, False)


def method_of(probe: specs.Probe) -> Method:
    """LoRA of the probe's rank on its targets in the first `layers` layers; full fine-tuning at rank 0."""
    if not (rank := probe.whole("rank")):
        return Full()
    layers = tuple(range(probe.whole("layers")))
    return LoRA(rank=rank, alpha=ALPHA, targets=probe.words("targets"), layers=layers)


@torch.no_grad()
def draw(model: nn.Module, questions: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """`scratch.policy_gradient.sample_answers` with a cache: each token is read once."""
    base, ids = causal_model(model), questions
    out = base(input_ids=ids, use_cache=True)
    while True:
        drawn = torch.multinomial(out.logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
        if ids.shape[1] == questions.shape[1] + length:
            return ids
        out = base(input_ids=drawn, cache=out.cache, use_cache=True)


def rewards_of(ids: torch.Tensor, length: int) -> torch.Tensor:
    """1 for each row whose last `length` ids are its first ones in ascending order, else 0."""
    return (ids[:, -length:] == ids[:, :length].sort(dim=1).values).all(dim=1).float()


def sort_by_reward(probe: specs.Probe) -> Findings:
    """Accuracy of sorting after a policy gradient on the model's own answers, each rewarded by 1 if it is all right.

    A Llama is trained from random weights on `start_steps` batches of lists with their answers, and stops while it
    sorts some of them. From this start it learns from rewards alone: each step draws `group` answers to each of
    `questions` new lists, and takes one AdamW step on `policy_gradient_loss` with leave-one-out advantages. It is GRPO
    without its KL term, without the division by the standard deviation and, as every batch is used once, with nothing
    to clip.

    settings: depth, hidden, heads; values, length; start_steps, start_batch, start_rate; rank (0 is full fine-tuning),
    targets, layers; steps, questions, group, rate; split, whose lists are asked at the end.  seed: of weights, training
    lists and draws, of which the start and the lists are the same for every method.
    measurements: start_accuracy, accuracy on the split; parameters; episodes; bits, the most that the rewards told
    (Σ over groups of G · H(share rewarded)).  curve: `reward`, the share of each step's answers that were right;
    `validation_accuracy` at every EVERY steps.  per_example: start_exact, exact, 0 or 1 for each list of the split.
    A run whose loss is not finite ends there, with no list right.
    """
    steps, questions, group = positive(probe, "steps", "questions", "group")
    values, length = positive(probe, "values", "length")
    held = {split: [sorting(one, values) for one in lists] for split, lists in held_lists(values, length).items()}
    taken = {frozenset(item.ids[:length]) for items in held.values() for item in items}
    lists = new_lists(np.random.default_rng(probe.seed), values, length, taken)
    start = supervised_start(probe, lists)
    asked = held[probe.word("split")]
    before = exact(start, asked)
    model = apply_method(copy.deepcopy(start), method_of(probe), probe.seed, Alphabet())
    generator = torch.Generator().manual_seed(probe.seed)
    parameters = list(trainable_state(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=probe.number("rate"), weight_decay=0.0, fused=True)
    warm = max(1, round(WARM * steps))
    shares: list[torch.Tensor] = []
    accuracies: list[float] = []
    for step in range(steps):
        if step % EVERY == 0:
            accuracies.append(fmean(exact(model, held["validation"])))
        asking = torch.tensor([(*next(lists), values) for _ in range(questions)]).repeat_interleave(group, dim=0)
        ids = draw(model, asking, length, generator)
        rewards = rewards_of(ids, length).view(questions, group)
        model.train()
        logits = causal_model(model)(input_ids=ids, use_cache=False).logits
        answer = torch.arange(ids.shape[1]).expand_as(ids) > length
        loss = policy_gradient_loss(answer_log_probs(logits, ids, answer), leave_one_out_advantages(rewards).flatten())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        if not math.isfinite(loss.item() + norm.item()):
            break
        for settings in optimizer.param_groups:
            settings["lr"] = probe.number("rate") * min(1.0, (step + 1) / warm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.eval()
        shares.append(rewards.mean(dim=1))
    finite = len(shares) == steps
    after = exact(model, asked) if finite else [0.0] * len(asked)
    accuracies.append(fmean(exact(model, held["validation"])) if finite else 0.0)
    return Findings(
        measurements={
            "start_accuracy": fmean(before),
            "accuracy": fmean(after),
            "parameters": sum(value.numel() for value in parameters),
            "episodes": len(shares) * questions * group,
            "bits": group * math.fsum(reward_bits(share) for step in shares for share in step.tolist()),
        },
        curve={
            "reward": [round(step.mean().item(), 6) for step in shares],
            "validation_accuracy": accuracies,
        },
        per_example={"start_exact": before, "exact": after},
    )


def supervised_start(probe: specs.Probe, lists: Iterator[Numbers]) -> nn.Module:
    """A Llama that was shown sorted lists for too short a time to sort them all."""
    depth, hidden, heads, values, steps, batch = positive(
        probe, "depth", "hidden", "heads", "values", "start_steps", "start_batch"
    )
    model = small_llama(depth, hidden, heads, values + 1, probe.seed)
    shown = [sorting(next(lists), values) for _ in range(steps * batch)]
    fit(model, shown, steps, batch, probe.number("start_rate"), probe.seed)
    return model.eval()
