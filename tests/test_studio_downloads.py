"""What an assistant makes to be taken away: GGUF files of the trained weights."""

from __future__ import annotations

import json
import os

import gguf
import numpy as np
import pytest
import torch
from studio_home import colours_project, finish, small_run

from peftbook.core.errors import Conflict, InputError
from peftbook.core.records import Record
from peftbook.methods.lora import LoRA
from peftbook.studio import downloads
from peftbook.studio.assistant import Assistant
from peftbook.studio.playground import available_models
from peftbook.studio.store import Job, Studio
from peftbook.studio.trained_model import merge
from peftbook.studio.tuning import Tuning
from peftbook.training.forward import apply_method
from peftbook.training.models import load_model
from peftbook.views.export.gguf_adapter import write_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def job(studio) -> Job:
    """Done, with an adapter whose B is drawn instead of trained."""
    project = colours_project(studio)
    run = small_run(studio, project, LoRA())
    studio.submit(project.id, [run])
    found = studio.claim("w", os.getpid())
    studio.adopt(found.id, found.attempt, os.getpid())
    loaded = load_model(run.model, run.method, "cpu")
    model = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05)
    model.save_pretrained(studio.folder(project.id) / "adapters" / run.key[:12])
    studio.records(project.id).save(Record(key=run.key, spec=run, measurements={"loss_nats": 1.0}))
    assert studio.finish(found.id, found.attempt)
    return studio.job(found.id)


def answered(studio: Studio, asked: str) -> str:
    """The text of a task, when an assistant has made the file."""
    assert Assistant(studio, "make").tick()
    answer = studio.get_task(asked)
    assert answer.state == "done", answer.error
    return answer.text


def test_gguf_files_hold_what_was_trained(studio, job):
    """The adapter's factors alone, and the weights with them merged in; neither before it was asked for."""
    assert [one.name for one in downloads.offered(studio, job)] == [
        "adapter.zip",
        "model.zip",
        "adapter.gguf",
        "model.gguf",
    ]
    with pytest.raises(Conflict, match="has not been made yet"):
        downloads.file_of(studio, job, "model.gguf")
    read = {}
    for name in ("adapter.gguf", "model.gguf"):
        answered(studio, downloads.ask_for(studio, job, name))
        read[name] = {one.name: one.data for one in gguf.GGUFReader(downloads.file_of(studio, job, name)).tensors}
    assert all(name.endswith((".lora_a", ".lora_b")) for name in read["adapter.gguf"])
    layer = merge(studio, job).model.model.layers[0].self_attn.v_proj
    kept = torch.from_numpy(np.array(read["model.gguf"]["blk.0.attn_v.weight"], dtype=np.float32))
    torch.testing.assert_close(kept, layer.weight.detach(), rtol=1e-3, atol=1e-3)
    base = load_model(job.run.model, None, "cpu").model.model.layers[0].self_attn.v_proj.weight
    assert not torch.allclose(kept, base, atol=1e-2)


@pytest.mark.parametrize("changed", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_an_adapter_that_could_not_be_written_for_llama_cpp_is_not_offered_for_it(studio, job, tmp_path, changed):
    """DoRA and PiSSA are more than factors beside the base; `export`, which writes the file, refuses them."""
    config = studio.adapter(job) / "adapter_config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(before) | changed))
        with pytest.raises(InputError, match=r"GGUF adapter|starts at"):
            write_adapter(studio.adapter(job), tmp_path / "new.gguf", "fp16", job.run.model)
        assert "adapter.gguf" not in [one.name for one in downloads.offered(studio, job)]
    finally:
        config.write_text(before)


def test_nothing_is_offered_of_what_a_trial_trained(studio, job):
    """Its weights are not kept: there is no adapter, no merged model, and nothing to try."""
    tuning = Tuning.of(studio.task(job.project), [job.run])
    plan = studio.submit(job.project, tuning.runs(studio.records(job.project).get), tuning=tuning)
    trial, *_ = studio.jobs(plan=plan)
    finish(studio, trial, 1.0)
    trial = studio.job(trial.id)
    assert downloads.offered(studio, trial) == []
    with pytest.raises(InputError, match="not kept"):
        downloads.file_of(studio, trial, "adapter.zip")
    assert [value for _, value in available_models(studio, job.project)] == ["model:small-llama", f"job:{job.id}"]
