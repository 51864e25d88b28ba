"""Downloads of finished jobs: what is offered can be made, and of what the job trained alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from studio_home import colours_project, finish, small_run

from peftbook.core.errors import Conflict, InputError
from peftbook.core.records import Record
from peftbook.methods import Method, preset_method, presets
from peftbook.methods.lora import LoRA
from peftbook.studio import downloads
from peftbook.studio.assistant import Assistant
from peftbook.studio.backup import back_up, restore
from peftbook.studio.downloads import fill_folder
from peftbook.studio.playground import available_models
from peftbook.studio.store import Job, Project, Studio
from peftbook.studio.trained_model import load_trained, merge
from peftbook.studio.tuning import Tuning
from peftbook.studio.work import keep_trained
from peftbook.training.execute import Trainee
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.models import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Studio:
    return Studio(tmp_path_factory.mktemp("downloads"))


def trained_job(studio: Studio, project: Project, method: Method, seed: int = 0) -> Job:
    """A job that is done, with two texts; its trained tensors are moved by chance instead of trained."""
    run = small_run(studio, project, method, texts=2, seed=seed)
    (job,) = studio.jobs(plan=studio.submit(project.id, [run]))
    claimed = studio.claim("w", os.getpid(), job.id)
    assert claimed is not None
    studio.adopt(job.id, claimed.attempt, os.getpid())
    kept = {}
    if run.budget is not None:
        loaded = load_model(run.model, method, "cpu")
        model = apply_method(loaded.model, method, run.seed, loaded.tokenizer)
        torch.manual_seed(0)
        with torch.no_grad():
            for value in trainable_state(model).values():
                value.add_(torch.randn_like(value), alpha=0.05)
        trainee = Trainee(run, studio.task(project.id), loaded, model)
        kept = keep_trained(studio.folder(project.id), trainee)
    scores = {"loss_nats": [1.0] * 4, "label_tokens": [2.0] * 4, "rougeL": [0.5, 0.2]}
    record = Record(key=run.key, spec=run, measurements={"loss_nats": 1.0}, per_example=scores, provenance=kept)
    studio.records(project.id).save(record, ["red", "blue"])
    assert studio.finish(job.id, claimed.attempt)
    return studio.job(job.id)


@pytest.fixture(scope="module")
def job(studio) -> Job:
    return trained_job(studio, colours_project(studio), LoRA())


def answered(studio: Studio, asked: str) -> str:
    """The text of a task, when an assistant has made the file."""
    assert Assistant(studio, "make").tick()
    answer = studio.get_task(asked)
    assert answer.state == "done", answer.error
    return answer.text


def test_gguf_files_hold_what_was_trained(studio, job):
    """The adapter's factors alone, and the weights with them merged in; neither before it was asked for."""
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


OTHERS = ("qlora:quant=int4", "peft:LORA:r=4", "peft:LOHA:r=2", "peft:PROMPT_TUNING:num_virtual_tokens=4")


@pytest.mark.parametrize("name", [*(one.name for one in presets()), *OTHERS])
def test_what_is_offered_can_be_made(studio, name):
    """Of every method, each file; what is not offered says why in one sentence."""
    job = trained_job(studio, colours_project(studio), preset_method(name), seed=1)
    for file in downloads.ARTEFACTS.values():
        why = file.obstacle(studio, job)
        if not why:
            assert file.make(studio, job).stat().st_size > 100
        else:
            assert why.endswith(".") and (" download " in why or "has no adapter" in why), why
    for path in studio.downloads(job.project).iterdir():
        path.unlink()  # 16 methods would leave a gigabyte
    has = {file.name for file in downloads.offered(studio, job)}
    assert ("model.gguf" in has) == ("model.zip" in has) and "outputs.csv" in has
    assert {"lora": "adapter.gguf" in has, "prompt": "model.zip" not in has, "full": "adapter.zip" not in has}.get(
        name, True
    )


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def zero_weights(folder: Path) -> None:
    """What peft reads without a word, and what the base computes then."""
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(value) for name, value in load_file(file).items()}, file)


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "zeroed": (zero_weights, "are not those that job"),
    "reconfigured": (write("adapter_config.json", '{"peft_type": "LORA", "r": 16}'), "are not those that job"),
    "lost": (lambda folder: (folder / "adapter_config.json").unlink(), "are not those that job"),
    "template": (write("chat_template.jinja", "{{ messages }}"), "'chat_template.jinja' in .* is neither weights nor"),
    "code": (
        write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.X", null]}}'),
        "'tokenizer_config.json' in",
    ),
    "pickle": (write("adapter_model.bin", "x"), "'adapter_model.bin' in"),
    "link": (lambda folder: (folder / "trainable.safetensors").symlink_to("/etc/passwd"), "'trainable.safetensors' in"),
}


@pytest.mark.parametrize("harm", HARM)
def test_an_adapter_that_its_training_did_not_write_is_not_used(job, studio, tmp_path, harm):
    """Not by the try-out, no download, the folder of `train`, nor another project, which computes the run again; a
    restored backup is no way around.
    """
    change, why = HARM[harm]
    homes, home = [], studio.home
    for at in ("copy", "restored"):
        back_up(home, tmp_path / f"{at}.zip")
        restore(tmp_path / f"{at}.zip", home := tmp_path / at)
        homes.append(Studio(home))
        if at == "copy":
            assert load_trained(homes[0], job)
            change(homes[0].adapter(job))
    (out := tmp_path / "out").mkdir()
    for other in homes if harm != "link" else homes[:1]:  # which no backup takes along
        uses = [partial(load_trained, other, job), partial(merge, other, job), partial(fill_folder, other, job, out)]
        uses += [partial(one.make, other, job) for one in downloads.ARTEFACTS.values() if one.name != "outputs.csv"]
        for use in uses:
            with pytest.raises(InputError, match=why):
                use()
        assert "adapter.gguf" in [one.name for one in downloads.offered(other, job)]  # whoever takes it is told why not
        (again,) = other.jobs(plan=other.submit(colours_project(other).id, [job.run]))
        assert again.state == "queued" and not other.has_adapter(again)


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
