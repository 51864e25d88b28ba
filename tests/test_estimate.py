"""The time that a run will take: the operations of its own batches, and what comes of it in record and queue."""

from __future__ import annotations

import contextlib
import math
import sys
import time

import pytest
import torch
from test_queue import Worker, a_run, a_study, interpreter
from test_time_model import rates
from tiny import NumberTokenizer, random_examples, tiny_llama, tiny_task
from torch.utils.flop_counter import FlopCounterMode

from peftbook.core import specs
from peftbook.core.records import Store
from peftbook.memory import shape_from_config
from peftbook.memory.time_model import Curve
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.runtime.durations import Estimates, predicted_here
from peftbook.runtime.queue import run_studies
from peftbook.runtime.resources import training_setup
from peftbook.training import estimate, execute, loop
from peftbook.training.encode import Encoded, batch_plan
from peftbook.training.forward import apply_method
from peftbook.training.packed import packed_rows

METHODS = {
    "full": Full(), "lora": LoRA(rank=2), "lora_fa": LoRA(rank=2, freeze_a=True),
    "prompt": PromptTuning(length=3), "ia3": IA3(),
}  # fmt: skip
TINY = shape_from_config(tiny_llama().config.to_dict())
EVERYTHING = rates(1e-9, 1e-10, Curve((10.0, 1e4), (1e-6, 1e-4)), 1e-5)


def trained(method: Method, **fields) -> specs.Run:
    """A run of a method in float32."""
    values = {"budget": specs.Budget(tokens=1, batch_size=8, learning_rate=1e-3), "dtype": "fp32"}
    return a_run(0, method=method, **values | fields)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_operations_of_a_step_are_those_that_torch_counts_in_the_loop(name, shared, dtype):
    """Labels alone reach the head and a shared start runs once. Padded, it runs through all of the last layer, of which
    only keys and values are used, so that no gradient comes back through the rest: that is not looked into. Without
    padding attention is that of rows of their mean length."""
    start = tuple(range(5, 5 + shared))
    batch = [Encoded(start + one.ids, shared + one.start, False) for one in random_examples(8)]
    model = apply_method(tiny_llama(), METHODS[name], 0, NumberTokenizer()).train()
    shape = TINY
    packed = packed_rows(model) if dtype == "fp32" else contextlib.nullcontext()
    with packed, FlopCounterMode(display=False) as counted:
        nats, _ = loop.label_losses(model, batch, 2)
        nats.sum().backward()
    setup = training_setup(trained(METHODS[name], dtype=dtype), shape)
    found = estimate.training_seconds(shape, setup, rates(each_flop=1.0), [batch])
    exact = dtype == "bf16" and not shared and name != "prompt"
    assert found == pytest.approx(counted.get_total_flops(), rel=1e-9 if exact else 0.12)


@pytest.mark.parametrize(("dtype", "longest"), [("bf16", 200), ("fp32", 600)])
def test_the_seconds_of_a_plan_are_those_of_its_batches(dtype, longest):
    """Short rows and long ones have different attention, and are put together again."""
    shape, setup = TINY, training_setup(trained(LoRA(rank=2), dtype=dtype), TINY)
    data = random_examples(20) + random_examples(20, longest=longest)
    plan = batch_plan([len(one.ids) for one in data], 4, 10 * longest, 0)
    batches = [[data[index] for index in batch] for batch in plan]
    assert len(estimate.by_attention(setup, batches)) == 2
    each = [estimate.training_seconds(shape, setup, EVERYTHING, [batch]) for batch in batches]
    assert estimate.training_seconds(shape, setup, EVERYTHING, batches) == pytest.approx(sum(each), rel=1e-9)


def budget_seconds(tokens: int, data: list[Encoded], seed: int = 0) -> float:
    """The estimate for a budget of so many tokens of a tiny model's LoRA."""
    shape, setup = TINY, training_setup(trained(LoRA(rank=2)), TINY)
    budget = specs.Budget(tokens=1, batch_size=4, learning_rate=1e-3).model_copy(update={"tokens": tokens})
    return estimate.budget_seconds(shape, setup, EVERYTHING, data, budget, seed)


@pytest.mark.parametrize("share", [1e-9, 0.3, 0.77, 1.0])
def test_a_budget_of_at_most_an_epoch_is_timed_by_the_batches_it_trains_on(share):
    """The loop's own plan, batch for batch."""
    shape, setup = TINY, training_setup(trained(LoRA(rank=2)), TINY)
    data = random_examples(300)
    lengths = [len(one.ids) for one in data]
    tokens = max(1, round(share * sum(lengths)))
    batches = [[data[index] for index in batch] for batch in batch_plan(lengths, 4, tokens, 5)]
    assert budget_seconds(tokens, data, 5) == estimate.training_seconds(shape, setup, EVERYTHING, batches)


def test_epochs_take_their_number_times_the_first():
    """Exactly so, what is left of a last one added; and nearly what all their own batches take."""
    shape, setup = TINY, training_setup(trained(LoRA(rank=2)), TINY)
    data = random_examples(300)
    lengths = [len(one.ids) for one in data]
    once, part = budget_seconds(sum(lengths), data), budget_seconds(500, data)
    assert budget_seconds(7 * sum(lengths) + 500, data) == pytest.approx(7 * once + part)
    batches = [[data[index] for index in batch] for batch in batch_plan(lengths, 4, 7 * sum(lengths), 0)]
    assert 7 * once == pytest.approx(estimate.training_seconds(shape, setup, EVERYTHING, batches), rel=0.02)


def test_a_budget_that_no_machine_could_train_on_is_timed_at_once():
    """Walking through its batches would fill the memory."""
    data = random_examples(50)
    began = time.monotonic()
    seconds = budget_seconds(999_999_999_999, data)
    assert time.monotonic() - began < 5 and seconds > 1e3 * budget_seconds(10**6, data)


def test_generation_takes_a_step_for_every_token_of_the_longest_answer():
    """At a second for every operation of a call: as many forward passes as the longest answer has tokens, capped."""
    shape = TINY
    run = trained(LoRA(rank=2), evaluation=specs.Evaluation(n_generate=3, max_new_tokens=9))
    clock = rates(operation=1.0)

    def seconds(*answers: int) -> float:
        return estimate.generation_seconds(shape, run, clock, [(5, answer) for answer in answers], 64)

    assert seconds(1, 4, 7) == pytest.approx(7 * seconds(1)) and seconds(50) == pytest.approx(9 * seconds(1))


def test_a_readers_questions_are_timed_without_padding():
    """At a second for every operation on a number: as those of rows that are all as long as their mean."""
    task = specs.Task(name=specs.OWN_ROWS, data_sha256="0" * 64)
    evaluation = specs.Evaluation(n_generate=2, max_new_tokens=1)
    own, published = (trained(LoRA(rank=2), evaluation=evaluation, **more) for more in ({"task": task}, {}))

    def seconds(run: specs.Run, *prompts: int) -> float:
        pairs = [(prompt, 1) for prompt in prompts]
        return estimate.generation_seconds(TINY, run, EVERYTHING, pairs, 64)

    assert seconds(own, 2, 40) == pytest.approx(seconds(published, 21, 21))
    assert seconds(own, 40, 40) == pytest.approx(seconds(published, 2, 40))


def test_a_record_says_what_was_predicted_and_what_it_took(folder, monkeypatch, tmp_path):
    """The same parts twice; nothing where the machine was never measured."""
    monkeypatch.setattr(execute, "get_task", lambda name: tiny_task())
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    run = specs.Run(
        model=specs.Model(name=str(folder), revision="0" * 64), task=tiny_task().spec,
        method=LoRA(rank=2), budget=specs.Budget(tokens=300, batch_size=4, learning_rate=1e-3),
        evaluation=specs.Evaluation(split="test", n_loss=5, n_generate=3, max_new_tokens=4),
    )  # fmt: skip
    unknown = execute.execute(run, Store(tmp_path / "one"), quiet=True)
    monkeypatch.setattr(execute, "known_rates", lambda platform: EVERYTHING)
    known = execute.execute(run, Store(tmp_path / "two"), quiet=True)
    predicted, measured = (known.provenance[f"{word}_seconds"] for word in ("predicted", "measured"))
    assert set(predicted) == set(measured) == {"train", "loss", "generate"}
    assert all(seconds > 0 and math.isfinite(seconds) for seconds in (*predicted.values(), *measured.values()))
    assert measured["train"] == known.measurements["train_seconds"]
    assert "predicted_seconds" not in unknown.provenance and unknown.curve == known.curve


def test_a_kind_of_run_that_no_record_tells_of_is_predicted_once(tmp_path):
    """What was measured comes first, then what is predicted, then what the platform's other runs took."""
    store, asked = Store(tmp_path), []

    def predict(some):
        asked.append([spec.method.kind for spec in some])
        return [600.0 if spec.method.kind == "full" else None for spec in some]

    runs = [a_run(0), a_run(1), a_run(2, method=Full()), a_run(3, method=Full())]
    worker = Worker(store)
    run_studies([a_study("s", runs)], store, compute=worker, report=lambda line: None, minutes=1, predict=predict)
    assert asked == [["lora", "full"]]
    assert worker.seeds == [0, 1]  # ten minutes for full fine-tuning would end too late

    asked.clear()
    run_studies([a_study("s", runs)], store, compute=worker, report=lambda line: None, limit=1, predict=predict)
    assert asked == [["full"]]  # the other kind has records now
    seen = Estimates()
    seen.note(runs[0], 10.0)
    for _ in range(2):
        seen.foresee(runs[:2], predict)
    assert asked == [["full"], []]  # nothing to predict, but the machine is measured, once
    estimates = Estimates()
    estimates.foresee(runs, predict)
    assert estimates.of(runs[2]) == 600.0 and estimates.of(runs[0]) is None
    estimates.note(runs[2], 30.0)
    assert estimates.of(runs[3]) == 30.0 == estimates.of(runs[0])


def test_predictions_come_from_another_process_in_the_order_asked(tmp_path, monkeypatch):
    """A spec that it cannot predict has an empty line, and a process that fails knows nothing."""
    runs = [a_run(0), a_run(1), a_run(2)]
    for script, predicted in (("printf '12.5\\n\\n7\\n'", [12.5, None, 7.0]), ("exit 1", [None, None, None])):
        monkeypatch.setattr(sys, "executable", interpreter(tmp_path, script))
        assert predicted_here(runs) == predicted


def test_arrays_of_one_batch_are_numbers():
    """What stands before every row counts for a soft prompt even where nothing is shared."""
    batch = random_examples(1)
    setup = training_setup(trained(PromptTuning(length=3)), TINY)
    assert estimate.before_rows(setup, [batch])["t"].tolist() == [3]
    assert estimate.symbols_of(setup, [batch])["k"].tolist() == [len(batch[0].ids) + 3]
    assert torch.tensor(estimate.symbols_of(setup, [batch])["n"]).tolist() == [batch[0].label_tokens]
