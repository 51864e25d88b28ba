"""The workflows that a host runs: what they call is there, and a change of it is seen here and not on the day of a
release.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftbook.views.export import epub
from peftbook.views.site import identity

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}


def steps(name: str) -> list[dict]:
    """The steps of all jobs."""
    return [step for job in yaml.safe_load(WORKFLOWS[name].read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_target_is_one_of_the_makefile(name):
    """Each word after `make` names one."""
    targets = set(" ".join(re.findall(r"^([\w ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)).split())
    called = [words.split() for step in steps(name) for words in re.findall(r"make (.*)", step.get("run", ""))]
    for words in called:
        assert {*words} <= targets
    assert called


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_job_ends_and_may_do_no_more_than_it_needs(name):
    """A limit of time wherever something is built, rights that are named, actions of a version."""
    whole = yaml.safe_load(WORKFLOWS[name].read_text())
    assert set(whole["permissions"]) == {"contents"}
    for job in whole["jobs"].values():
        assert job.get("timeout-minutes", 0) > 0 or not any("run" in step for step in job["steps"])
        assert job["runs-on"] != "ubuntu-latest"
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps(name) if "uses" in step)


def test_a_release_packs_what_the_builds_write():
    """The names are those of the builders; the version is asked for as the citation has it."""
    said = "\n".join(step.get("run", "") for step in steps("release"))
    for path in ("_build/peftbook.pdf", "_build/html/*.epub", "slides/*.pptx", "slides/*-handout.pdf", "CITATION.cff"):
        assert path in said
    assert epub.NAME.endswith(".epub")
    assert f"version: {identity.version()}" in (ROOT / "CITATION.cff").read_text().splitlines()
    assert 'grep -qx "version: ${GITHUB_REF_NAME#v}" CITATION.cff' in said


def test_the_action_writes_the_decision_on_the_page_of_the_run(tmp_path):
    """Its command, in the shell that the host starts: the outcome and how many examples would decide."""
    action = yaml.safe_load((ROOT / ".github/actions/decide/action.yml").read_text())
    *_, step = action["runs"]["steps"]
    (tmp_path / "peftbook").write_text(f'#!/bin/sh\nexec {sys.executable} -m peftbook "$@"\n')
    (tmp_path / "peftbook").chmod(0o755)
    logs, page = ROOT / "tests/logs", tmp_path / "summary.md"
    given = {
        "files": f"a={logs}/lm_eval_embedded.jsonl b={logs}/lm_eval_small.jsonl",
        "margin": "0.05",
        "options": "--measure acc",
    }
    env = os.environ | {name: given[value.split(".")[1].rstrip(" }")] for name, value in step["env"].items()}
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GITHUB_STEP_SUMMARY": str(page)}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, check=True, capture_output=True)
    assert page.read_text().startswith("```\nacc (more is better): 40 examples\n")
    assert {*given} == {*action["inputs"]} and " examples, drawn anew, would find 0.05" in page.read_text()
