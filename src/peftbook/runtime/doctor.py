"""What this machine is, in which type it computes and how fast: one screen, for readers and reports of faults."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

import peftbook
from peftbook.core import specs
from peftbook.core.folders import DATA, cache_folder
from peftbook.methods import usual
from peftbook.runtime.hardware import cores, cpu_model, is_idle
from peftbook.runtime.precision import Products, chosen_dtype, instruction_limits, products_here
from peftbook.runtime.threads import best_threads
from peftbook.tasks import task_spec

MACHINES = DATA / "machines"  # what `peftbook doctor --json` said on the machines of the book; the first made the runs
TASK, TOKENS, RATE = "docstrings", 6_606, 1e-4  # of the training whose speed is predicted: seven batches
PROGRAMS = {"chromium": "make pdf, make audit", "soffice": "the deck's handout", "node": "make audit"}
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")


@dataclass(frozen=True)
class Examination:
    """What `peftbook doctor` finds.

    instructions: the instruction sets that torch uses, and environment variables that limit them.  threads: of a run.
    cache: the folder of prepared models.  gpu: its name and compute type, or empty.  dtype, why: the compute type of
    CPU runs, and the reason.  operations_per_second: of one thread in products, by type.
    tokens_per_second: by method, of training on docstrings, predicted from the machine's rates.
    missing: extra or program → how to install it, or what needs it.
    """

    version: str
    system: str
    python: str
    processor: str
    instructions: str
    cores: int
    threads: int
    memory_bytes: int
    free_memory_bytes: int
    cache: str
    free_disk_bytes: int
    gpu: str
    dtype: str
    why: str
    operations_per_second: Mapping[str, float]
    tokens_per_second: Mapping[str, float]
    missing: Mapping[str, str]
    libraries: Mapping[str, str]


def examine() -> Examination:
    """Examine this machine. Its rates are measured once, while it is idle, in 20 seconds."""
    import torch

    memory, folder, threads, products = psutil.virtual_memory(), cache_folder(), best_threads(), products_here()
    torch.set_num_threads(threads)
    return Examination(
        version=peftbook.__version__,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        processor=cpu_model(),
        instructions=", ".join(filter(None, (torch.backends.cpu.get_cpu_capability(), instruction_limits()))),
        cores=cores(),
        threads=threads,
        memory_bytes=memory.total,
        free_memory_bytes=memory.available,
        cache=str(folder),
        free_disk_bytes=shutil.disk_usage(existing(folder)).free,
        gpu=gpu_words(),
        dtype=chosen_dtype(),
        why=why(products),
        operations_per_second={"fp32": products.fp32, "bf16": products.bf16},
        tokens_per_second=tokens_per_second(),
        missing=missing_extras() | missing_programs(),
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES if is_installed(name)},
    )


def existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(candidate for candidate in (folder, *folder.absolute().parents) if candidate.is_dir())


def gpu_words() -> str:
    """The GPU's name and compute type; empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return f"{torch.cuda.get_device_name()}, computes in {chosen_dtype('auto', 'cuda')}"


def why(products: Products) -> str:
    """Why CPU runs compute in their type, in a sentence."""
    if products.native:
        return f"its products are {products.bf16 / products.fp32:.1f} times as fast as those of float32"
    return (
        f"products of bfloat16 are {products.fp32 / products.bf16:.0f} times as slow; the book's runs, which fix "
        "bfloat16, are multiplied in float32 and rounded"
    )


def tokens_per_second() -> dict[str, float]:
    """Method → predicted training tokens a second on this machine, on docstrings with the embedded model.

    Empty if the machine's rates are unknown and it is busy: rates measured now would be wrong, and cached.
    """
    from peftbook.training.calibration import known_rates
    from peftbook.training.estimate import estimate

    if known_rates("cpu") is None and not is_idle():
        return {}
    budget, speeds = specs.Budget(tokens=TOKENS, learning_rate=RATE, train_examples=200), {}
    for method in filter(lambda method: method.trains, usual().values()):
        run = specs.Run(task=task_spec(TASK), method=method, budget=budget, dtype=chosen_dtype())  # type: ignore
        speeds[method.kind] = TOKENS / estimate(run)["train"]
    return speeds


def is_installed(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing_extras() -> dict[str, str]:
    """Extra → its packages that are not installed, for extras that lack some; and the packages that carry weights."""
    missing: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("peftbook") or ():
        package, _, condition = line.partition(";")
        name = re.split(r"[<>=!~ \[]", package.strip(), maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([^'\"]+)", condition)
        if not is_installed(name):
            missing.setdefault(extra[1] if extra else "peftbook", []).append(name)
    return {f"[{extra}]": f'pip install "peftbook[{extra}]" ({", ".join(names)})' for extra, names in missing.items()}


def missing_programs() -> dict[str, str]:
    """Program → what needs it, for those that are not on the path."""
    return {name: f"needed by {use}" for name, use in PROGRAMS.items() if shutil.which(name) is None}


# --- the machines of the book ----------------------------------------------------------------------------------


def book_machines() -> list[Examination]:
    """Examinations of the book's machines; the first one made its runs."""
    return [Examination(**json.loads(path.read_text())) for path in sorted(MACHINES.glob("*.json"))]


# --- text ------------------------------------------------------------------------------------------------------


def as_text(examination: Examination) -> str:
    """One screen."""
    rates = ", ".join(f"{name} {rate / 1e9:.3g}" for name, rate in examination.operations_per_second.items())
    memory = f"{gib(examination.memory_bytes)}, {gib(examination.free_memory_bytes)} free"
    rows = {
        "peftbook": f"{examination.version}, Python {examination.python}, {examination.system}",
        "processor": f"{examination.processor}, {examination.cores} cores, {examination.instructions}",
        "a run gets": f"{examination.threads} thread{'s' * (examination.threads > 1)}",
        "memory": memory,
        "disk": f"{gib(examination.free_disk_bytes)} free at {examination.cache}",
        "GPU": examination.gpu or "none that torch can use",
        "computes in": f"{examination.dtype}: {examination.why}",
        "GFLOP/s": f"{rates} a thread",
        "libraries": ", ".join(f"{name} {version}" for name, version in examination.libraries.items()),
        **{f"missing {name}": words for name, words in examination.missing.items()},
    }
    width = max(map(len, rows)) + 2
    lines = [f"{name:<{width}}{words}" for name, words in rows.items()]
    return "\n".join([*lines, "", *speed_lines(examination)])


def speed_lines(examination: Examination) -> list[str]:
    """Tokens a second of each method here, beside those of the book's machines."""
    if not examination.tokens_per_second:
        return ["Tokens a second are not known: the machine does other work now. Ask again when it is idle."]
    theirs, head = book_machines()[0].tokens_per_second, "the book's"
    lines = [f"{'tokens/s, training':<22}{'here':>14}{head:>14}"]
    for name, rate in examination.tokens_per_second.items():
        lines.append(f"  {name:<20}{rate:>14.0f}{theirs.get(name, 0):>14.0f}")
    return [*lines, f"Predicted from measured rates, for {TASK} in batches of 8 with {specs.EMBEDDED_MODEL}."]


def gib(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / 2**30:.1f} GiB"
