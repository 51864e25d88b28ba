"""From spec to record on a tiny model: complete, repeatable, and nothing saved on bad input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.progress import Phase, Phases
from peftbook.core.records import Store
from peftbook.methods.from_peft import PeftMethod
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.runtime import worker
from peftbook.training import execute as module
from peftbook.training import loop, scoring
from peftbook.training.encode import encode_example
from peftbook.training.execute import Watch, execute, few_shots
from peftbook.training.models import load_model

METHODS = {
    "lora": LoRA(rank=2),
    "qlora": QLoRA(rank=2),
    "prompt": PromptTuning(length=3),
    "full": Full(),
    "untuned": Untuned(),
    "two-shot": Untuned(shots=2),
    "loha": PeftMethod(name="LOHA", arguments={"r": 2}),
}
VARYING = {  # what two executions of one run may differ in
    "train_seconds", "train_tokens_per_second", "median_step_seconds", "loss_seconds", "generate_seconds",
    "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """The tiny task under every name, and no cache or record outside the test's folder."""
    monkeypatch.setattr(module, "get_task", lambda name: tiny_task())
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path / "records"))
    return tmp_path


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "records")


def a_run(folder, name: str = "lora", rate: float = 1e-3, **fields) -> specs.Run:
    method = METHODS[name]
    values = {
        "model": specs.Model(name=str(folder), revision="0" * 64),
        "task": tiny_task().spec,
        "method": method,
        "budget": None
        if name in ("untuned", "two-shot")
        else specs.Budget(tokens=600, batch_size=4, learning_rate=rate),
        "evaluation": specs.Evaluation(split="test", n_loss=5, n_generate=3, max_new_tokens=4),
        "seed": 1,
    }
    return specs.Run(**values | fields)


def measured(record) -> dict:
    return {name: value for name, value in record.measurements.items() if name not in VARYING}


@pytest.mark.parametrize("name", list(METHODS))
def test_a_record_holds_everything_a_page_needs(name, folder, store):
    """Measurements, curve, per-example scores, texts, encoder and provenance; saved, checked and found again."""
    run = a_run(folder, name)
    record = execute(run, store, quiet=True)
    assert store.get(run) == record and record.key == run.key and record.spec == run and not record.failure
    m = record.measurements
    trains = run.budget is not None
    wanted = {
        "trainable_parameters", "total_parameters", "loss_nats", "perplexity", "loss_examples", "loss_seconds",
        "peak_memory_bytes", "generate_seconds", "generated_examples", "rouge1", "rouge2", "rougeL", "bertscore_f1",
        "exact_match",
    }  # fmt: skip
    if trains:
        wanted |= {
            "truncated_examples", "train_steps", "train_tokens", "train_label_tokens", "train_seconds",
            "train_tokens_per_second", "median_step_seconds",
        }  # fmt: skip
    wanted |= {"as_lora_loss_nats"} if name == "loha" else set()
    assert set(m) == wanted
    assert all(math.isfinite(value) for value in m.values())
    assert len(record.curve["train_loss_nats"]) == m["train_steps"] if trains else record.curve == {}
    assert m["loss_examples"] == len(record.per_example["loss_nats"]) == len(record.per_example["label_tokens"]) == 5
    total, labels = sum(record.per_example["loss_nats"]), sum(record.per_example["label_tokens"])
    assert m["loss_nats"] == pytest.approx(total / labels, abs=1e-5)
    assert m["perplexity"] == pytest.approx(math.exp(m["loss_nats"]))
    for score in ("rouge1", "rouge2", "rougeL", "bertscore_f1", "exact_match"):
        values = record.per_example[score]
        assert len(values) == 3 and m[score] == pytest.approx(sum(values) / 3, abs=1e-5)
    assert len(store.texts(record)) == m["generated_examples"] == 3
    assert record.metrics_info["bertscore"]["sha256"] == scoring.embedded_encoder()["sha256"]
    assert {"cpu", "cores", "threads", "versions", "micro_batch", "started", "finished"} <= set(record.provenance)
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= set(record.provenance["versions"])
    assert not (module.checkpoints_folder() / run.key[:16]).exists()


def test_parameters_are_counted_once_and_unpacked(folder, store):
    """A 4-bit weight stores two values a byte but counts as two; the tied embedding counts once."""
    counts = {}
    for name in ("untuned", "full", "lora", "qlora"):
        run = a_run(folder, name, evaluation=specs.Evaluation(n_loss=1))
        m = execute(run, store, quiet=True).measurements
        counts[name] = (m["trainable_parameters"], m["total_parameters"])
    total = counts["untuned"][1]
    assert counts["untuned"] == (0, total) and counts["full"] == (total, total)
    added = counts["lora"][0]
    assert counts["lora"] == counts["qlora"] == (added, total + added) and added > 0


@pytest.mark.parametrize("name", ["lora", "two-shot"])
def test_a_run_repeats_itself(name, folder, tmp_path):
    """Everything but time and memory: the spec names all that matters."""
    run = a_run(folder, name)
    one, two = (execute(run, Store(tmp_path / place), quiet=True) for place in ("one", "two"))
    assert measured(one) == measured(two)
    assert (one.curve, one.per_example, one.texts_sha256) == (two.curve, two.per_example, two.texts_sha256)


def test_the_micro_batch_is_provenance(folder, tmp_path):
    """It saves memory; the result stays what it was to float32's rounding, and the key does not name it."""
    run = a_run(folder, dtype="fp32", evaluation=specs.Evaluation(n_loss=5))
    one = execute(run, Store(tmp_path / "one"), quiet=True)
    two = execute(run, Store(tmp_path / "two"), quiet=True, micro_batch=1)
    assert (one.provenance["micro_batch"], two.provenance["micro_batch"]) == (4, 1)
    assert two.measurements["loss_nats"] == pytest.approx(one.measurements["loss_nats"], rel=1e-4)


def test_a_sweep_run_generates_nothing(folder, store):
    """Rates are chosen by validation loss alone."""
    record = execute(a_run(folder, evaluation=specs.Evaluation(n_loss=4)), store, quiet=True)
    assert store.texts(record) == [] and "rougeL" not in record.measurements and not record.texts_sha256


def test_shots_come_from_the_training_split_by_seed(folder):
    """Never from the split that is measured, without repetition, and other ones for another seed."""
    picked = {}
    for seed in range(4):
        shots = few_shots(tiny_task(), a_run(folder, "two-shot", seed=seed))
        assert len({shot.id for shot in shots}) == 2 and all(shot.id.startswith("train-") for shot in shots)
        assert shots == few_shots(tiny_task(), a_run(folder, "two-shot", seed=seed))
        picked[seed] = shots
    assert len(set(picked.values())) > 1
    assert few_shots(tiny_task(), a_run(folder, "untuned")) == few_shots(tiny_task(), a_run(folder, "lora")) == ()


def test_a_killed_run_goes_on_from_its_checkpoint(folder, tmp_path, monkeypatch):
    """The second call trains the remaining steps only, and its record is that of an uninterrupted run."""
    run = a_run(folder, evaluation=specs.Evaluation(n_loss=5))
    whole = execute(run, Store(tmp_path / "whole"), quiet=True)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    save = loop.save_checkpoint

    def save_and_die(*state):
        save(*state)
        if state[-1] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_die)
    store = Store(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        execute(run, store, quiet=True)
    left = module.checkpoints_folder() / run.key[:16]
    assert run not in store and left.is_dir()
    resumed, resume = [], loop.resume
    monkeypatch.setattr(loop, "resume", lambda *arguments: resumed.append(resume(*arguments)) or resumed[-1])
    again = execute(run, store, quiet=True)
    assert resumed == [2] and not left.exists()
    assert measured(again) == measured(whole) and again.curve == whole.curve
    assert again.per_example == whole.per_example
    assert again.provenance["resumed_from_step"] == 2 and "resumed_from_step" not in whole.provenance


@pytest.mark.parametrize("name", ["lora", "prompt", "full"])
def test_a_run_that_stops_early_is_the_beginning_of_the_whole(name, folder, tmp_path):
    """Schedule, batches and curve are the whole run's; this one goes on from there, with the record of one that was not
    interrupted; and whoever asks for the beginning again gets the same.
    """
    whole = a_run(folder, name, evaluation=specs.Evaluation(n_loss=5))
    begun = whole.model_copy(update={"budget": whole.budget.model_copy(update={"stop": 0.5})})
    alone = execute(whole, Store(tmp_path / "alone"), quiet=True)
    store = Store(tmp_path / "raced")
    first = execute(begun, store, quiet=True)
    steps = first.measurements["train_steps"]
    assert 0 < steps < alone.measurements["train_steps"] and begun.key != whole.key
    assert first.curve == {column: values[:steps] for column, values in alone.curve.items()}
    assert first.measurements["train_tokens"] >= 0.5 * whole.budget.tokens
    left = module.checkpoints_folder() / whole.key[:16]
    assert left.is_dir()
    second = execute(whole, store, quiet=True)
    assert second.provenance["resumed_from_step"] == steps and not left.exists()
    assert measured(second) == measured(alone) and second.curve == alone.curve
    assert second.per_example == alone.per_example
    again = execute(begun, Store(tmp_path / "again"), quiet=True)
    assert measured(again) == measured(first) and again.per_example == first.per_example


def test_the_beginning_never_starts_from_a_later_checkpoint(folder, tmp_path, monkeypatch):
    """As the whole run leaves one, when it was interrupted."""
    whole = a_run(folder, evaluation=specs.Evaluation(n_loss=5))
    begun = whole.model_copy(update={"budget": whole.budget.model_copy(update={"stop": 0.5})})
    first = execute(begun, Store(tmp_path / "first"), quiet=True)
    with monkeypatch.context() as now, pytest.raises(KeyboardInterrupt):
        now.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        now.setattr(module, "evaluate", interrupted)
        execute(whole, Store(tmp_path / "whole"), quiet=True)
    again = execute(begun, Store(tmp_path / "again"), quiet=True)
    assert "resumed_from_step" not in again.provenance and again.curve == first.curve


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_that_is_computed_is_computed_again_with_the_same_threads(folder, tmp_path, monkeypatch, init):
    """A decomposition adds in another order with other threads; a run goes on as if it had always had those."""
    run = a_run(folder, evaluation=specs.Evaluation(n_loss=1), method=LoRA(rank=2, alpha=4, init=init))
    asked, prepare = [], module.prepare
    monkeypatch.setattr(module, "prepare", lambda *given: asked.append(torch.get_num_threads()) or prepare(*given))
    left = module.checkpoints_folder() / run.key[:16]
    before = torch.get_num_threads()
    try:
        for threads, wanted in ((1, 1), (2, 2), (None, before)):
            left.mkdir(parents=True, exist_ok=True)
            if threads is not None:
                (left / "progress.json").write_text(json.dumps({"threads": threads}))
            else:
                (left / "progress.json").unlink()
            torch.set_num_threads(before)
            with monkeypatch.context() as now, pytest.raises(KeyboardInterrupt):
                now.setattr(module, "train_in_steps", interrupted)
                execute(run, Store(tmp_path), quiet=True)
            assert asked[-1] == wanted
    finally:
        torch.set_num_threads(before)


def interrupted(*given) -> None:
    """In place of a training."""
    raise KeyboardInterrupt


def test_checkpoints_go_where_the_variable_says(folder, store, tmp_path, monkeypatch):
    """On storage that several machines see, a run goes on from another one's; the pause between two is set likewise."""
    monkeypatch.setenv("PEFTBOOK_CHECKPOINTS", str(tmp_path / "shared"))
    monkeypatch.setenv("PEFTBOOK_CHECKPOINT_SECONDS", "0")
    folders, save = set(), loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda where, *rest: folders.add(where) or save(where, *rest))
    run = a_run(folder, evaluation=specs.Evaluation(n_loss=1))
    execute(run, store, quiet=True)
    assert folders == {tmp_path / "shared" / run.key[:16]}
    monkeypatch.setenv("PEFTBOOK_CHECKPOINT_SECONDS", "often")
    with pytest.raises(InputError, match="'often'"):
        execute(run, store, quiet=True)


def test_a_timing_run_never_resumes(folder, store, monkeypatch):
    """Half of its steps would have been timed on another day."""
    given = []
    train = module.train
    monkeypatch.setattr(module, "train", lambda *a, **k: given.append(k["checkpoint"]) or train(*a, **k))
    execute(a_run(folder, purpose="timing", machine="m", evaluation=specs.Evaluation(n_loss=1)), store, quiet=True)
    execute(a_run(folder, evaluation=specs.Evaluation(n_loss=1)), store, quiet=True)
    assert given[0] is None and given[1] is not None


def test_data_without_a_name_and_the_trained_adapter(folder, store, tmp_path, monkeypatch):
    """The reader's own file: its data are given, not looked up, and what was trained is kept for use."""
    from peft import PeftModel

    monkeypatch.setattr(module, "get_task", lambda name: pytest.fail("the registry was asked"))
    run = a_run(folder, evaluation=specs.Evaluation(split="test", n_loss=5), dtype="fp32")
    record = execute(run, store, task=tiny_task(), adapter=tmp_path / "adapter", quiet=True)
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} <= {".safetensors", ".json", ".md"}
    loaded = load_model(run.model)
    model = PeftModel.from_pretrained(loaded.model, tmp_path / "adapter")
    data = [encode_example(loaded.tokenizer, tiny_task(), one, 512) for one in tiny_task().splits["test"][:5]]
    nats, _ = loop.losses(model, data, pad_id=2, dtype="fp32")
    assert nats == pytest.approx(record.per_example["loss_nats"], rel=1e-6)


def test_every_phase_of_a_run_says_how_far_it_is(folder, store):
    """Who waits sees what for: each phase by name, and what is counted from none to all."""
    told: list[Phase] = []
    execute(a_run(folder), store, quiet=True, watch=Watch(phase=told.append))
    assert list(dict.fromkeys(one.name for one in told)) == [
        "loading", "encoding", "training", "scoring loss", "generating", "scoring texts", "bertscore", "saving"
    ]  # fmt: skip
    for name, total in (("scoring loss", 5), ("generating", 3)):
        counts = [(one.done, one.total) for one in told if one.name == name]
        assert counts[0] == (0, total) and counts[-1] == (total, total)
    steps = [one for one in told if one.name == "training" and one.total]
    assert [one.done for one in steps] == list(range(1, steps[0].total + 1)) and "loss" in steps[0].detail


def test_an_untuned_run_neither_encodes_nor_trains(folder, store):
    """A phase that is not there is not named."""
    told: list[Phase] = []
    execute(a_run(folder, "untuned"), store, quiet=True, watch=Watch(phase=told.append))
    assert not {"encoding", "training"} & {one.name for one in told}


def test_a_log_says_what_is_waited_for_and_a_quiet_run_nothing(folder, store, tmp_path, capsys):
    """`nohup … > log` shows life; the workers of a queue do not."""
    execute(a_run(folder), store, quiet=True)
    assert "lora seed 1" not in capsys.readouterr().err
    execute(a_run(folder), Store(tmp_path / "again"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "lora seed 1" in line]
    assert lines[0].endswith("lora seed 1: loading the model") and len(lines) < 20
    assert any("lora seed 1: scoring the loss, 0 of 5" in line for line in lines)
    assert any("lora seed 1: training, " in line for line in lines)


# ---- failures and bad input


def test_a_diverged_run_is_recorded_with_its_failure(folder, store):
    """It is a result: this rate is too high. No loss is claimed, and the queue does not try it again."""
    run = a_run(folder, "full", rate=1e30)
    record = execute(run, store, quiet=True)
    assert "diverged" in record.failure and store.get(run) == record
    assert "loss_nats" not in record.measurements and record.per_example == {}
    assert not (module.checkpoints_folder() / run.key[:16]).exists()


def test_a_run_that_diverges_on_its_last_step_is_a_failure_too(folder, store, monkeypatch):
    """The training loss was still finite; the evaluation is not."""
    real = module.losses
    monkeypatch.setattr(module, "losses", lambda *a, **k: ([math.nan] * 5, real(*a, **k)[1]))
    record = execute(a_run(folder), store, quiet=True)
    assert "diverged" in record.failure and "loss_nats" not in record.measurements
    assert record.measurements["train_steps"] == len(record.curve["train_loss_nats"])


def test_a_huge_but_finite_loss_is_recorded(folder, store, monkeypatch):
    """exp overflows above 709 nats a token: the perplexity is infinite, and the record loads again."""
    real = module.losses
    monkeypatch.setattr(module, "losses", lambda *a, **k: ([1e6] * 5, real(*a, **k)[1]))
    run = a_run(folder)
    record = execute(run, store, quiet=True)
    assert record.measurements["perplexity"] == math.inf and store.get(run) == record


def assert_nothing_left(tmp_path) -> None:
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_data_that_is_not_the_pinned_one_is_refused(folder, store, tmp_path, monkeypatch):
    """Before any model is loaded; nothing is saved."""
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    run = a_run(folder, task=specs.Task(name="colours", data_sha256="b" * 64))
    with pytest.raises(InputError, match="'colours' has data aaaaaaaaaaaa…, the run names bbbbbbbbbbbb…: use"):
        execute(run, store)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": specs.Model(name="./no-such-model")}, "neither a folder nor a hub id"),
        ({"method": LoRA(targets=("nothing",))}, "match no linear layer"),
        ({"budget": specs.Budget(tokens=9, learning_rate=1, max_length=8)}, "raise max_length"),
        ({"method": PromptTuning(init="text")}, "non-empty init_text"),
        ({"start": "a" * 64}, "What run aaaaaaaaaaaa trained is not at hand"),
    ],
)
def test_bad_input_saves_nothing(change, message, folder, store, tmp_path):
    """One sentence, no record, no checkpoint."""
    with pytest.raises(InputError, match=message):
        execute(a_run(folder, **change), store, quiet=True)
    assert_nothing_left(tmp_path)


def test_an_unknown_task_is_refused(folder, store, tmp_path, monkeypatch):
    """With the names of those there are."""
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"Unknown task 'nonsense': choose one of .*docstrings"):
        execute(a_run(folder, task=specs.Task(name="nonsense", data_sha256="")), store)
    assert_nothing_left(tmp_path)


def test_only_the_tasks_metrics_are_computed(folder):
    """An exact-match task loads no encoder."""
    out = {"measurements": {}, "per_example": {}, "metrics_info": {}}
    task = tiny_task(("exact_match",))
    examples = task.splits["test"][:2]
    module.score_texts([examples[0].target, "other"], examples, task, out, Phases())
    assert out["measurements"] == {"exact_match": 0.5} and out["metrics_info"] == {}


# ---- the worker process


def test_the_worker_computes_the_run_that_it_is_given(folder, tmp_path, monkeypatch):
    """Into the folder that the environment names."""
    run = a_run(folder, evaluation=specs.Evaluation(n_loss=1))
    monkeypatch.setattr(worker, "read_spec", lambda: run)
    worker.main([])
    assert run in Store(tmp_path / "records")


def test_the_worker_exits_with_2_on_bad_input(folder, tmp_path, monkeypatch, capsys):
    """The sentence goes to standard output, where the queue reads it."""
    run = a_run(folder, task=specs.Task(name="colours", data_sha256="b" * 64))
    monkeypatch.setattr(worker, "read_spec", lambda: run)
    with pytest.raises(SystemExit) as caught:
        worker.main([])
    assert caught.value.code == 2
    assert capsys.readouterr().out.strip().endswith("shipped this data.")
    assert_nothing_left(tmp_path)
