"""Small Llamas made here, on tokens that stand for nothing: what a prompt cannot learn, and how much an adapter stores.

Both measurements train from scratch in one process, in float32, and need neither the embedded model nor a tokenizer.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from peftbook.core import specs
from peftbook.core.errors import Diverged, InputError
from peftbook.methods import Method
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method, causal_model, hidden_states, trainable_state
from peftbook.training.loop import losses, train
from peftbook.training.probes import Findings

# --- sorting ---------------------------------------------------------------------------------------------------

VALUES = 16  # tokens 0–15; then the separator and one marker for each task of pretraining
SEPARATOR = VALUES
LIST_LENGTH = 6
TASKS: dict[str, Callable[[Sequence[int]], list[int]]] = {
    "ascending": sorted,
    "copy": list,
    "successor": lambda numbers: [(number + 1) % VALUES for number in numbers],
    "descending": lambda numbers: sorted(numbers, reverse=True),
}
PRETRAINED = ("ascending", "copy", "successor")
MARKERS = {name: SEPARATOR + 1 + at for at, name in enumerate(PRETRAINED)}
VOCABULARY = SEPARATOR + 1 + len(PRETRAINED)
UNTAUGHT = VOCABULARY  # a marker that pretraining never shows
HELD = {"validation": 256, "test": 512}
BATCH = 64


class Alphabet:
    """What initialising a prompt asks of a tokenizer: the ids that are no values."""

    all_special_ids = tuple(range(SEPARATOR, UNTAUGHT + 1))


@dataclass(frozen=True)
class Adaptation:
    """A method, the task it is trained for, and its grid of learning rates."""

    name: str
    method: Method
    task: str
    rates: tuple[float, ...]


def sequence(numbers: Sequence[int], task: str, marker: str) -> Encoded:
    """marker, list, separator, answer: the answer is what is learned. A marker of no task is UNTAUGHT."""
    question = (MARKERS.get(marker, UNTAUGHT), *numbers, SEPARATOR)
    return Encoded((*question, *TASKS[task](numbers)), len(question), False)


def lists_by_split(seed: int, count: int) -> dict[str, list[tuple[int, ...]]]:
    """Lists of different values in random order: `count` for training; no set of values is in two splits."""
    rng = np.random.default_rng(seed)
    sets = list(itertools.combinations(range(VALUES), LIST_LENGTH))
    order = rng.permutation(len(sets)).tolist()
    held = {split: [order.pop() for _ in range(size)] for split, size in HELD.items()}
    picks = held | {"train": [order[at] for at in rng.integers(len(order), size=count)]}
    return {split: [tuple(rng.permutation(sets[at]).tolist()) for at in chosen] for split, chosen in picks.items()}


def small_llama(depth: int, hidden: int, heads: int, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights of standard deviation 1/√hidden, so that every layer passes its input's scale on."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=128,
            initializer_range=hidden**-0.5,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def fit(model: nn.Module, data: list[Encoded], steps: int, batch: int, rate: float, seed: int) -> float:
    """Train for `steps` batches of equally long examples; returns the last loss, infinite where it diverged."""
    budget = specs.Budget(tokens=steps * batch * len(data[0].ids), batch_size=batch, learning_rate=rate)
    try:
        return train(model, data, budget, seed=seed, pad_id=0, dtype="fp32").losses[-1]
    except Diverged:
        return math.inf


@torch.no_grad()
def exact(model: nn.Module, data: list[Encoded]) -> list[float]:
    """1 for each example whose whole answer is the most probable one token by token, as greedy decoding writes it.

    All right with the right answer before it, or wrong somewhere: for a whole answer that is the same as decoding.
    """
    model.eval()
    ids, start = torch.tensor([item.ids for item in data]), data[0].start
    logits = causal_model(model).lm_head(hidden_states(model, ids)[:, start - 1 : -1])
    return (logits.argmax(-1) == ids[:, start:]).all(dim=1).float().tolist()


def mean_nats(model: nn.Module, data: list[Encoded]) -> float:
    """Nats per label token."""
    nats, counts = losses(model, data, pad_id=0, batch_size=256, dtype="fp32")
    return math.fsum(nats) / sum(counts)


def sort_by_depth(probe: specs.Probe) -> Findings:
    """Accuracy on descending order of a model that learned ascending order, by method of adaptation.

    A Llama of settings["depth"] layers learns to sort six of sixteen values in ascending order, to copy them, and to
    name their successors, each announced by a marker. Then, with another marker before every list, its frozen weights
    are adapted to descending order by a prompt, a prefix, LoRA of rank 1 and of rank 4 on all linear layers. One more
    prompt is to bring ascending order back. Each arm has its own grid of rates; the rate with the highest validation
    accuracy (then the lowest loss) is tested.

    settings: depth, hidden, heads, length (virtual tokens), pretrain_steps, pretrain_rate, steps, prompt_rates,
    prefix_rates, lora_rates; marker, which is `untaught`.  seed: of weights, lists and batches.
    per_example: `<arm>_exact`, 0 or 1 for the 512 test lists.

    Source: Petrov, Torr and Bibi 2023, arXiv:2310.19698: a prefix leaves the relative attention over the content of
    the first layer as it is.
    """
    depth, steps, pretrain_steps, length, hidden, heads = map(
        probe.whole, ("depth", "steps", "pretrain_steps", "length", "hidden", "heads")
    )
    rates, seed = {name: probe.numbers(f"{name}_rates") for name in ("prompt", "prefix", "lora")}, probe.seed
    arms = (
        Adaptation("prompt", PromptTuning(length=length), "descending", rates["prompt"]),
        Adaptation("prefix", Prefix(length=length), "descending", rates["prefix"]),
        Adaptation("lora", LoRA(rank=1, alpha=2), "descending", rates["lora"]),
        Adaptation("lora4", LoRA(rank=4, alpha=8), "descending", rates["lora"]),
        Adaptation("prompt_ascending", PromptTuning(length=length), "ascending", rates["prompt"]),
    )
    lists = lists_by_split(seed, max(pretrain_steps, steps) * BATCH)
    base = small_llama(depth, hidden, heads, UNTAUGHT + 1, seed)
    tasks = itertools.cycle(PRETRAINED)
    mixed = [sequence(numbers, task, task) for numbers, task in zip(lists["train"], tasks, strict=False)]
    fit(base, mixed, pretrain_steps, BATCH, probe.number("pretrain_rate"), seed)
    pretrained: dict[str, float | int | None] = {}
    for task in PRETRAINED:
        right = exact(base, [sequence(numbers, task, task) for numbers in lists["test"]])
        pretrained[f"pretrained_{task}_accuracy"] = fmean(right)
    parts = [Findings(pretrained), *(adapt(base, arm, lists, steps, seed) for arm in arms)]
    fields = ("measurements", "curve", "per_example")
    return Findings(**{name: {k: v for part in parts for k, v in getattr(part, name).items()} for name in fields})


def adapt(
    base: nn.Module, arm: Adaptation, lists: Mapping[str, Sequence[tuple[int, ...]]], steps: int, seed: int
) -> Findings:
    """What an arm reaches: copies of a model adapted at each of its rates, and a test of the best of them."""
    data = {split: [sequence(numbers, arm.task, "untaught") for numbers in chosen] for split, chosen in lists.items()}
    measured: dict[str, float | int | None] = {"accuracy_before": fmean(exact(base, data["test"]))}
    trials: list[tuple[float, float]] = []
    right: list[float] = []
    for rate in arm.rates:
        tuned = apply_method(copy.deepcopy(base), arm.method, seed, Alphabet())
        measured["parameters"] = sum(value.numel() for value in trainable_state(tuned).values())
        finite = math.isfinite(fit(tuned, data["train"][: steps * BATCH], steps, BATCH, rate, seed))
        held = data["validation"]
        trials.append((fmean(exact(tuned, held)), -mean_nats(tuned, held)) if finite else DIVERGED)
        if trials[-1] > max(trials[:-1], default=(-math.inf, 0.0)):
            measured["rate"], right = rate, exact(tuned, data["test"]) if finite else [0.0] * HELD["test"]
    measured["accuracy"] = fmean(right)
    curve = {
        "rates": list(arm.rates),
        "validation_accuracy": [accuracy for accuracy, _ in trials],
        "validation_loss_nats": [round(-loss, 6) for _, loss in trials],
    }
    return Findings(
        {f"{arm.name}_{name}": value for name, value in measured.items()},
        {f"{arm.name}_{name}": values for name, values in curve.items()},
        {f"{arm.name}_exact": right},
    )


DIVERGED = (0.0, -1e9)  # no accuracy, and a loss that JSON can hold


# --- recall ----------------------------------------------------------------------------------------------------

KEY_TOKENS, KEY_SYMBOLS = 3, 64


def random_pairs(count: int, values: int, seed: int) -> list[Encoded]:
    """`count` different keys of three symbols, each with a value drawn independently and uniformly from `values`.

    Ids 0 … 63 are the symbols, 64 … 63 + values the values. The one label is the value.
    """
    if count > KEY_SYMBOLS**KEY_TOKENS:
        raise InputError(f"There are only {KEY_SYMBOLS**KEY_TOKENS} different keys: ask for fewer than {count} pairs.")
    rng = np.random.default_rng(seed)
    keys = rng.choice(KEY_SYMBOLS**KEY_TOKENS, size=count, replace=False)
    symbols = np.stack(np.unravel_index(keys, (KEY_SYMBOLS,) * KEY_TOKENS), axis=1)
    drawn = KEY_SYMBOLS + rng.integers(values, size=count)
    return [
        Encoded((*key, value), KEY_TOKENS, False) for key, value in zip(symbols.tolist(), drawn.tolist(), strict=True)
    ]


def stored_bits(nats: Sequence[float], values: int) -> float:
    """Bits about the values that the model holds: max(0, Σ over pairs of (log2(values) − NLL / ln 2)).

    nats: negative log-likelihood of each pair's value given its key. A uniform guess stores 0 bits, certainty
    log2(values) for each pair. The sum is clipped, not its terms: clipping single pairs would turn noise into bits.
    Source: Allen-Zhu and Li 2024, arXiv:2404.05405, section 3; Morris et al. 2025, arXiv:2505.24832, section 3.
    """
    return max(0.0, len(nats) * math.log2(values) - math.fsum(nats) / math.log(2))


def recall_bits(probe: specs.Probe) -> Findings:
    """Bits about random pairs that LoRA on q and v of a frozen random Llama stores after a number of exposures.

    settings: depth, hidden, heads of the Llama; rank; layers (the first ones, which are adapted); pairs; values;
    exposures (epochs); batch; rates.
    The rate that stores most is reported: there is nothing to generalise to, so the training pairs are the measure.
    measurements: stored_bits (at the best rate), parameters, data_bits (what there is to store), accuracy.
    curve: `stored_bits` at each of `rates`.  seed: of weights, pairs and batches.
    """
    seed = probe.seed
    depth, hidden, heads, rank, layers, pairs, values, exposures, batch = map(
        probe.whole, ("depth", "hidden", "heads", "rank", "layers", "pairs", "values", "exposures", "batch")
    )
    data = random_pairs(pairs, values, seed)
    base = small_llama(depth, hidden, heads, KEY_SYMBOLS + values, seed)
    targets, adapted = ("q_proj", "v_proj"), tuple(range(layers))
    method = LoRA(rank=rank, alpha=2 * rank, targets=targets, layers=adapted)
    rates = probe.numbers("rates")
    bits, accuracies, parameters = [], [], 0
    for rate in rates:
        tuned = apply_method(copy.deepcopy(base), method, seed)
        parameters = sum(value.numel() for value in trainable_state(tuned).values())
        if math.isfinite(fit(tuned, data, exposures * math.ceil(pairs / batch), batch, rate, seed)):
            nats, _ = losses(tuned, data, pad_id=0, batch_size=1024, dtype="fp32")
            bits.append(stored_bits(nats, values))
            accuracies.append(fmean(exact(tuned, data)))
        else:
            bits.append(0.0)
            accuracies.append(0.0)
    best = max(range(len(rates)), key=lambda at: bits[at])
    return Findings(
        measurements={
            "stored_bits": bits[best],
            "data_bits": pairs * math.log2(values),
            "parameters": parameters,
            "rate": rates[best],
            "accuracy": accuracies[best],
            "steps": exposures * math.ceil(pairs / batch),
        },
        curve={"rates": list(rates), "stored_bits": bits, "accuracy": accuracies},
    )
