"""How long training steps take, and how fast the machine is that takes them."""

from __future__ import annotations

import gc
import time
from statistics import median

import torch

from peftbook.core import specs
from peftbook.memory import Configuration
from peftbook.training.calibration import calibrate
from peftbook.training.probes import Findings, positive
from peftbook.training.products import half_products
from peftbook.training.random_model import model_and_ids


def steps(probe: specs.Probe) -> Findings:
    """The machine's rates, then the seconds of a training step in each of many configurations.

    settings: configurations (texts of `Configuration`s), trials. A first step of each is not counted.

    per_example: step_seconds, the median of the trials.  metrics_info: rates, of `peftbook.memory.time_model.Rates`.
    """
    (trials,) = positive(probe, "trials")
    began = time.perf_counter()
    rates = calibrate(probe.platform)
    spent = time.perf_counter() - began
    seconds: list[float] = []
    for text in probe.words("configurations"):
        tuned, ids = model_and_ids(Configuration.parse(text), probe.seed)
        with half_products(probe.platform):
            tuned.step(ids)
            seconds.append(round(median(tuned.step(ids) for _ in range(trials)), 5))
        del tuned
        gc.collect()
    return Findings(
        measurements={
            "calibration_seconds": round(spent, 2),
            "configurations": len(seconds),
            "threads": torch.get_num_threads(),
        },
        per_example={"step_seconds": seconds},
        metrics_info={"rates": rates.as_json()},
    )
