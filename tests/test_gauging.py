"""What was forgotten, measured afterwards: as it would have been at the training's end."""

from __future__ import annotations

import os
import shutil

import pytest
from studio_api import finish, served
from studio_home import colours_project, small_run

from peftbook.decision.forgetting import prose_probe
from peftbook.errors import InputError
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.untuned import Untuned
from peftbook.studio.assistant import Assistant
from peftbook.studio.decisions import compared
from peftbook.studio.gauging import ask_to_gauge, gauge_later, not_gauged
from peftbook.studio.store import Studio
from peftbook.studio.work import compute

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Studio:
    """Three runs of the small Llama that the worker's own code computed, with what they forgot."""
    studio = Studio(tmp_path_factory.mktemp("home"))
    project = colours_project(studio)
    methods = (Untuned(), LoRA(rank=2), PromptTuning(length=2))
    studio.submit(project.id, [small_run(studio, project, one, tokens=200, rate=1e-2) for one in methods])
    while (job := studio.claim("stand-in", os.getpid())) is not None:
        studio.adopt(job.id, job.attempt, os.getpid())
        compute(studio, studio.job(job.id), anew=True)
        studio.finish(job.id, job.attempt)
    return studio


def forget_gauges(studio: Studio) -> dict[str, list[float]]:
    """Let the home be as old as it was before there were any; what they said."""
    found = {}
    for job in studio.jobs():
        store = studio.records(job.project)
        found[job.key] = store.get(prose_probe(job.run)).per_example["loss_nats"]
        store.path(prose_probe(job.run).key).unlink()
    return found


def test_afterwards_it_is_what_it_would_have_been(home):
    """Text by text, of an adapter of peft, of a method of tensors and of the model as it comes; then nothing lacks it.
    The table that was drawn without it is drawn anew.
    """
    project, jobs = home.projects()[0].id, home.jobs()
    assert not_gauged(home, jobs) == []
    asked = ask_to_gauge(home, project)
    assert Assistant(home).tick() and "nothing to measure" in home.answer(asked).text
    before = forget_gauges(home)
    assert not_gauged(home, jobs) == jobs
    assert all(row.forgotten is None for row in compared(home, project, jobs, "perplexity").rows)
    asked = served(home)("POST", f"/api/v1/projects/{project}/forgetting")
    assert asked.status_code == 202 and Assistant(home).tick()
    assert home.answer(asked.json()["id"]).text == "Measured of 3 runs what they forgot."
    store = home.records(project)
    for job in jobs:
        later = store.get(prose_probe(job.run)).per_example["loss_nats"]
        assert later == pytest.approx(before[job.key], rel=1e-5)
    rows = compared(home, project, jobs, "perplexity").rows
    assert [row.forgotten is None for row in rows] == [row.untuned for row in rows]
    assert gauge_later(home, jobs) == 0


def test_what_left_nothing_is_not_asked_for(home, tmp_path):
    """Without its adapter a run stays not measured; and a run that is not done is none."""
    studio = Studio(tmp_path)
    project = colours_project(studio)
    studio.submit(project.id, [small_run(studio, project, LoRA(rank=rank), texts=2) for rank in (2, 4, 8)])
    for _ in range(2):
        finish(studio, studio.claim("stand-in", 1))
    jobs = studio.jobs(project.id)
    shutil.rmtree(studio.adapter(jobs[0]))
    assert [job.id for job in not_gauged(studio, jobs)] == [jobs[1].id]
    said = []
    with pytest.raises(InputError, match="cannot be read"):
        gauge_later(studio, jobs, said.append)  # its adapter is an invented one
    assert len(said) == 2 and "1 of 1" in said[0]
