"""Several answers to a question: what the probe draws and counts, and what its records say of pass@k."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_llama, tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.methods.lora import LoRA
from peftbook.studies import get_study, tries
from peftbook.training import execute
from peftbook.training.generate import decode_batch
from peftbook.training.probes import measure, sampling

SETTINGS = {"samples": 3, "temperatures": (0.5, 1.0), "split": "train", "first": 8, "questions": 4}


def long_answers(texts, examples) -> list[float]:
    """A judge that finds every text right that has an even number of letters."""
    return [float(len(text) % 2 == 0) for text in texts]


@pytest.fixture
def tiny_run(folder, monkeypatch) -> specs.Run:
    """LoRA of a tiny model on the first eight rows of a task with a judge."""
    task = dataclasses.replace(tiny_task(("exact_match",)), judge=long_answers, judge_name="even")
    monkeypatch.setattr(execute, "get_task", {task.name: task}.__getitem__)
    return specs.Run(
        model=specs.Model(name=str(folder), revision=""), task=task.spec, method=LoRA(rank=2, alpha=4), dtype="fp32",
        budget=specs.Budget(tokens=300, batch_size=4, learning_rate=1e-2, train_examples=8),
        evaluation=specs.Evaluation(n_loss=1, max_new_tokens=5),
    )  # fmt: skip


def probe_of(run: specs.Run, **settings) -> specs.Probe:
    return specs.Probe(measure="sampling.right_answers", settings=SETTINGS | settings, runs=(run,), model=run.model)


def test_right_answers_are_counted_by_question_and_temperature(tiny_run):
    """From none to all of them; the same draws again from the same seed."""
    found = measure(probe_of(tiny_run))
    assert set(found.per_example) == {"right_0.5", "right_1", "different_0.5", "different_1"}
    for name, values in found.per_example.items():
        low = 1 if name.startswith("different") else 0
        assert len(values) == 4 and all(low <= value <= 3 and value == int(value) for value in values)
    for temperature in ("0.5", "1"):
        mean = sum(found.per_example[f"right_{temperature}"]) / 12
        assert found.measurements[f"share_{temperature}"] == pytest.approx(mean)
    assert measure(probe_of(tiny_run)) == found


@pytest.mark.parametrize("trained", [0, 9])
def test_rows_that_are_trained_on_are_no_questions(trained, tiny_run):
    budget = tiny_run.budget.model_copy(update={"train_examples": trained})
    with pytest.raises(InputError, match="train_examples up to 8"):
        measure(probe_of(tiny_run.model_copy(update={"budget": budget})))


def test_a_task_without_a_judge_is_refused(tiny_run, monkeypatch):
    task = tiny_task(("exact_match",))
    monkeypatch.setattr(execute, "get_task", {task.name: task}.__getitem__)
    with pytest.raises(InputError, match="no judge"):
        measure(probe_of(tiny_run))


class Letters:
    """A tokenizer of single ids."""

    pad_token_id = eos_token_id = 2

    def decode(self, ids, skip_special_tokens=True) -> str:
        return " ".join(map(str, ids))


def test_the_first_token_is_drawn_from_the_tempered_softmax():
    """Frequencies of all tokens, within five standard errors; at a low temperature only the greedy one is left."""
    model, prompt, count = tiny_llama(), [5, 7, 11], 4000
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    for temperature in (0.5, 1.0):
        texts = sampling.draw_texts(
            model, Letters(), [prompt], count, 1, temperature, torch.Generator().manual_seed(0)
        )[0]
        ids = np.array([int(text) if text else Letters.eos_token_id for text in texts])
        chances = (logits / temperature).softmax(dim=-1).numpy()
        shares = np.bincount(ids, minlength=len(chances)) / count
        assert (np.abs(shares - chances) < 5 * np.sqrt(chances * (1 - chances) / count) + 1e-9).all()
    cold = sampling.draw_texts(model, Letters(), [prompt], 5, 4, 1e-4, torch.Generator().manual_seed(0))[0]
    assert set(cold) == {Letters().decode(decode_batch(model, Letters(), [prompt], 4)[0])}
    with pytest.raises(InputError, match="temperature of 0"):
        sampling.draw_texts(model, Letters(), [prompt], 1, 1, 0.0, torch.Generator())


def filled(tmp_path, cold: float, hot: float) -> Store:
    """A store in which every answer is right with these probabilities."""
    store = Store(tmp_path)
    for seed in tries.SEEDS:
        probe, draw = tries.probe(seed), np.random.default_rng(seed)
        rows = {}
        for temperature, chance in zip(tries.TEMPERATURES.values(), (cold, hot), strict=True):
            right = draw.binomial(tries.SAMPLES, chance, tries.QUESTIONS)
            rows |= {f"right_{temperature:g}": right.tolist(), f"different_{temperature:g}": [3.0] * tries.QUESTIONS}
        lists = {name: [float(value) for value in values] for name, values in rows.items()}
        store.save(Record(key=probe.key, spec=probe, per_example=lists))
    return store


def test_the_study_recovers_the_chances_that_made_its_records(tmp_path):
    """pass@k is 1 − (1 − p)^k, the plug-in is below it, and more than one try is worth what it should be."""
    study, store = get_study("tries"), filled(tmp_path, 0.1, 0.2)
    found = study.quantities(store)
    for name, chance in (("cold", 0.1), ("hot", 0.2)):
        for k in tries.TRIES:
            assert found[f"{name}_pass_{k}"].value == pytest.approx(1 - (1 - chance) ** k, abs=0.05)
        assert found[f"{name}_missed_16"].high < 0 == pytest.approx(found[f"{name}_missed_1"].value)
        assert found[f"{name}_all_right_16"].value == pytest.approx(0, abs=0.01)
    assert found["hot_minus_cold_1"].value == pytest.approx(0.1, abs=0.03)
    judged = study.verdict(store)
    assert judged.outcome == "measured" and "pass@16" in judged.sentence
