"""A trained model where it is tried or served: a base, base and adapter, a merged folder, a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from peftbook.core import specs
from peftbook.core.base_models import model_named
from peftbook.core.errors import InputError
from peftbook.training.models import Loaded, check_reachable, load_model, load_tokenizer
from peftbook.training.restored import TENSORS, load_run
from peftbook.views.export.gguf_adapter import adapter_folder, base_of

INSTRUCTION, SYSTEM = "instruction.txt", "system.txt"  # in a folder of `train --out`: what its model was told


def load_road(name: str, base: str = "", platform: str = "cpu") -> Loaded:
    """A model by the name of an embedded one, its hub id, its folder, that of an adapter or of `train --out`, or its
    GGUF file, in float32.

    base: of an adapter, if not the one that it names.  Raises InputError for what is none of them.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return load_gguf(path)
    if not path.is_dir() or (path / "config.json").is_file():
        check_reachable(model := model_named(name))
        return load_model(model, platform=platform)
    if (path / "run.json").is_file():
        run = specs.Run.model_validate_json((path / "run.json").read_text(encoding="utf-8"))
        if (path / TENSORS).is_file() or run.method.packed:  # what peft's configuration does not say
            return load_run(run, path, platform)
    return load_adapter(adapter_folder(path), base, platform)


def load_adapter(folder: Path, base: str, platform: str) -> Loaded:
    """peft's adapter beside its base, with the tokenizer that was saved with it, else the base's."""
    from peft import PeftModel

    model = model_named(base) if base else base_of(folder)
    check_reachable(model)
    loaded = load_model(model, platform=platform)
    try:
        tuned: Any = PeftModel.from_pretrained(loaded.model, str(folder)).eval()
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(
            f"Adapter {str(folder)!r} does not fit {model.name!r} ({reason}): name its base with --model."
        ) from None
    own = (folder / "tokenizer_config.json").is_file()
    return Loaded(tuned, load_tokenizer(str(folder)) if own else loaded.tokenizer)


def load_gguf(file: Path) -> Loaded:
    """The weights and the tokenizer of a GGUF file as transformers reads them, without llama.cpp's arithmetic."""
    if not file.is_file():
        raise InputError(f"There is no file {str(file)!r}: name a GGUF file that exists.")
    place: Any = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **place, quantization_config=GgufConfig(dequantize=True), dtype="float32"
        )
        return Loaded(model.eval(), AutoTokenizer.from_pretrained(**place))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"{str(file)!r} cannot be read ({reason}): serve it with llama-server instead.") from None


def system_of(name: str) -> str:
    """What the system said to the model of a folder of `train --out`, or nothing."""
    file = Path(name).expanduser() / SYSTEM
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def instruction_of(name: str) -> str:
    """What the model of a folder of `train --out` was told, with {input} in it."""
    file = Path(name).expanduser() / INSTRUCTION
    return file.read_text(encoding="utf-8") if file.is_file() else "{input}"
