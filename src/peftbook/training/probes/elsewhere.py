"""What the byte model says of figures that others published."""

from __future__ import annotations

import json

from peftbook.core import specs
from peftbook.memory import Configuration, read_shape
from peftbook.memory.fit import BESIDE, Reserve
from peftbook.memory.stacks import STACKS, setup_in
from peftbook.training.probes import Findings

PROMISED = Reserve(1.5 * 2**30, 0.12)  # the upper end of `fit`'s reserve when the rows were judged; it is wider since


def predictions(probe: specs.Probe) -> Findings:
    """Bytes of each row of a table, by the stack that it names and the settings that it states.

    settings: rows, JSON texts with stack, model, settings, bytes, and what the bytes are of; promised, the upper end of
    `fit`'s reserve that day (bytes, and a share of the peak), where it is not the first one.

    tensors: the peak of torch's tensors.  predicted: with what is beside them in a figure of that kind.  promised: the
    least memory that `fit` said it fits in, by the reserve of that day.  metrics_info: the configurations, and the
    versions of the stacks.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("tensors_bytes", "predicted_bytes", "promised_bytes", "measured_bytes")
    }
    reserve = Reserve(*probe.numbers("promised")) if "promised" in probe.settings else PROMISED
    texts = []
    for row in map(json.loads, probe.words("rows")):
        said = {name: tuple(one) if isinstance(one, list) else one for name, one in row["settings"].items()}
        setup, _ = setup_in(row["stack"], **said)
        configuration = Configuration(read_shape(row["model"]), setup)
        peak = configuration.step.peak().total
        texts.append(configuration.text)
        found["tensors_bytes"].append(round(peak))
        found["predicted_bytes"].append(round(peak + BESIDE[row["of"]].beside(peak)))
        found["promised_bytes"].append(round(peak + reserve.beside(peak)))
        found["measured_bytes"].append(row["bytes"])
    versions = {name: stack.named for name, stack in STACKS.items()}
    return Findings(
        measurements={"rows": len(texts)},
        per_example=found,
        metrics_info={"configurations": texts, "stacks": versions},
    )
