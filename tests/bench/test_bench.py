"""The benches: fair order, honest aggregation, every setting printed, and the same work for every contestant."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import wait_for
from test_queue import interpreter

from bench import commands, live, measuring, peers, rounds
from bench.book import book_bench
from bench.contestants import BATCH, BOTH, CONTESTANTS, named
from bench.table import table
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA

FINDS = os.environ | {"PYTHONPATH": rounds.IMPORTED}  # a child that imports the bench


def fake_result(name: str, seconds: float, loss: float = 2.0) -> dict:
    """A measurement of three steps: the first takes ten times as long as the others."""
    work = {"examples": 8, "label_tokens": 80, "real_tokens": 800, "padded_tokens": 1000}
    return {
        "ends": [10 * seconds, 11 * seconds, 12 * seconds],
        "work": [work] * 3,
        "losses": [3.0, 2.5, loss],
        "set_here": {"learning_rate": 2e-4, f"only {name} sets": "this"},
        "left_alone": {"packing": False, "bf16": True},
        "all_arguments": {"packing": False},
        "load_seconds": 1.0,
        "load_memory_mib": 900.0,
        "prepare_seconds": 0.5,
        "train_seconds": 12 * seconds,
        "peak_memory_mib": 2000.0 + seconds,
        "validation_loss_nats": loss,
        "machine": {
            "name": "A machine",
            "instructions": "AVX9",
            "threads": 2,
            "nice": 0,
            "load_average": 0.1,
            "versions": {"torch": "2"},
        },
    }


def run_fakes(times: dict[str, list[float]], **arguments) -> tuple[list[dict], list[str]]:
    """Rows and the order in which contestants ran, with seconds a step taken from `times`."""
    order: list[str] = []

    def compute(job: dict) -> dict:
        name = job["contestant"]
        if job["steps"] == rounds.TRIAL_STEPS:
            return fake_result(name, 1.0)
        order.append(name)
        return fake_result(name, times.get(name, [1.0] * 9)[order.count(name) - 1])

    return rounds.train_bench(3, compute=compute, report=lambda line: None, **arguments), order


@pytest.fixture
def trl_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes stand for TRL, so these tests also run where it is not installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("trl_at_hand")
def test_rounds_are_interleaved():
    """A, B, C, A, B, C: a slow spell of the machine must not fall on one contestant alone."""
    names = [one.name for one in CONTESTANTS]
    _, order = run_fakes({}, rounds=3)
    assert order == names * 3


def test_without_peers_only_our_loop_runs():
    """The comparison is optional: it needs packages that the book does not."""
    _, order = run_fakes({}, rounds=2, peers=())
    assert order == ["ours", "ours"]
    assert run_fakes({}, rounds=1, peers=False)[1] == ["ours"]


def test_speed_is_the_median_over_rounds_without_the_first_step():
    """Two later steps of 8 examples in 2 s, 4 s and 1 s."""
    rows, _ = run_fakes({"ours": [1.0, 2.0, 0.5]}, rounds=3, peers=())
    assert rows[0]["examples_per_second"] == {"median": 8.0, "low": 4.0, "high": 16.0}
    assert rows[0]["real_tokens_per_second"]["median"] == 800.0
    assert rows[0]["peak_memory_mib"] == {"median": 2001.0, "low": 2000.5, "high": 2002.0}
    assert rows[0]["loss_start_nats"] == 3.0
    assert rows[0]["loss_end_nats"] == pytest.approx(2.5)
    assert rows[0]["examples"] == 24


@pytest.mark.usefixtures("trl_at_hand")
@pytest.mark.parametrize(
    ("seconds", "faster"), [({"bf16": 1.0, "fp32": 3.0}, "bf16"), ({"bf16": 3.0, "fp32": 1.0}, "fp32")]
)
def test_each_contestant_runs_in_the_type_that_is_faster_for_it(seconds, faster):
    """Those by their library's defaults keep these; both speeds are in the table."""
    jobs: list[dict] = []

    def compute(job: dict) -> dict:
        jobs.append(job)
        return fake_result(job["contestant"], seconds.get(job["dtype"], 1.0))

    rows = rounds.train_bench(3, rounds=1, compute=compute, report=lambda line: None)
    ran = {job["contestant"]: job["dtype"] for job in jobs if job["steps"] == 3}
    for one in CONTESTANTS:
        assert ran[one.name] == (faster if one.dtypes else "")
        assert bool(one.dtypes) is not one.name.endswith("default")
    rates = [f"{800 / seconds[name]:.0f}" for name in BOTH]
    assert " | ".join(rates) in table(rows) and "its own" in table(rows)


@pytest.mark.usefixtures("trl_at_hand")
def test_the_table_prints_every_setting():
    """A comparison whose settings are not shown cannot be checked."""
    rows, _ = run_fakes({"ours": [1.0, 1.0], "trl-tuned": [2.0, 4.0]}, rounds=2)
    text = " ".join(table(rows).split())
    for row in rows:
        for name, value in (row["set_here"] | row["left_alone"]).items():
            assert f"{name}={value}" in text
        assert " ".join(row["note"].split()) in text
    assert "0.38" in text  # (8 / 3 examples a second, the median of 4 and 2 being 3) over 8
    assert "3.00 [2.00–4.00]" in text


@pytest.mark.usefixtures("trl_at_hand")
def test_a_contestant_that_fails_is_a_row_and_the_others_go_on():
    """A peer that breaks must be seen, not dropped."""

    def compute(job: dict) -> dict:
        return {"failure": "It broke."} if job["contestant"] == "trl-packed" else fake_result("x", 1.0)

    rows = rounds.train_bench(3, rounds=2, compute=compute, report=lambda line: None)
    assert [row["rounds"] for row in rows] == [0 if row["contestant"] == "trl-packed" else 2 for row in rows]
    assert "FAILED: It broke." in table(rows)


def test_rows_are_also_written_as_json(tmp_path: Path):
    """The file holds what is returned."""
    rows, _ = run_fakes({}, rounds=1, peers=(), out=tmp_path / "bench.json")
    assert json.loads((tmp_path / "bench.json").read_text()) == rows


def test_bad_input_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    """Each message names the value and the fix."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "peftbook\[train\]"'):
        run_fakes({})
    with pytest.raises(InputError, match="Unknown peer 'jax'"):
        run_fakes({}, peers=("jax",))
    with pytest.raises(InputError, match="at least 2"):
        rounds.train_bench(1, peers=())
    with pytest.raises(InputError, match="at least 1"):
        rounds.train_bench(2, peers=(), rounds=0)
    with pytest.raises(InputError, match="not trained"):
        rounds.train_bench(2, ("untuned",), peers=())
    with pytest.raises(InputError, match="Unknown method 'dora'"):
        rounds.train_bench(2, ("dora",), peers=())


def test_contestants_differ_only_in_what_their_names_say():
    """No peer changes rate, batch, optimiser or clipping, and a default changes nothing."""
    for contestant in CONTESTANTS:
        assert not {"learning_rate", "optim", "max_grad_norm", "num_train_epochs"} & set(contestant.arguments)
        if contestant.name.endswith("default"):
            assert not contestant.arguments


def test_what_stops_a_process_comes_back_as_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bad input stops the bench with its sentence; a crash becomes the row's failure."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "echo Note; echo 'The last line.'; exit 2"))
    with pytest.raises(InputError, match=r"^The last line\.$"):
        rounds.run_process({})
    monkeypatch.setattr(
        sys, "executable", interpreter(tmp_path, "echo Traceback >&2; echo 'The last line.' >&2; exit 1")
    )
    assert rounds.run_process({}) == {"failure": "The last line."}


def test_a_trial_that_takes_too_long_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A library that multiplies bfloat16 slowly must not hold up the others for hours."""
    monkeypatch.setattr(sys, "executable", interpreter(tmp_path, "sleep 60"))
    monkeypatch.setattr(rounds, "TRIAL_SECONDS", 0.2)
    ours = named("ours")
    tried = rounds.try_types(ours, {"contestant": "ours", "method": "lora"}, rounds.run_process, lambda line: None)
    assert set(tried) == set(ours.dtypes) and not any(map(rounds.trial_speed, tried.values()))


@pytest.mark.usefixtures("trl_at_hand")
def test_a_contestant_whose_trials_are_all_lost_runs_no_round():
    """Not even a default one, whose rounds would take hours; its row says why."""

    def compute(job: dict) -> dict:
        slow = job["contestant"] == "trl-default"
        assert not (slow and job["steps"] > rounds.TRIAL_STEPS)
        return {"failure": "2 steps took more than 90 s"} if slow else fake_result("x", 1.0)

    rows = rounds.train_bench(3, rounds=2, compute=compute, report=lambda line: None)
    assert [row["contestant"] for row in rows if not row["rounds"]] == ["trl-default"]
    assert "FAILED: 2 steps took more than 90 s" in table(rows)


def test_serving_the_longest_examples_first_does_not_raise_the_speed():
    """At a constant 100 real tokens a second the order of lengths must not matter."""

    def rate(tokens: list[int]) -> float:
        work = [{"examples": 8, "label_tokens": 80, "real_tokens": count} for count in tokens]
        ends = [sum(tokens[: at + 1]) / 100 for at in range(len(tokens))]
        return rounds.speed({"ends": ends, "work": work}, "examples")

    assert rate([900, 300, 300]) == pytest.approx(rate([300, 300, 900])) == pytest.approx(8 * 3 / 15)


def test_peak_memory_is_not_inherited_from_the_parent():
    """ru_maxrss of a small child is its parent's on Linux; the bench must report the child's own peak."""
    ballast = bytearray(b"x" * (300 << 20))
    code = "from bench.measuring import peak_memory_mib; print(peak_memory_mib())"
    child = subprocess.run([sys.executable, "-c", code], env=FINDS, capture_output=True, text=True, check=True)
    assert measuring.peak_memory_mib() > 300 and len(ballast) == 300 << 20
    assert 5 < float(child.stdout) < 250


# ---- the book ----

BUILDER = """
import pathlib, sys
build, page = pathlib.Path("_build"), pathlib.Path("book/one.md")
with open(sys.argv[1], "a") as log:
    print(build.exists(), "WHAT=book" in page.read_text(), file=log)
build.mkdir(exist_ok=True)
(build / "new.html").write_text("new")
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book with one page and an old build."""
    root = tmp_path / "root"
    (root / "_build").mkdir(parents=True)
    (root / "_build" / "old.html").write_text("old")
    (root / "book").mkdir()
    (root / "book" / "one.md").write_text("# One\n")
    return root


def build_command(log: Path, status: int) -> list[str]:
    return [sys.executable, "-c", BUILDER, str(log), str(status)]


@pytest.mark.parametrize("status", [0, 3])
def test_book_bench_builds_cold_warm_and_touched_and_restores_the_tree(book: Path, tmp_path: Path, status: int):
    """What was there before is there after it, to the byte and the time stamp, also when a build fails."""
    page, log = book / "book" / "one.md", tmp_path / "log"
    before = (page.read_bytes(), page.stat().st_mtime_ns)
    arguments = {"command": build_command(log, status), "chapter": "book/one.md", "report": lambda line: None}
    if status:
        with pytest.raises(InputError, match="status 3"):
            book_bench(book, **arguments)
    else:
        rows = book_bench(book, **arguments)
        assert [row["build"] for row in rows] == ["cold", "warm", "touched"]
        assert all(row["seconds"] > 0 for row in rows)
        assert log.read_text().splitlines() == ["False False", "True False", "True True"]
        assert "touched" in table(rows)
    assert (page.read_bytes(), page.stat().st_mtime_ns) == before
    assert sorted(path.name for path in book.iterdir()) == ["_build", "book"]
    assert [path.name for path in (book / "_build").iterdir()] == ["old.html"]


def test_book_bench_refuses_what_a_killed_bench_left(book: Path):
    """Moving a half-made build aside would lose the build that waits there."""
    (book / ".bench-aside").mkdir()
    with pytest.raises(InputError, match="killed"):
        book_bench(book, chapter="book/one.md")
    assert (book / "_build" / "old.html").is_file()


def test_book_bench_names_what_is_missing(book: Path):
    """A wrong root or chapter, and a command that does not exist."""
    with pytest.raises(InputError, match="no chapter"):
        book_bench(book, chapter="book/two.md")
    with pytest.raises(InputError, match="cannot be run"):
        book_bench(book, ["/no/such/program"], chapter="book/one.md", report=lambda line: None)
    assert (book / "_build" / "old.html").is_file()


def test_cli_bench_times_every_command_without_and_with_kept_results(monkeypatch):
    """The second call of a round finds what the first has kept; medians are over rounds, in starts of a bare Python."""
    times, found = iter([1, 8, 2, 3, 20, 6, 2, 10, 4]), []

    def call(words, results):
        found.append(len([*Path(results).iterdir()]))
        if words[0] == "-m":
            (Path(results) / str(len(found))).touch()
        return next(times)

    monkeypatch.setattr(commands, "seconds", call)
    rows = {(row["command"], row["state"]): row for row in commands.cli_bench(3, {"status": ("status",)})}
    assert found == [0, 0, 1] * 3
    assert [row["seconds"] for row in rows.values()] == [2, 10, 4]
    assert rows["status", "cold"]["times_bare"] == 5
    assert (rows["status", "warm"]["lowest"], rows["status", "warm"]["highest"]) == (2, 6)
    assert len(commands.table([*rows.values()]).splitlines()) == 3


def test_cli_bench_says_which_command_fails():
    with pytest.raises(InputError, match=r"fit.*failed with status 2"):
        commands.cli_bench(1, {"fit": ("fit", "--model", "no-such-model", "--memory", "1GiB")})


SHIPPED = {"task": {"config": {"vocab_size": 99}}, "levels": [], "arms": {"lora": {"choice": {}}}}


@pytest.fixture
def page_and_torch(monkeypatch):
    """Rounds whose steps take what is given: the page's and torch's, in seconds, the first steps ten times as long."""

    def rows(page: list[float], torch: list[float], apart: float = 0.0) -> list[dict]:
        def steps(seconds: float, count: int, loss: float) -> dict:
            times = [10 * seconds] * live.SKIPPED + [seconds] * (count - live.SKIPPED)
            return {"seconds": times, "losses": [loss], "first": 0.5}

        pages, torches = iter(page), iter(torch)
        monkeypatch.setattr(live, "node_steps", lambda engine, job, file: steps(next(pages), job["steps"], 3.0))
        monkeypatch.setattr(live, "torch_steps", lambda run, ids, count: steps(next(torches), count, 3.0 + apart))
        return live.live_bench(Path(), SHIPPED, {}, len(page))

    return rows


def test_live_bench_takes_medians_of_rounds_and_of_the_steps_after_the_first(page_and_torch):
    """The ratio is each round's own, so that a slow moment strikes both of its sides."""
    rows = page_and_torch([0.1, 0.9, 0.2], [0.1, 0.6, 0.1])
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1.5, 2])
    text = live.table(rows)
    assert "within 1.6 times" in text and "1.50" in text.splitlines()[-3]


def test_live_bench_says_when_the_page_is_slow_or_has_another_loss(page_and_torch):
    """Beyond what the book promises, and beyond rounding."""
    text = live.table(page_and_torch([0.2], [0.1], apart=1e-3))
    assert "beyond 1.6 times torch" in text and "beyond 1e-04" in text


def test_live_bench_names_what_is_missing(monkeypatch, tmp_path: Path):
    """Steps that are left to time, Node.js, the engine; and what stopped the engine."""
    with pytest.raises(InputError, match="--steps 5: the first 5 are left out"):
        live.live_bench(tmp_path, SHIPPED, {}, steps=5)
    monkeypatch.setattr(live.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="there is no `node` here: install Node"):
        live.node_steps(tmp_path, {}, {})
    node = interpreter(tmp_path, "echo The reason. >&2; exit 1")
    monkeypatch.setattr(live.shutil, "which", lambda name: node)
    with pytest.raises(InputError, match=r"engine failed: The reason\.$"):
        live.node_steps(tmp_path, {}, {})
    with pytest.raises(InputError, match="part of the book, not of the package"):
        live.node_steps(tmp_path / "none", {}, {})


# ---- the contestants themselves, on a tiny model ----

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with the small Llama's tokenizer, whose vocabulary is small."""
    from tiny import tiny_llama
    from transformers import AutoTokenizer

    path, tokenizer = tmp_path_factory.mktemp("tiny"), AutoTokenizer.from_pretrained(DATA / "small_llama")
    tiny_llama(vocabulary=len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_job(name: str, folder: Path) -> dict:
    dtype = next((one.dtypes[0] for one in CONTESTANTS if one.name == name and one.dtypes), "")
    return {"contestant": name, "method": "lora", "steps": STEPS, "model": str(folder), "task": "docstrings",
            "validation": 8, "dtype": dtype}  # fmt: skip


# transformers renamed gradient_checkpointing; peft and the bench still use the name that all allowed versions know.
THEIR_WARNINGS = (
    "ignore:`(is_)?gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)


@pytest.mark.slow
@pytest.mark.node
@pytest.mark.model
@pytest.mark.filterwarnings(*THEIR_WARNINGS)
def test_a_page_and_torch_make_the_same_steps():
    """What the bench compares is one training: the losses of the first steps are the same."""
    from peftbook.core.records import default_store
    from peftbook.views.site.live import ENGINE, data, weights

    (row,) = live.live_bench(ENGINE, data(default_store()), weights("rows"), 1, live.SKIPPED + 1)
    assert row["apart"] < live.AGREED and row["page"] > 0 < row["torch"]


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings(*THEIR_WARNINGS)
def test_every_contestant_does_the_same_work(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Same examples, tokens and labels, so nearly the same model afterwards; TRL's own template adds one label."""
    pytest.importorskip("trl")
    monkeypatch.setattr(measuring, "BATCH", 2)
    monkeypatch.setattr(peers, "BATCH", 2)
    found = {one.name: measuring.measure(tiny_job(one.name, folder)) for one in CONTESTANTS}
    totals = {
        name: {key: sum(step[key] for step in one["work"]) for key in one["work"][0]} for name, one in found.items()
    }
    ours = totals["ours"]
    assert ours["examples"] == STEPS * measuring.BATCH
    for name, total in totals.items():
        extra = ours["examples"] if name == "trl-default" else 0
        assert total["examples"] == ours["examples"], name
        assert total["label_tokens"] == ours["label_tokens"] + extra, name
        assert total["real_tokens"] == ours["real_tokens"] + extra, name
        assert total["padded_tokens"] >= total["real_tokens"], name
    for name, one in found.items():
        json.dumps(one)
        assert len(one["losses"]) == len(one["ends"]) == len(one["work"]), name
        assert all(map(math.isfinite, one["losses"])), name
        assert {2e-4} == set(one["learning_rates"]), name  # one step of warm-up: the full rate from the first step on
        assert one["validation_loss_nats"] == pytest.approx(found["ours"]["validation_loss_nats"], abs=0.01), name
        expected = "float32" if name == "trainer-default" else "bfloat16"
        assert expected in one["left_alone"]["dtype that linear layers return"], name
    assert found["trl-default"]["left_alone"]["gradient_checkpointing"] is True
    assert found["trl-tuned"]["set_here"]["gradient_checkpointing"] is False


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings(*THEIR_WARNINGS)
def test_packed_examples_do_not_see_each_other(folder: Path, tmp_path: Path):
    """The loss of one pack of eight equals that of the eight alone, and would not without the position ids."""
    pytest.importorskip("trl")
    import torch

    from peftbook.core.specs import Model
    from peftbook.methods.lora import LoRA
    from peftbook.tasks import get_task
    from peftbook.training.forward import apply_method
    from peftbook.training.loop import losses
    from peftbook.training.models import load_model

    loaded = load_model(Model(name=str(folder)))
    model = apply_method(loaded.model, LoRA(rank=2), 0)
    task = get_task("docstrings")
    chosen = measuring.choose(loaded.tokenizer, task, "train", BATCH)
    packed = named("trl-packed")
    trainer, _ = peers.build_peer(packed, model, loaded.tokenizer, task, chosen, str(tmp_path), [])
    (batch,) = trainer.get_train_dataloader()
    data = [encoded for _, encoded in chosen]
    nats, counts = losses(model, data, pad_id=loaded.tokenizer.pad_token_id, dtype="fp32")
    with torch.no_grad():
        together = trainer.compute_loss(model, dict(batch)).item()
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        mixed = trainer.compute_loss(model, dict(batch)).item()
    assert together == pytest.approx(sum(nats) / sum(counts), rel=1e-5)
    assert mixed != pytest.approx(together, rel=1e-5)


@pytest.mark.slow
@pytest.mark.model
def test_a_contestant_runs_in_a_process_of_its_own(folder: Path):
    """The result comes back whole, with a peak that training raised."""
    found = rounds.run_process(tiny_job("ours", folder))
    assert len(found["losses"]) == STEPS
    assert found["peak_memory_mib"] >= found["load_memory_mib"] > 100


MEASURING = "import json, sys; from bench.rounds import run_process; run_process(json.loads(sys.argv[1]))"


@pytest.mark.slow
@pytest.mark.model
def test_a_contestant_does_not_outlive_the_bench(folder: Path):
    """However that ends. By itself this one would train the embedded model for minutes."""
    job = json.dumps(tiny_job("ours", folder) | {"steps": 100, "model": specs.Model().name})
    bench = subprocess.Popen([sys.executable, "-c", MEASURING, job], env=FINDS, stderr=subprocess.DEVNULL)
    wait_for(lambda: psutil.Process(bench.pid).children())
    (contestant,) = psutil.Process(bench.pid).children()
    bench.kill()
    bench.wait()
    try:
        contestant.wait(60)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            contestant.kill()
