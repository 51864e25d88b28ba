"""Labels of runs: the method, and what tells a run from the others that it stands among."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from peftbook.core import specs

WORDS = {
    "tokens": "{:,} tokens",
    "n_generate": "{:,} test rows",
    "n_loss": "loss of {:,} rows",
    "max_new_tokens": "answers of {:,} tokens",
}


def label_runs(runs: Sequence[specs.Run], notes: Sequence[str] = ()) -> list[str]:
    """A label for each run, no two alike: method, model where there are several, its note, the settings in which runs
    of this name differ, and the seed where a run is repeated: `LoRA, 6,000 tokens, rate 2e-4, seed 1`.
    """
    several = len({run.model for run in runs}) > 1
    notes = notes or [""] * len(runs)
    names = [
        ", ".join(filter(None, (run.method.label, model_label(run.model.name) * several, note)))
        for run, note in zip(runs, notes, strict=True)
    ]
    settings = [settings_of(run) for run in runs]
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name, own, run in zip(names, settings, runs, strict=True):
        seeds[name, str(own)].add(run.seed)
        for setting, value in own.items():
            values[name][setting].add(str(value))
    return [
        ", ".join(
            [name]
            + [setting_words(setting, value) for setting, value in own.items() if len(values[name][setting]) > 1]
            + [f"seed {run.seed}"] * (len(seeds[name, str(own)]) > 1)
        )
        for name, own, run in zip(names, settings, runs, strict=True)
    ]


def settings_of(run: specs.Run) -> dict[str, object]:
    """What may tell two runs of a method apart, by name."""
    found: dict[str, object] = {}
    for name, value in run.model_dump(mode="json", exclude={"seed", "task", "start"}).items():
        parts = value if isinstance(value, dict) else {name: value}
        found |= {f"model {key}" if name == "model" else key: one for key, one in parts.items()}
    return found


def setting_words(name: str, value: object) -> str:
    """A setting, short: `6,000 tokens`, `rate 2e-4`, `rank 8`, `no checkpointing`."""
    words = name.replace("_", " ")
    if name == "learning_rate" and isinstance(value, float):
        return f"rate {rate_words(value)}"
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if name in WORDS:
        return WORDS[name].format(value)
    return f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}"


def rate_words(rate: float) -> str:
    """A learning rate: 0.0111, 6e-4."""
    mantissa, _, exponent = f"{rate:.5e}".partition("e")
    return f"{rate:g}" if rate >= 1e-3 else f"{float(mantissa):g}e{int(exponent)}"


def model_label(name: str) -> str:
    """A model's name; without the folders it lies in, where it is a path of this machine."""
    is_path = name[:1] in ("/", "~", ".") or name[1:3] == ":\\"
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if is_path else name
