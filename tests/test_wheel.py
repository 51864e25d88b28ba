"""What pip installs: all of the package but the builders of its data, at work without a checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

from peftbook.tasks import data_at_hand, task_names

ROOT = Path(__file__).resolve().parents[1]
TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import peftbook
from peftbook import tasks
from peftbook.tasks import prose
assert peftbook.__file__.startswith(sys.argv[1]), peftbook.__file__
loaded = {name: tasks.get_task(name).data_sha256 for name in tasks.task_names() if tasks.data_at_hand(name)}
print(json.dumps(loaded | {"prose": len(prose.load())}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("peftbook-*.whl")
    return path


def shipped(wheel: Path) -> set[str]:
    """The files of the package that the wheel holds, as a checkout names them."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("peftbook/")}


def builders() -> set[str]:
    """Modules that build data, and those that nothing but such a module imports; tasks are found by their names."""
    graph = grimp.build_graph("peftbook", cache_dir=None)
    found_by_name = {f"peftbook.tasks.{name}" for name in task_names()}
    modules = {name for name in graph.modules if name.startswith("peftbook.tasks.") and name.endswith("_build")}
    while more := {
        name
        for name in graph.modules - modules - found_by_name
        if (importers := graph.find_modules_that_directly_import(name)) and importers <= modules
    }:
        modules |= more
    assert modules > {"peftbook.tasks.sql_build", "peftbook.tasks.sql_forms"}
    return modules


def test_the_wheel_holds_the_package_without_the_builders_of_data(wheel):
    """Not a file more or less: what is tracked, the fonts, and none of the modules that only a builder imports."""
    listed = subprocess.run(["git", "ls-files", "src/peftbook"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {path.removeprefix("src/") for path in listed.stdout.splitlines()}
    fonts = {f"peftbook/studio/fonts/{path.name}" for path in (ROOT / "book/assets/fonts").iterdir()}
    left_out = {f"{name.replace('.', '/')}.py" for name in builders()}
    assert left_out <= tracked
    assert shipped(wheel) == tracked - left_out | fonts


def test_the_package_works_from_the_wheel(wheel, tmp_path):
    """Unpacked into an empty folder it is imported from there and loads the tasks that a checkout loads."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-I", "-c", TRY, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert loaded.pop("prose") > 0
    assert sorted(loaded) == [name for name in task_names() if data_at_hand(name)]
