"""Kept results: equal to computed ones, and never older than anything that they rest on."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from peftbook import kept, results, studies
from peftbook.methods.untuned import Untuned
from peftbook.records import Record, Store, default_store, looked_at, steady, watch
from peftbook.site import tracing
from peftbook.specs import Evaluation, Run
from peftbook.studies import chosen_rates
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.tasks import task_spec

FLOATS = TypeAdapter(list[float])
TICK = kept.CLOCK_TICK
RUNS = [
    Run(task=task_spec("docstrings"), method=Untuned(), evaluation=Evaluation(split="test"), seed=seed)
    for seed in (0, 1)
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Store:
    """An empty store at hand, with results of its own."""
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("PEFTBOOK_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(kept, "CLOCK_TICK", 0)
    return Store(tmp_path / "records")


class Losses:
    """A result that reads what records there are, and counts how often it is computed."""

    def __init__(self):
        self.computed = 0

    def __call__(self, store: Store) -> list[float]:
        self.computed += 1
        return [record.measurements["loss"] for run in RUNS if (record := store.get(run)) is not None]

    def kept(self, store: Store) -> list[float]:
        return kept.kept("losses", self, "peftbook.errors", FLOATS, store).value


def save(store: Store, run: Run, loss: float) -> None:
    """A record of a run with this loss."""
    store.save(Record(key=run.key, spec=run, measurements={"loss": loss}))
    time.sleep(0.02)  # the file's time is then surely before what comes next


def test_a_result_is_computed_once_and_again_when_a_record_comes_changes_or_goes(here):
    """Each state of the records gives its own result; a state that is met again is computed again, never mixed up."""
    losses = Losses()
    save(here, RUNS[0], 1.5)
    assert [losses.kept(here) for _ in range(3)] == [[1.5]] * 3 and losses.computed == 1
    save(here, RUNS[1], 2.5)
    assert losses.kept(here) == losses.kept(here) == [1.5, 2.5] and losses.computed == 2
    save(here, RUNS[0], 0.1 + 0.2)
    assert losses.kept(here) == [0.1 + 0.2, 2.5] and losses.computed == 3
    here.path(RUNS[1].key).unlink()
    assert losses.kept(here) == [0.1 + 0.2] and losses.computed == 4


def test_a_changed_module_or_library_computes_again(here, tmp_path, monkeypatch):
    """The code that a result uses and the versions it counts with are part of what it rests on."""
    losses, module = Losses(), tmp_path / "module.py"
    module.write_text("MARGIN = 0.02")
    monkeypatch.setattr(kept, "code_of", lambda name: frozenset({str(module)}))
    monkeypatch.setattr(kept, "STARTED", time.time() + 60)
    losses.kept(here), losses.kept(here)
    assert losses.computed == 1
    module.write_text("MARGIN = 0.05")
    losses.kept(here), losses.kept(here)
    assert losses.computed == 2
    monkeypatch.setattr(kept, "_versions", lambda: ["another numpy"])
    losses.kept(here), losses.kept(here)
    assert losses.computed == 3


def test_a_new_module_computes_again(here, tmp_path, monkeypatch):
    """One that the code at hand would find and the entry does not know, as a new method is."""
    losses, code = Losses(), {str(kept.PACKAGE / "errors.py")}
    monkeypatch.setattr(kept, "code_of", lambda name: frozenset(code))
    losses.kept(here), losses.kept(here)
    assert losses.computed == 1
    code.add(str(kept.PACKAGE / "metrics.py"))
    losses.kept(here), losses.kept(here)
    assert losses.computed == 2


def test_a_process_whose_code_was_edited_since_keeps_nothing(here, tmp_path, monkeypatch):
    """What it has loaded is not what the file says: its results would be filed under the new file's hash."""
    losses, module = Losses(), tmp_path / "module.py"
    monkeypatch.setattr(kept, "code_of", lambda name: frozenset({str(module)}))
    module.write_text("edited after this process began")
    losses.kept(here), losses.kept(here)
    assert losses.computed == 2 and not kept.results_folder().exists()


def test_a_record_that_is_rewritten_meanwhile_is_not_mixed_up(here, monkeypatch):
    """The numbers are of the old record and the hash would be of the new one: nothing is kept."""
    monkeypatch.setattr(kept, "CLOCK_TICK", TICK)
    save(here, RUNS[0], 1.5)
    time.sleep(2 * TICK)

    def make(store: Store) -> list[float]:
        found = [store.need(RUNS[0]).measurements["loss"]]
        save(store, RUNS[0], 2.5)
        return found

    assert kept.kept("losses", make, "peftbook.errors", FLOATS, here).value == [1.5]
    assert kept.kept("losses", Losses(), "peftbook.errors", FLOATS, here).value == [2.5]


def test_what_rests_on_a_file_that_changed_since_files_were_taken_to_be_steady_is_not_kept(here, monkeypatch):
    """It may rest on what was recalled from before."""
    monkeypatch.setattr(kept, "CLOCK_TICK", TICK)
    losses = Losses()
    with steady():
        time.sleep(2 * TICK)
        save(here, RUNS[0], 1.5)
        time.sleep(2 * TICK)
        assert losses.kept(here) == [1.5]
    assert losses.kept(here) == [1.5] and losses.computed == 2
    assert losses.kept(here) == [1.5] and losses.computed == 2


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-9], lambda old: old.replace(b"1.5", b"1.4"),
                                    lambda old: b"\xff\xfe" + old, lambda old: b"[]"])  # fmt: skip
def test_a_damaged_entry_is_computed_again(here, damage):
    """Cut short, changed, not text, another form: no wrong number and no error."""
    losses = Losses()
    save(here, RUNS[0], 1.5)
    losses.kept(here)
    (entry,) = kept.results_folder().glob("*.json")
    entry.write_bytes(damage(entry.read_bytes()))
    assert losses.kept(here) == losses.kept(here) == [1.5] and losses.computed == 2


def test_where_nothing_can_be_written_a_result_is_computed(here, monkeypatch, tmp_path):
    """A file stands where the folder would be."""
    losses = Losses()
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("PEFTBOOK_RESULTS", str(tmp_path / "taken"))
    save(here, RUNS[0], 1.5)
    assert losses.kept(here) == losses.kept(here) == [1.5] and losses.computed == 2


def test_only_the_records_at_hand_are_kept(here, tmp_path):
    """A store of another folder is computed, and leaves nothing."""
    losses, other = Losses(), Store(tmp_path / "elsewhere")
    save(other, RUNS[0], 1.5)
    assert losses.kept(other) == losses.kept(other) == [1.5] and losses.computed == 2
    assert not kept.results_folder().exists()


def test_whose_runs_a_result_rests_on_is_told_wherever_they_lie(here, tmp_path):
    """At hand or not, the reads are those of the result, told when it is used, and not of whoever asks for it first."""
    for store in (here, Store(tmp_path / "elsewhere")):
        save(store, RUNS[0], 1.5)
        with watch() as seen:
            found = [kept.kept("losses", Losses(), "peftbook.errors", FLOATS, store) for _ in range(2)]
        assert not seen and [one.seen for one in found] == [(RUNS[0].key,)] * 2


@pytest.mark.parametrize("name", ["rank", "methods", "serving", "half_products"])
def test_what_is_kept_is_what_is_computed(name):
    """Numbers to the last digit, the verdict, and the runs that each rests on."""
    store, study = default_store(), studies.get_study(name)
    for _ in range(2):  # written, then read
        results._quantities.cache_clear(), results._verdict.cache_clear(), results._runs.cache_clear()
        claim = results.claim(name, store)
        assert dict(results.study_quantities(name, store)) == dict(study.quantities(store))
        assert claim.verdict == study.verdict(store)
        assert (claim.runs, claim.missing) == (len(study.runs(store)), len(study.missing(store)))


@pytest.mark.parametrize("module", ["rank", "benchmark", "memory", "throughput"])
def test_all_code_that_runs_is_found_by_reading_imports(module):
    """In a process that judges the studies of one module, every module of the package that was loaded is known."""
    script = (
        "import sys, json\nfrom peftbook import studies\nfrom peftbook.records import default_store\n"
        f"names = [n for n in studies.NAMES if studies.TEXTS['study'][n].get('module', n) == {module!r}]\n"
        "for name in names:\n"
        "    studies.get_study(name).verdict(default_store()), studies.get_study(name).quantities(default_store())\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'peftbook']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert str(kept.PACKAGE / f"studies/{module}.py") in loaded and loaded <= kept.code_of(f"peftbook.studies.{module}")


def test_every_import_in_the_package_is_found():
    """By the expression that looks for them as by Python's own parser."""
    for file in kept.PACKAGE.rglob("*.py"):
        wanted = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names if alias.name.split(".")[0] == "peftbook"}
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                if (node.module or "").split(".")[0] == "peftbook":
                    wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert wanted <= set(kept.imported(file)), file


def test_a_rate_that_was_asked_for_before_its_sweep_was_whole_is_asked_for_again(tmp_path, monkeypatch):
    """Not remembered beyond the records that were there: results that rest on it are kept."""
    shipped = default_store()
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path / "records"))
    with looked_at() as looked:
        before = learning_rate_for("lora")
    assert any(str(tmp_path) in path for path in looked) and before == learning_rate_for("lora", shipped)
    monkeypatch.setattr(chosen_rates, "swept_rate", lambda name, store: 7.0)
    assert learning_rate_for("lora") == before
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "0123456789ab.json").write_text("{}")
    assert learning_rate_for("lora") == 7.0


def test_a_study_does_not_rest_on_every_module():
    """Else an edit anywhere would compute all of them again."""
    names = {Path(file).relative_to(kept.PACKAGE).as_posix() for file in kept.code_of("peftbook.studies.rank")}
    assert "studies/rank.py" in names and "evidence/stats.py" in names
    assert not names & {"scratch/prompt.py", "site/theme.py", "studies/merging.py", "training/loop.py"}


def test_a_chapter_rests_on_what_its_kept_results_rest_on(here, tmp_path):
    """Its trace names the records, there or not, and the code, though none of them was opened or imported."""
    losses = Losses()
    save(here, RUNS[0], 1.5)
    with looked_at() as looked:
        losses.kept(here)
    trace = tracing.Trace(tmp_path / "trace.json", ())
    sys.addaudithook(trace.audit)
    losses.kept(here)
    trace.write()
    trace.active = False
    told = json.loads((tmp_path / "trace.json").read_text())
    there, gone = (str(Path(here.folders[0]) / f"{run.key[:12]}.json") for run in RUNS)
    assert {there, str(kept.PACKAGE / "errors.py")} <= set(told["files"]) and gone in told["missing"]
    assert {there, gone} <= looked


def test_several_processes_judge_ahead_what_one_would(tmp_path, monkeypatch):
    """Afterwards verdict, quantities and runs of every study are kept, and are those that a study itself gives."""
    names = ("standard", "lora_fa_memory", "coverage")
    code = f"from peftbook import results; results.NAMES = {names}; results.judge_ahead(results.default_store(), %d)"
    environment = {**os.environ, "PEFTBOOK_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def judge_ahead(processes: int) -> None:
        subprocess.run([sys.executable, "-c", code % processes], env=environment, check=True)

    judge_ahead(1)
    assert not any(tmp_path.iterdir()), "one process has nobody to help it"
    judge_ahead(2)
    before = sorted(tmp_path.iterdir())
    assert before or sys.platform != "linux"
    monkeypatch.setenv("PEFTBOOK_RESULTS", str(tmp_path))
    monkeypatch.setattr(results, "NAMES", names)
    if before:
        monkeypatch.setattr(kept, "_write", lambda path, *_: pytest.fail(f"{path.name} was not kept"))
    for known in (results._verdict, results._quantities, results._runs):
        known.cache_clear()
    for claim in results.claims(default_store()):
        assert claim.verdict == claim.study.verdict(default_store())
    judge_ahead(2)
    assert sorted(tmp_path.iterdir()) == before or not before


def test_no_study_loads_torch():
    """To judge records takes a second, which torch alone would double."""
    code = "import sys; from peftbook.studies import NAMES, get_study; [get_study(name) for name in NAMES]; "
    found = subprocess.run(
        [sys.executable, "-c", code + "print([name for name in ('torch', 'transformers') if name in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "[]\n"
