"""Which base model a name means: an embedded one, a hub id, or a local folder, pinned by a hash of its contents.

The hash takes moments whatever the size of the model, and changes with its weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA

SMALL_FILES = (".json", ".jinja", ".model", ".txt")  # settings, tokenizer and chat template: read whole
BLOCK_BYTES = 1 << 16
HEADER_BYTES = 100_000_000  # safetensors' own limit
SMALL_FOLDERS = {model.name: DATA / model.name.replace("-", "_") for model in specs.SMALL_LLAMAS.values()}
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")


def model_named(name: str) -> specs.Model:
    """An embedded model, a folder with the hash of what is in it, or a hub id with a revision after @.

    Raises InputError for anything else, in the same words whether or not there is such a path on this machine.
    """
    if name == specs.EMBEDDED_MODEL:
        return specs.Model()
    if small := next((model for model in specs.SMALL_LLAMAS.values() if model.name == name), None):
        return small
    if (folder := folder_named(name)) is not None and (folder / "config.json").is_file():
        return specs.Model(name=str(folder.absolute()), revision=folder_revision(folder))
    match = HUB_ID.fullmatch(name)
    if match is None or name[0] in "./~" or folder is not None:
        raise InputError(
            f"Model {name!r} is neither a folder nor a hub id: give {specs.EMBEDDED_MODEL!r}, {specs.SMALL_MODEL!r}, a "
            "folder with config.json and *.safetensors, or an id such as 'meta-llama/Llama-2-7b-hf'."
        )
    return specs.Model(name=match[1], revision=match[2] or "")


def folder_named(name: str) -> Path | None:
    """The folder of that name; None if it does not exist or the name cannot be a path."""
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, the home of nobody, a null character
        return None


def folder_revision(folder: Path) -> str:
    """SHA-256, in hexadecimal, of the contents that determine what a folder's model computes; not of path or dates.

    File by file in the order of their names: settings, tokenizer and chat template whole; of each `*.safetensors` its
    length, its header (names, types, shapes and places of the tensors) and of each tensor the first, the middle and
    the last 64 KiB, which is all of a tensor of up to 192 KiB. Training changes every tensor that it touches nearly
    everywhere, so another training gives another hash; an edit between these blocks of a large tensor is not detected.
    Raises InputError for a folder without a model, an unreadable file, or an invalid safetensors file.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"Model folder {str(folder)!r} has no config.json: name one that save_pretrained wrote.")
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (*SMALL_FILES, ".safetensors") or not path.is_file():
            continue
        try:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            for block in samples(path) if path.suffix == ".safetensors" else [path.read_bytes()]:
                digest.update(block)
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read ({error.strerror}): check its permissions.") from None
    return digest.hexdigest()


def samples(path: Path) -> Iterator[bytes]:
    """The header of a safetensors file, then blocks of each tensor in the order in which they lie.

    The format: the header's length, 8 bytes, little-endian; the header, JSON; the tensors, one after the other.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(min(length, HEADER_BYTES))
        try:
            tensors = json.loads(header)
            tensors.pop("__metadata__", None)
            places = sorted(
                (int(begin), int(end)) for begin, end in (tensor["data_offsets"] for tensor in tensors.values())
            )
            if any(not 0 <= begin <= end for begin, end in places):
                raise ValueError("a tensor lies before the file")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InputError(f"{str(path)!r} is no safetensors file: save the model again.") from None
        yield header
        for begin, end in places:
            last = max(begin, end - BLOCK_BYTES)
            for place in sorted({begin, max(begin, (begin + end - BLOCK_BYTES) // 2), last}):
                stream.seek(8 + length + place)
                yield stream.read(min(BLOCK_BYTES, end - place))


def check_folder(path: Path) -> None:
    """Refuse a model folder that lacks a config or that would need pickle to be read."""
    if not (path / "config.json").is_file():
        raise InputError(f"Model folder {str(path)!r} has no config.json: point to a folder saved by save_pretrained.")
    if not list(path.glob("*.safetensors")):
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in path.glob(pattern)]
        what = f"only pickle files ({', '.join(pickles)})" if pickles else "no weights"
        raise InputError(f"Model folder {str(path)!r} has {what}: save it as safetensors, pickle is never loaded.")


def check_model(model: specs.Model) -> None:
    """Raise InputError if the folder that a run names now holds another model than the run's."""
    folder = Path(model.name)
    if not in_folder(model) or model.revision in ("", specs.EMBEDDED_REVISION) or not folder.is_dir():
        return
    if (revision := folder_revision(folder)) != model.revision:
        raise InputError(
            f"The model in {model.name!r} was changed: the hash of its folder is {revision[:12]}…, the run names "
            f"{model.revision[:12]}…. Put the old files back, or plan the run again."
        )


def in_folder(model: specs.Model) -> bool:
    """Whether a model is a local folder, rather than an embedded model or a hub id."""
    return Path(model.name).is_absolute()


def pinned(model: specs.Model, digits: int | None = None) -> str:
    """A model's revision in words, in full or its first digits."""
    if not model.revision:
        return "not pinned"
    what = "hash of the folder" if in_folder(model) else "revision"
    return f"{what} {model.revision[:digits]}"
