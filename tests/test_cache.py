"""The cache of results: equal to computed ones, and never older than anything that they depend on."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from peftbook import studies
from peftbook.core import imports
from peftbook.core.folders import results_folder
from peftbook.core.records import Record, Store, default_store
from peftbook.core.specs import Evaluation, Run
from peftbook.core.tracking import track_reads
from peftbook.evidence import cache, results
from peftbook.methods.untuned import Untuned
from peftbook.tasks import task_spec
from peftbook.views.site import tracing

FLOATS = TypeAdapter(list[float])
RUNS = [
    Run(task=task_spec("docstrings"), method=Untuned(), evaluation=Evaluation(split="test"), seed=seed)
    for seed in (0, 1)
]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty default store, with a cache of its own that knows nothing."""
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("PEFTBOOK_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(cache, "STARTED", time.time() + 60)
    return Store(tmp_path / "records")


class Losses:
    """A result that reads what records there are, and counts how often it is computed."""

    def __init__(self):
        self.computed = 0

    def __call__(self, store: Store) -> list[float]:
        self.computed += 1
        return [record.measurements["loss"] for run in RUNS if (record := store.get(run)) is not None]

    def cached(self, store: Store) -> cache.CachedResult[list[float]]:
        """As another process would ask for it, and then once more."""
        cache._results.clear(), cache._code_hash.cache_clear()
        first = cache.cached_result("losses", self, "peftbook.core.errors", FLOATS, store)
        assert cache.cached_result("losses", self, "peftbook.core.errors", FLOATS, store) == first
        return first


def save(store: Store, run: Run, loss: float) -> None:
    """A record of a run with this loss."""
    store.save(Record(key=run.key, spec=run, measurements={"loss": loss}))


def test_a_result_is_computed_again_when_a_record_comes_changes_or_goes(store):
    """However soon after the last time."""
    losses = Losses()
    save(store, RUNS[0], 1.5)
    assert [losses.cached(store).value for _ in range(3)] == [[1.5]] * 3 and losses.computed == 1
    save(store, RUNS[1], 2.5)
    assert losses.cached(store).value == losses.cached(store).value == [1.5, 2.5] and losses.computed == 2
    save(store, RUNS[0], 0.1 + 0.2)
    assert losses.cached(store).value == [0.1 + 0.2, 2.5] and losses.computed == 3
    store.path(RUNS[1].key).unlink()
    assert losses.cached(store).value == [0.1 + 0.2] and losses.computed == 4


def test_changed_code_or_another_library_computes_again(store, tmp_path, monkeypatch):
    """As does a module that is new, as a new method is."""
    losses, files = Losses(), {str(tmp_path / "module.py")}
    (tmp_path / "module.py").write_text("MARGIN = 0.02")
    monkeypatch.setattr(cache, "dependencies", lambda module: frozenset(files))
    losses.cached(store), losses.cached(store)
    assert losses.computed == 1
    (tmp_path / "module.py").write_text("MARGIN = 0.050")
    losses.cached(store), losses.cached(store)
    assert losses.computed == 2
    files.add(cache.__file__)
    losses.cached(store), losses.cached(store)
    assert losses.computed == 3
    monkeypatch.setattr(cache, "_versions", lambda: ["another numpy"])
    losses.cached(store), losses.cached(store)
    assert losses.computed == 4


def test_a_process_whose_code_was_edited_writes_nothing(store, tmp_path, monkeypatch):
    """What it has loaded is not what the file says: its results would be filed under the new file's hash."""
    monkeypatch.setattr(cache, "STARTED", time.time())
    monkeypatch.setattr(cache, "dependencies", lambda module: frozenset({str(tmp_path / "module.py")}))
    (tmp_path / "module.py").write_text("edited after this process began")
    losses = Losses()
    losses.cached(store), losses.cached(store)
    assert losses.computed == 2 and not results_folder().exists()


def test_a_record_that_is_rewritten_meanwhile_is_not_mixed_up(store):
    """The numbers are of the old record and the key would be of the new one: nothing is cached."""
    save(store, RUNS[0], 1.5)

    def compute(store: Store) -> list[float]:
        found = [store.need(RUNS[0]).measurements["loss"]]
        save(store, RUNS[0], 2.5)
        return found

    assert cache.cached_result("losses", compute, "peftbook.core.errors", FLOATS, store).value == [1.5]
    assert cache.cached_result("losses", Losses(), "peftbook.core.errors", FLOATS, store).value == [2.5]


@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-9], lambda old: old.replace(b"1.5", b"1.4"),
                                    lambda old: b"\xff\xfe" + old, lambda old: b"[]"])  # fmt: skip
def test_a_damaged_entry_is_computed_again(store, damage):
    """Cut short, changed, not text, another form: no wrong number and no error."""
    losses = Losses()
    save(store, RUNS[0], 1.5)
    losses.cached(store)
    (entry,) = results_folder().glob("*.json")
    entry.write_bytes(damage(entry.read_bytes()))
    assert losses.cached(store).value == losses.cached(store).value == [1.5] and losses.computed == 2


def test_what_cannot_be_written_or_is_of_another_store_is_computed(store, monkeypatch, tmp_path):
    """A file stands where the folder would be; a store of another folder leaves nothing on disk."""
    losses, other = Losses(), Store(tmp_path / "elsewhere")
    save(other, RUNS[0], 1.5)
    assert losses.cached(other).value == losses.cached(other).value == [1.5] and losses.computed == 2
    assert not results_folder().exists()
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("PEFTBOOK_RESULTS", str(tmp_path / "taken"))
    save(store, RUNS[0], 1.5)
    assert losses.cached(store).value == losses.cached(store).value == [1.5] and losses.computed == 4


def test_a_hit_has_its_runs_and_a_chapter_rests_on_its_files(store, tmp_path):
    """The chapter's trace names the records, there or not, and the code, though none of them was opened or imported.
    The runs are recorded by whoever uses the value.
    """
    losses = Losses()
    save(store, RUNS[0], 1.5)
    losses.cached(store)
    trace = tracing.Trace(tmp_path / "trace.json", ())
    sys.addaudithook(trace.audit)
    with track_reads() as reads:
        assert losses.cached(store).runs == (RUNS[0].key,) and losses.computed == 1
    trace.write()
    trace.active = False
    found = json.loads((tmp_path / "trace.json").read_text())
    there, gone = (str(Path(store.folders[0]) / f"{run.key[:12]}.json") for run in RUNS)
    assert {there, str(imports.PACKAGE / "core/errors.py")} <= set(found["files"]) and gone in found["missing"]
    assert not reads


@pytest.mark.parametrize("name", ["rank", "methods", "serving", "half_products"])
def test_what_is_cached_is_what_is_computed(name):
    """Numbers to the last digit, the verdict, and the runs that each rests on."""
    store, study = default_store(), studies.get_study(name)
    for _ in range(2):  # written, then read
        cache._results.clear()
        claim = results.claim(name, store)
        assert dict(results.study_quantities(name, store)) == dict(study.quantities(store))
        assert claim.verdict == study.verdict(store)
        assert (claim.runs, claim.missing) == (len(study.runs(store)), len(study.missing(store)))


@pytest.mark.parametrize("module", ["rank", "memory", "throughput"])
def test_all_code_that_runs_is_among_the_dependencies(module):
    """In a process that judges the studies of one module, every module of the package that was loaded is known."""
    script = (
        "import sys, json\nfrom peftbook import studies\nfrom peftbook.core.records import default_store\n"
        f"names = [n for n in studies.NAMES if studies.TEXTS['study'][n].get('module', n) == {module!r}]\n"
        "for name in names:\n"
        "    studies.get_study(name).verdict(default_store()), studies.get_study(name).quantities(default_store())\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'peftbook']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert str(imports.PACKAGE / f"studies/{module}.py") in loaded
    assert loaded <= imports.dependencies(f"peftbook.studies.{module}")


def test_every_import_in_the_package_is_found():
    """By the expression that looks for them as by Python's own parser."""
    for name, file in imports._modules().items():
        wanted = set()
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names if alias.name.split(".")[0] == "peftbook"}
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} imports relatively"
                if (node.module or "").split(".")[0] == "peftbook":
                    wanted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert wanted <= imports.imports_of(name), file


def test_a_study_does_not_depend_on_every_module():
    """Else an edit anywhere would compute all of them again."""
    files = imports.dependencies("peftbook.studies.rank")
    names = {Path(file).relative_to(imports.PACKAGE).as_posix() for file in files}
    assert "studies/rank.py" in names and "evidence/stats.py" in names
    assert not names & {"scratch/prompt.py", "views/site/theme.py", "studies/merging.py", "training/loop.py"}
