"""Local model folders: equal files give an equal key, other weights another one, and no run is computed on others."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from studio_home import colours_project

from peftbook.core import base_models, specs
from peftbook.core.base_models import BLOCK_BYTES, check_model, folder_revision, model_named, pinned
from peftbook.core.errors import InputError
from peftbook.studio.plan import plan
from peftbook.studio.settings import Settings
from peftbook.studio.store import Studio

LARGE = BLOCK_BYTES  # numbers of four bytes: four blocks, of which the second and third are read in part


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the files of a model; no model could be made of them, and none is."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(8, 16)), rng.normal(size=LARGE)
    save_file({"small": small.astype("f4"), "large": large.astype("f4")}, made / "model.safetensors")
    return made


def changed(folder: Path, name: str, place: int) -> None:
    """Change one number of a tensor; the file keeps its length and its header."""
    weights = dict(load_file(folder / "model.safetensors"))
    weights[name].reshape(-1)[place] += 1
    save_file(weights, folder / "model.safetensors")


def test_the_hash_is_of_what_is_in_the_folder(folder, tmp_path):
    """Asked again, or of a copy elsewhere with other dates, a card and a folder beside it: the same."""
    first = folder_revision(folder)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "README.md").write_text("# a model")
    (copy / "runs").mkdir()
    assert first == folder_revision(folder) == folder_revision(copy) and len(first) == 64


@pytest.mark.parametrize(("name", "place"), [("small", 0), ("small", 77), ("large", 0), ("large", LARGE // 2),
                                             ("large", LARGE - 1)])  # fmt: skip
def test_another_weight_is_another_hash(folder, name, place):
    """One number of a small tensor, or at the places of a large one that are read; size and header are the same."""
    before, size = folder_revision(folder), (folder / "model.safetensors").stat().st_size
    changed(folder, name, place)
    assert folder_revision(folder) != before and (folder / "model.safetensors").stat().st_size == size


@pytest.mark.parametrize("change", ["config", "tokenizer", "template", "shape", "shard", "name"])
def test_whatever_else_makes_another_model_is_another_hash(folder, change):
    """Settings, tokenizer, chat template, a tensor's shape, one more file, another name of the same file."""
    before = folder_revision(folder)
    if change in ("config", "tokenizer"):
        (folder / f"{change}.json").write_text('{"x": 1}')
    elif change == "template":
        (folder / "chat_template.jinja").write_text("{{ messages }}")
    elif change == "shape":
        weights = dict(load_file(folder / "model.safetensors"))
        save_file(weights | {"small": weights["small"].reshape(16, 8)}, folder / "model.safetensors")
    elif change == "shard":
        save_file({"x": np.zeros(1)}, folder / "more.safetensors")
    else:
        (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    assert folder_revision(folder) != before


def test_little_is_read_however_large_a_tensor_is(folder):
    """Three blocks of a gigabyte of zeros that takes no room on the disk."""
    size = 1 << 30
    header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    assert sum(map(len, base_models.samples(folder / "model.safetensors"))) == len(header) + 3 * BLOCK_BYTES


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02" + bytes(7) + b"[]", b"\x07" + bytes(7) + b'{"a":1}'])
def test_a_file_that_is_none_is_one_sentence(folder, content):
    """So is a folder without a model."""
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="is no safetensors file: save the model again"):
        folder_revision(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        folder_revision(folder)


def test_the_key_of_a_run_follows_the_weights_in_the_folder(folder, tmp_path):
    """The same name is the same run; with other weights it is another one, so nothing is taken from the cache."""
    studio = Studio(tmp_path / "home")
    task = studio.task(colours_project(studio).id)

    def key() -> str:
        return plan(task, Settings(models=(model_named(str(folder)),), methods=()))[0].key

    before = key()
    assert key() == before and model_named("owner/name@main") == specs.Model(name="owner/name", revision="main")
    changed(folder, "small", 3)
    assert key() != before
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        model_named(f"{folder}@main")


def test_a_run_of_a_folder_that_was_changed_is_refused(folder):
    """Else its record would tell of other weights than its key names; what has no hash is taken as it is."""
    model = model_named(str(folder))
    check_model(model)
    changed(folder, "large", 0)
    with pytest.raises(InputError, match="was changed: the hash of its folder is"):
        check_model(model)
    hub = specs.Model(name="owner/name", revision="main")
    for other in (model.model_copy(update={"revision": ""}), specs.Model(), hub):
        check_model(other)
    assert pinned(model) == f"hash of the folder {model.revision}" and pinned(model, 4).endswith(model.revision[:4])
    assert pinned(hub.model_copy(update={"revision": ""})) == "not pinned" and pinned(hub) == "revision main"


def test_no_name_tells_which_paths_this_machine_has(tmp_path):
    """A folder without a model, a file, a path below a file and one that is not there are refused in the same words."""
    (folder := tmp_path / "folder").mkdir()
    (file := tmp_path / "file").write_text("secret")
    names = map(str, (folder, file, file / "below", tmp_path / "nothing"))
    said = set()
    for name in names:
        with pytest.raises(InputError) as caught:
            model_named(name)
        said.add(str(caught.value).replace(name, "NAME"))
    assert len(said) == 1
