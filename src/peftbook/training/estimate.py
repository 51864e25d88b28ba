"""How long a run will take on this machine, from its batches and the machine's rates: training, loss, generation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import TypeAdapter

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape, Setup, read_shape
from peftbook.memory.time_model import Rates, Symbols, forward_seconds, layers_seconds, step_seconds
from peftbook.runtime.processes import fast_exit
from peftbook.runtime.resources import generation_batch, loss_batch, training_setup
from peftbook.tasks import TaskData, get_task
from peftbook.training.calibration import machine_rates
from peftbook.training.encode import (
    Encoded,
    batch_plan,
    encode_example,
    encode_prompt,
    encode_training,
    shared_prefix,
    sorted_batches,
)
from peftbook.training.forward import FUSED_TOKENS, SHORT_TOKENS
from peftbook.training.models import load_tokenizer, resolve


def estimate(run: specs.Run) -> dict[str, float]:
    """Predicted seconds of a run by part, before its model is loaded. Raises InputError where none can be made."""
    source, revision = resolve(run.model)
    tokenizer, task = load_tokenizer(source, revision), get_task(run.task.name)
    data = encode_training(tokenizer, task, run.budget) if run.budget else []
    return predicted_seconds(run, read_shape(source), task, tokenizer, data, machine_rates(run.platform))


def predicted_seconds(
    run: specs.Run, shape: DecoderShape, task: TaskData, tokenizer, data: Sequence[Encoded], rates: Rates
) -> dict[str, float]:
    """Seconds of a run by part: train, loss, generate. data: its encoded training examples."""
    setup, parts = training_setup(run, shape), {}
    if run.budget is not None:
        parts["train"] = budget_seconds(shape, setup, rates, data, run.budget, run.seed)
    examples = task.splits[run.evaluation.split]
    shots = run.method.examples_shown
    some = tuple(task.splits["train"][:shots])
    limit = run.budget.max_length if run.budget else specs.MOST_LENGTH
    graded = run.evaluation.chosen(examples, run.evaluation.n_loss)
    encoded = [encode_example(tokenizer, task, one, limit, some) for one in graded]
    order = sorted_batches([len(one.ids) for one in encoded], loss_batch(shots))
    batches = [[encoded[index] for index in batch] for batch in order]
    scored = replace(setup, checkpointing=False)
    parts["loss"] = sum_of(forward_seconds(shape, scored, rates, symbols_of(scored, batches)))
    if run.evaluation.n_generate:
        chosen = run.evaluation.chosen(examples, run.evaluation.n_generate)
        pairs = [
            (len(encode_prompt(tokenizer, task, one, some)), len(tokenizer.encode(one.target)) + 1) for one in chosen
        ]
        parts["generate"] = generation_seconds(shape, run, rates, pairs, generation_batch(shots))
    return {name: round(seconds, 2) for name, seconds in parts.items()}


def budget_seconds(
    shape: DecoderShape, setup: Setup, rates: Rates, data: Sequence[Encoded], budget: specs.Budget, seed: int
) -> float:
    """Seconds of training on a budget: whole epochs at the seconds of the first one, and the batches of what is left.

    epochs · seconds(first epoch) + seconds(rest), with tokens = epochs · (tokens of an epoch) + rest. Each epoch has
    the same examples in other batches, so that a budget of several epochs is approximate, and a smaller one is not.
    """
    lengths = [len(one.ids) for one in data]

    def seconds(tokens: int) -> float:
        plan = batch_plan(lengths, budget.batch_size, tokens, seed)
        return training_seconds(shape, setup, rates, [[data[index] for index in batch] for batch in plan])

    epochs, rest = divmod(budget.trained_tokens, max(1, sum(lengths)))
    return (epochs * seconds(sum(lengths)) if epochs else 0.0) + (seconds(rest) if rest else 0.0)


def training_seconds(shape: DecoderShape, setup: Setup, rates: Rates, batches: Sequence[Sequence[Encoded]]) -> float:
    """Seconds of all training steps, with padding or without, and with the attention that the loop chooses."""
    total = 0.0
    for attention, some in by_attention(setup, batches).items():
        chosen = replace(setup, attention=attention)
        together = symbols_of(setup, some)
        total += sum_of(step_seconds(shape, chosen, rates, together, clipped=True))
        if caches(setup):
            total += sum_of(layers_seconds(shape, chosen, rates, before_rows(setup, some)))
    return total


def by_attention(setup: Setup, batches: Sequence[Sequence[Encoded]]) -> dict[str, list[Sequence[Encoded]]]:
    """Attention → the batches that it is chosen for."""
    found: dict[str, list[Sequence[Encoded]]] = {}
    for batch in batches:
        short = setup.device == "cpu" and width_of(batch) <= (FUSED_TOKENS if setup.packed else SHORT_TOKENS)
        found.setdefault("eager" if short else "sdpa", []).append(batch)
    return found


def symbols_of(setup: Setup, batches: Sequence[Sequence[Encoded]]) -> Symbols:
    """Rows, tokens of a row beyond what all share, tokens that attention sees, and labels, of every batch.

    Without padding they are means over the rows, each of which has its part of what all share, once. Padded rows of
    checkpointed layers share nothing, and each has the soft prompt before it.
    """
    rows = np.array([len(batch) for batch in batches])
    once = setup.packed or caches(setup)
    shared = np.array([shared_prefix(batch) if once else 0 for batch in batches])
    width = np.array([width_of(batch) for batch in batches])
    labels = np.array([sum(one.label_tokens for one in batch) for batch in batches])
    virtual = setup.symbols["P"]
    if setup.packed:
        lengths = np.array([sum(len(one.ids) for one in batch) for batch in batches])
        common = shared + virtual * (setup.method == "prompt")
        own = (lengths + common) / rows - shared - 1
        return {"b": rows / 1, "s": own, "t": own, "k": lengths / rows + virtual, "n": labels / 1}
    own = width - shared + virtual * (not once and setup.method == "prompt")
    return {"b": rows, "s": own, "t": own, "k": width + virtual, "n": labels}


def before_rows(setup: Setup, batches: Sequence[Sequence[Encoded]]) -> Symbols:
    """What stands before every row, a soft prompt and shared tokens: one row of its own."""
    virtual = setup.symbols["P"]
    own = np.array([shared_prefix(batch) for batch in batches]) + virtual * (setup.method == "prompt")
    return {"b": 1, "s": own, "t": own, "k": own + virtual * (setup.method == "prefix"), "n": 0}


def caches(setup: Setup) -> bool:
    """Whether what stands before all rows runs once, by keys and values in a cache."""
    return not setup.packed and not setup.checkpointing


def width_of(batch: Sequence[Encoded]) -> int:
    """Tokens of the longest row."""
    return max(len(one.ids) for one in batch)


def generation_seconds(
    shape: DecoderShape, run: specs.Run, rates: Rates, pairs: Sequence[tuple[int, int]], batch_size: int
) -> float:
    """Seconds of greedy generation. pairs: tokens of each prompt, and of its reference, which the answer is taken to be
    as long as.
    """
    setup = training_setup(run, shape)
    autocast = run.evaluation.generation_dtype != "fp32" and setup.dtype == "fp32"
    plain = replace(setup, autocast=autocast, held=autocast and setup.method != "full")
    virtual, most = plain.symbols["P"], run.evaluation.max_new_tokens
    rows, own, seen = [], [], []
    for batch in sorted_batches([prompt for prompt, _ in pairs], batch_size):
        asked = [pairs[index][0] for index in batch]
        width = max(asked)
        read = sum(asked) / len(asked) if run.packed and run.task.own else width
        answers = [min(pairs[index][1], most) for index in batch]
        for step in range(max(answers)):
            rows.append(sum(answer > step for answer in answers))
            own.append(1 if step else read)
            seen.append((width + step if step else read) + virtual)
    b, t, k = (np.array(values, dtype=float) for values in (rows, own, seen))
    return sum_of(forward_seconds(shape, plain, rates, {"b": b, "s": t, "t": t, "k": k, "n": b}))


def sum_of(parts) -> float:
    """All parts and all steps together: a part that is the same in every step counts in each."""
    return float(np.sum(np.sum(np.broadcast_arrays(*parts.values()), axis=0)))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure this machine unless it is known; then for every spec on standard input, one a line, print its predicted
    seconds, or an empty line where there are none. OMP_NUM_THREADS says how many threads a run will have.

    argv: the platform to measure, without it the GPU where there is one.
    """
    platform, *_ = [*(sys.argv[1:] if argv is None else argv), "cuda" if torch.cuda.is_available() else "cpu"]
    machine_rates(platform)
    for line in sys.stdin:
        run = TypeAdapter(specs.Run | specs.Probe).validate_json(line)
        try:
            print(sum(estimate(run).values()) if isinstance(run, specs.Run) else "", flush=True)
        except InputError:
            print("", flush=True)


if __name__ == "__main__":
    with fast_exit():
        main()
