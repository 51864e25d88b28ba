"""One run on several processes: the same curve, gradient, checkpoint, adapter and record as on one."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import wait_for
from peft import PeftModel
from safetensors.torch import load_file
from small_llama_build import train_tokenizer
from tiny import VOCABULARY, NumberTokenizer, random_examples, tiny_llama
from together import CASES, COUNT, STOP, STRATEGIES, TOKENS, train_case
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from transformers import AutoTokenizer

from peftbook import cli
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape, Setup, training_step
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.runtime.queue import run_subprocess
from peftbook.training import launch, loop
from peftbook.training.distributed import ALONE, Processes
from peftbook.training.execute import Trainee, save_trained
from peftbook.training.forward import trainable_state
from peftbook.training.generate import generate
from peftbook.training.launch import obstacle_to_split, refuse_missing_gpus, refuse_to_split
from peftbook.training.loop import losses

HERE = Path(__file__).parent
# Largest relative difference from one process, of losses and of gradient norms and trained tensors. In float32 only the
# order of sums differs. Under bfloat16 autocast the matrix products of a micro-batch are rounded to three digits before
# they are summed, so another cut of the batch gives other digits, on one process too; Adam makes a whole step of the
# sign of a gradient near zero.
TOLERANCE = {"fp32": (2e-5, 2e-5), "bf16": (0.01, 0.1)}
PAIRS = [(strategy, name) for name, case in CASES.items() for strategy in case.strategies]


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen:
    """A Python process that finds the tests' modules, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)]), "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """What two processes of each strategy left behind, all cases in one launch."""
    folder = tmp_path_factory.mktemp("together")
    process = python("import together; together.main()", str(folder))
    said, complained = process.communicate()
    assert process.returncode == 0, said + complained
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same case trained by one process, once each."""
    threads, known = torch.get_num_threads(), {}
    torch.set_num_threads(1)

    def trained(name: str):
        if name not in known:
            known[name] = train_case(name, tmp_path_factory.mktemp("alone"))
        return known[name]

    yield trained
    torch.set_num_threads(threads)


def relative(one, other) -> float:
    """|one − other| / |other| of two vectors."""
    one, other = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other, dtype=torch.float64)
    return ((one - other).norm() / other.norm()).item()


def assert_same(folder: Path, model, trained, dtype: str = "fp32") -> None:
    """Curve, gradient norms, trained tensors and losses of held-out examples."""
    facts, state = json.loads((folder / "facts.json").read_text()), load_file(folder / "trained.safetensors")
    assert (facts["tokens"], facts["labels"]) == (trained.tokens, trained.label_tokens)
    ours = {name: value.detach() for name, value in trainable_state(model).items()}
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == {
        name: (value.shape, value.dtype) for name, value in ours.items()
    }
    nats, _ = losses(model, random_examples(7, seed=4), pad_id=2, dtype=dtype)
    flat = [torch.cat([one[name].flatten() for name in ours]) for one in (state, ours)]
    of_losses = {"curve": relative(facts["losses"], trained.losses), "nats": relative(facts["nats"], nats)}
    of_vectors = {"norms": relative(facts["norms"], trained.gradient_norms), "tensors": relative(*flat)}
    assert max(of_losses.values()) < TOLERANCE[dtype][0], of_losses
    assert max(of_vectors.values()) < TOLERANCE[dtype][1], of_vectors


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "name"), PAIRS)
def test_two_processes_train_what_one_trains(strategy, name, together, alone):
    """Unequal shares, a process without an example, micro-batches, 4-bit weights: only the order of sums differs."""
    assert_same(together / strategy / name, *alone(name), CASES[name].dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora-bf16", "qlora-bf16"])
def test_shards_compute_what_whole_models_compute(name, together):
    """Under bfloat16 too: the same examples on each process give the same products, wherever the weights lie.

    In the first steps; later the last digit of a norm that was summed over shards has turned one of bfloat16's three.
    """
    ours, theirs = (json.loads((together / strategy / name / "facts.json").read_text()) for strategy in STRATEGIES)
    for part in ("losses", "norms"):
        assert relative(theirs[part][:4], ours[part][:4]) < 1e-6, part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setup"),
    [
        ("full", Setup(method="full", dtype="fp32", device="cpu", devices=COUNT)),
        ("lora", Setup(rank=2, dtype="fp32", device="cpu", devices=COUNT)),
        ("lora-bf16", Setup(rank=2, dtype="fp32", autocast=True, held=True, device="cpu", devices=COUNT)),
        ("qlora", Setup(rank=2, dtype="fp32", quantised="nf4", device="cpu", devices=COUNT)),
    ],
)
def test_a_process_holds_the_share_that_the_byte_model_says(name, setup, together):
    """Of every weight, frozen and trained, in its own dtype."""
    shape = DecoderShape(layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=VOCABULARY, tied=True)
    step = training_step(shape, setup)
    state = step.numbers(step.state)
    expected = {"frozen": state["weights"], "trained": state.get("adapter", 0.0)}
    if name == "full":
        expected = {"frozen": 0.0, "trained": state["weights"]}
    for rank in range(COUNT):
        assert json.loads((together / "fsdp" / name / f"bytes-{rank}.json").read_text()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_interrupted_training_of_two_goes_on_bit_for_bit(strategy, together):
    """Parameters, moments and order come back, with shards put together and cut again."""
    whole, resumed = (load_file(together / strategy / name / "trained.safetensors") for name in ("lora", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    facts = [json.loads((together / strategy / name / "facts.json").read_text()) for name in ("lora", "resumed")]
    assert facts[0] == facts[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_is_resumed_by_another_number_of_processes(strategy, together, alone):
    """From two to one and from one to two: the file holds whole tensors and says nothing of processes."""
    files = sorted(path.name for path in (together / strategy / "checkpoint").iterdir())
    assert files == ["progress.json", f"state-{STOP}.safetensors"]
    model, trained = train_case("lora", together, checkpoint=together / strategy / "checkpoint")
    assert_same(together / strategy / "lora", model, trained)
    assert_same(together / strategy / "taken-over", *alone("lora"))


def settings(folder: Path) -> dict:
    """An adapter's config without the place of its base model; peft writes the names of a set in any order."""
    found = json.loads((folder / "adapter_config.json").read_text())
    return found | {"base_model_name_or_path": "", "target_modules": sorted(found["target_modules"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "qlora"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_adapter_folder_is_that_of_one_process(strategy, name, together, alone, tmp_path):
    """Same files, names, shapes, types and config; peft loads it and computes the logits of the trained model."""
    model, _ = alone(name)
    model.save_pretrained(tmp_path)
    folder = together / strategy / name / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    assert settings(folder) == settings(tmp_path)
    theirs, ours = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path))
    assert {key: (value.shape, value.dtype) for key, value in theirs.items()} == {
        key: (value.shape, value.dtype) for key, value in ours.items()
    }
    if name == "lora":
        loaded = PeftModel.from_pretrained(tiny_llama(), folder).eval()
        ids = torch.arange(3, 20)[None]
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_a_whole_model_is_kept_with_its_tokenizer(tmp_path):
    """So that the folder loads by itself; an adapter's base has one."""
    tokenizer = train_tokenizer(["one", "two"])
    for name, method in (("whole", Full()), ("adapter", LoRA(rank=2))):
        trainee = SimpleNamespace(
            model=tiny_llama(), tokenizer=tokenizer, processes=ALONE, run=SimpleNamespace(method=method)
        )
        save_trained(cast(Trainee, trainee), tmp_path / name)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert loaded("one two")["input_ids"] == tokenizer("one two")["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
    assert not (tmp_path / "adapter" / "tokenizer.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "qlora"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sharded_models_write_the_same_texts(strategy, name, together, alone):
    """Generation runs on shards too: token by token, a layer whole at a time."""
    texts = generate(alone(name)[0], NumberTokenizer(), [[5, 6, 7], [8, 9]], max_new_tokens=4)
    assert json.loads((together / strategy / name / "texts.json").read_text()) == texts


# ---- shares


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_every_example_counts_once_and_all_take_equal_steps(size, micro_batch):
    """Together the processes count each example of a batch once, in equally many parts, none of them empty."""
    for count in (1, 2, 3):
        parts = [Processes(rank, count, "fsdp").portions(list(range(size)), micro_batch) for rank in range(count)]
        assert len({len(one) for one in parts}) == 1
        assert sorted(at for one in parts for part, weight in one for at in part if weight) == list(range(size))
        assert all(part and weight in (0, 1) for one in parts for part, weight in one)
        assert all(len(part) <= (micro_batch or size) for one in parts for part, _ in one)


def test_one_process_takes_the_batch_as_it_comes():
    """Then nothing is exchanged, and records made before there were several processes repeat to the last bit."""
    batch = list(range(5))
    assert ALONE.portions(batch) == [(batch, 1)]
    assert ALONE.portions(batch, 2) == [([0, 1], 1), ([2, 3], 1), ([4], 1)]
    assert ALONE.sum(0.1, 0.2) == [0.1, 0.2] and ALONE.largest(0.3) == 0.3


def test_the_cases_hold_a_batch_with_fewer_examples_than_processes():
    """Else the tests above would not try it."""
    case = CASES["lora"]
    lengths = [len(one.ids) for one in random_examples(case.examples)]
    assert min(map(len, loop.batch_plan(lengths, case.batch_size, TOKENS, 3))) < COUNT


# ---- from spec to record, through the launcher


def small_run(**fields) -> specs.Run:
    """A few steps of the small Llama on a task that needs no file."""
    from peftbook.tasks import get_task

    values = {
        "model": specs.SMALL_LLAMA,
        "task": get_task("recall").spec,
        "method": LoRA(rank=2),
        "budget": specs.Budget(tokens=700, batch_size=4, learning_rate=1e-3, train_examples=19),
        "evaluation": specs.Evaluation(n_loss=5, n_generate=2, max_new_tokens=4),
        "dtype": "fp32",
    }
    return specs.Run(**values | fields)


COMPUTE = """
import pathlib, sys
from peftbook.core import specs
from peftbook.runtime.queue import run_subprocess
run = specs.Run.model_validate_json(sys.argv[1])
run_subprocess(run, 2, folder=pathlib.Path(sys.argv[2]), processes=2)
"""


@pytest.mark.slow
def test_the_record_of_two_processes_is_that_of_one(tmp_path, monkeypatch):
    """Same spec, same key, same fields; who made it is provenance, time and memory differ."""
    from peftbook.core.records import Store
    from peftbook.training.execute import execute

    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    run = small_run()
    assert run_subprocess(run, 2, folder=tmp_path / "two", processes=2, strategy="fsdp") == (True, "")
    two, one = Store(tmp_path / "two").get(run), execute(run, Store(tmp_path / "one"), quiet=True)
    assert two is not None and (two.key, two.spec, two.failure) == (one.key, one.spec, one.failure)
    assert (two.provenance["processes"], two.provenance["strategy"]) == (2, "fsdp")
    assert (one.provenance["processes"], one.provenance["strategy"]) == (1, "")
    assert set(two.provenance) == set(one.provenance) and two.metrics_info == one.metrics_info
    assert set(two.measurements) == set(one.measurements)
    for name, value in one.measurements.items():
        if "seconds" not in name and name not in ("train_tokens_per_second", "peak_memory_bytes"):
            assert math.isclose(two.measurements[name], value, rel_tol=1e-4), name
    for part in ("curve", "per_example"):
        ours, theirs = getattr(one, part), getattr(two, part)
        assert set(ours) == set(theirs)
        assert all(relative(theirs[name], ours[name]) < 1e-4 for name in ours if any(ours[name]))
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


@pytest.mark.slow
def test_when_the_parent_is_killed_all_processes_end(tmp_path):
    """kill -9 of the queue closes its worker's input, and the worker's end closes that of every process it started."""
    import psutil

    process = python(COMPUTE, small_run().canonical(), str(tmp_path), PEFTBOOK_CACHE=str(tmp_path / "cache"))
    parent = psutil.Process(process.pid)

    def started() -> list[psutil.Process]:
        return [one for one in parent.children(recursive=True) if "peftbook.training" in one.cmdline()]

    wait_for(lambda: len(started()) == COUNT)
    family = parent.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))


def test_a_refusal_is_said_by_the_first_process_before_any_ends(monkeypatch, capsys):
    """As one sentence, and all end with status 2."""
    heard: list[str] = []

    def refuse(*given, **how):
        raise InputError("There is no model.")

    monkeypatch.setattr("peftbook.training.execute.execute", refuse)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: heard.append(capsys.readouterr().out))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for rank in range(COUNT):
        two = Processes(rank, COUNT, "ddp")
        monkeypatch.setattr("peftbook.training.distributed.join", lambda *given, two=two: two)
        with pytest.raises(SystemExit) as ended:
            launch.compute_together(small_run(), "ddp", None, locked=True, quiet=True)
        assert ended.value.code == 2
    assert heard == ["There is no model.\n", ""]


@pytest.mark.parametrize(
    ("codes", "status", "said"), [((2, -15), 2, ""), ((-9, -15), 1, f"process 0 of {COUNT} ended with signal 9: ")]
)
def test_the_launcher_tells_a_refusal_from_a_death(monkeypatch, capsys, codes, status, said):
    """Of a refusal one of the processes has said why; of a death it says which died, and of what."""
    failures = {rank: ProcessFailure(rank, 1, code, "none") for rank, code in enumerate(codes)}

    def run(asked):
        raise ChildFailedError("training", failures)

    monkeypatch.setattr("torch.distributed.run.run", run)
    monkeypatch.setattr(launch, "hold_input", lambda: None)
    for name in (launch.SPEC, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as ended:
        launch.launch(small_run(), COUNT, "ddp")
    assert ended.value.code == status and capsys.readouterr().err.startswith(said)


# ---- what is refused


@pytest.mark.parametrize(
    ("run", "count", "strategy", "word"),
    [
        (small_run(purpose="timing", machine="m"), 2, "ddp", "one process"),
        (specs.Probe(measure="codebooks.errors"), 2, "ddp", "one process"),
        (small_run(), 5, "ddp", "4 examples"),
        (small_run(method=PromptTuning()), 2, "fsdp", "--strategy ddp"),
        (small_run(method=Prefix()), 2, "fsdp", "--strategy ddp"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_fix(run, count, strategy, word):
    """One sentence that names the run, the number and what to do."""
    with pytest.raises(InputError, match=word) as caught:
        refuse_to_split(run, count, strategy)
    assert run.key[:12] in str(caught.value) and f"by {count} processes" in str(caught.value)


def test_what_can_be_shared_is_not_refused():
    """Including what fsdp refuses, under ddp."""
    for method in (LoRA(), QLoRA(), Full(), PromptTuning()):
        assert obstacle_to_split(small_run(method=method), 2, "ddp") == ""
    assert obstacle_to_split(small_run(method=QLoRA()), 4, "fsdp") == ""


def test_more_processes_than_gpus_are_refused(monkeypatch):
    """Two processes on one GPU would be slower than one and might not fit."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes need a GPU each and 1 are here"):
        refuse_missing_gpus(small_run(platform="cuda"), 2)
    refuse_missing_gpus(small_run(), 2)


def test_shards_need_several_processes(capsys):
    """One process would hold every share."""
    assert cli.main(["run", "methods", "--strategy", "fsdp"]) == 2
    assert "--processes" in capsys.readouterr().err
