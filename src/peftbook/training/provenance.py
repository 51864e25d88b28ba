"""Provenance: where, with what and by which commit a record was made."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from peftbook.runtime.hardware import cpu_model
from peftbook.runtime.precision import products_here
from peftbook.training.distributed import ALONE, Processes

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "tokenizers", "rouge_score", "bert-score")


def provenance(started: datetime.datetime, micro_batch: int | None, processes: Processes = ALONE) -> dict:
    """Where and with what a record was made."""
    finished = datetime.datetime.now(datetime.UTC)
    return {
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "bf16_products": "native" if products_here().native else "widened",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "micro_batch": micro_batch,
        "processes": processes.count,
        "strategy": processes.strategy,
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
        **commit(),
    }


@functools.cache
def commit() -> dict[str, object]:
    """Commit and dirty flag of the checkout, or nothing outside one; asked once, as a process loads its code once."""
    folder = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(folder)]
        revision = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run(
            [*ask, "status", "--porcelain", "--untracked-files=no", "--", str(folder.parent)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": revision.strip(), "dirty": bool(changed.strip())}


def seconds_of(predicted: dict[str, float], measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Predicted and measured seconds of the same parts, for the record's provenance."""
    if not predicted:
        return {}
    found = {name: measured[f"{name}_seconds"] for name in predicted if f"{name}_seconds" in measured}
    return {"predicted_seconds": predicted, "measured_seconds": found}
