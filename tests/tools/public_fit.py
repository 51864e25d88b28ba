"""Predict the peak memory of huggingface/peft's public runs from their settings, before anybody reads what it was.

    python tests/tools/public_fit.py

Writes `src/peftbook/data/public_runs/predictions.jsonl`: a header with the commit of the package that predicts, then a
line for each arm of `public_arms`. Only `settings.jsonl` and the benchmark's code are used.

kind `fit`: the byte model has the method. `stand-in`: it does not, and the line is of LoRA on the same matrices with
about as many trained numbers, or of the nearest method; that is what somebody does whose method `fit` lacks, and no
prediction of it. `none`: there is not even that. reason: why it is no prediction.

The settings are what `run.py`, `utils.py` and `data.py` of the benchmark say at every commit that ran: a plain loop of
four rows that are padded to their longest, at most 768 tokens, weights in bfloat16, adapters in float32 unless
`autocast_adapter_dtype` is off, transformers' own loss, torch's AdamW (LoRA-FA has one of its own, tensor by tensor).
The figure is torch's peak of reserved bytes over the whole program. What `fit` does not count, texts that are written
for validation and test, stays below every step: 50 rows of at most 800 tokens (`generating_bytes` in the header).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbook.evidence.public_runs import PUBLIC_RUNS, PublicRun, public_runs
from peftbook.memory import TARGETS, Configuration, read_shape
from peftbook.memory.fit import BESIDE, GPU_RESERVE
from peftbook.memory.stacks import STACKS, setup_in
from peftbook.studies.public_arms import arm

MODEL, STACK = "llama-3.2-3b", "peft"
SHAPE = read_shape(MODEL)
LOOP = {"batch": 4, "seq": 768, "padding": True, "dtype": "bf16", "device": "cuda"}
# Outputs plus inputs of each matrix: what one rank of LoRA trains there.
SIDES = {"q_proj": 6144, "k_proj": 4096, "v_proj": 4096, "o_proj": 6144,
         "gate_proj": 11264, "up_proj": 11264, "down_proj": 11264}  # fmt: skip
KEYS_AND_VALUES = 28 * 2 * 8 * 128 * 2  # bytes a token
GENERATED = 50 * 800  # tokens
LENGTH_OF = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}
UNLIKE_LORA = {"use_bdlora": "its block-diagonal factors", "init_lora_weights": "a frozen B"}


def ordinary(settings: Mapping[str, Any]) -> bool:
    """Whether a LORA configuration is one of the byte model's."""
    return settings["init_lora_weights"] is True and not settings.get("use_bdlora")


def known_method(settings: Mapping[str, Any] | None, optimiser: str) -> dict[str, Any] | None:
    """The fields of a set-up that the byte model has for an adapter's settings; None if it has none."""
    if settings is None:
        return {"method": "full"}
    kind, targets = settings["peft_type"], in_order(settings.get("target_modules"))
    if kind == "LORA" and ordinary(settings):
        found: dict[str, Any] = {"method": "lora", "rank": settings["r"], "targets": targets, "dropout": False}
        found |= {"dora": True} if settings.get("use_dora") else {}
        return found | ({"freeze_a": True, "optimiser": "adamw"} if optimiser == "lora-fa" else {})
    if kind == "IA3" and set(targets) == {"k_proj", "v_proj", "down_proj"}:
        return {"method": "ia3"}
    if kind in LENGTH_OF:
        return {"method": LENGTH_OF[kind], "length": settings["num_virtual_tokens"]}
    return None


def in_order(targets: Any) -> tuple[str, ...]:
    """A layer's matrices among the targets, in the order of the byte model."""
    return tuple(name for name in TARGETS if not isinstance(targets, str) and name in (targets or ()))


def stand_in(settings: Mapping[str, Any], trained: int) -> dict[str, Any] | None:
    """The nearest method that the byte model has."""
    kind, targets = settings["peft_type"], in_order(settings.get("target_modules"))
    if kind == "IA3":
        return {"method": "ia3"}
    if kind == "P_TUNING":
        return {"method": "prompt", "length": settings["num_virtual_tokens"]}
    if not targets:
        return None
    rank = max(1, round(trained / (SHAPE.layers * sum(SIDES[name] for name in targets))))
    return {"method": "lora", "rank": rank, "targets": targets, "dropout": False}


def prediction(name: str, runs: list[PublicRun]) -> dict[str, Any]:
    """The line of one arm."""
    run = runs[-1]
    settings, train = run.peft_config, run.train_config
    row: dict[str, Any] = {"arm": name, "ids": [one.id for one in runs]}
    asked = known_method(settings, train["optimizer_type"])
    if asked is not None:
        row["kind"] = "fit"
    else:
        assert settings is not None
        asked = stand_in(settings, run.trainable_parameters or 0)
        row |= {"kind": "none" if asked is None else "stand-in", "reason": reason(settings)}
    if asked is None:
        return row
    if asked["method"] != "full" and not train["autocast_adapter_dtype"]:
        asked["adapter_dtype"] = "bf16"
    if train.get("use_gc"):
        asked["checkpointing"] = True
    setup, _ = setup_in(STACK, **LOOP, **asked)
    peak = Configuration(SHAPE, setup).step.peak()
    return row | {
        "asked": asked,
        "at": peak.at,
        "tensors_bytes": round(peak.total),
        "low_bytes": round(peak.total + GPU_RESERVE[0].beside(peak.total)),
        "predicted_bytes": round(peak.total + BESIDE["reserved"].beside(peak.total)),
        "promised_bytes": round(peak.total + GPU_RESERVE[1].beside(peak.total)),
    }


def reason(settings: Mapping[str, Any]) -> str:
    """Why the byte model has no such method."""
    kind = settings["peft_type"]
    if kind == "LORA":
        part = next(words for key, words in UNLIKE_LORA.items() if settings.get(key) not in (None, True, False))
        return f"the byte model has LoRA, but not {part}"
    if kind == "IA3":
        return "the byte model has (IA)³ on keys, values and the last matrix of the MLP alone"
    return f"the byte model has no {kind}"


def commit() -> str:
    """The commit of this checkout. Raises RuntimeError if the byte model was changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    changed = subprocess.run([*git, "status", "--porcelain", "--", "../../src/peftbook/memory"], capture_output=True)
    if changed.stdout:
        raise RuntimeError("The byte model has changes that are not committed: a prediction must name its commit.")
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Write the predictions, and print how many there are of each kind."""
    arms: dict[str, list[PublicRun]] = {}
    for run in sorted(public_runs(), key=lambda one: (one.configuration, one.created_at)):
        arms.setdefault(arm(run), []).append(run)
    rows = [prediction(name, runs) for name, runs in arms.items()]
    weights = Configuration(SHAPE, setup_in(STACK, **LOOP, method="lora", rank=1)[0]).step.peak().terms["weights"]
    header = {
        "package_commit": commit(), "model": MODEL, "stack": STACKS[STACK].named, "loop": LOOP,
        "generating_bytes": round(weights + GENERATED * KEYS_AND_VALUES),
    }  # fmt: skip
    lines = [json.dumps(line, separators=(",", ":"), ensure_ascii=False) for line in (header, *rows)]
    (PUBLIC_RUNS / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    for kind in ("fit", "stand-in", "none"):
        print(f"{kind}: {sum(row['kind'] == kind for row in rows)} arms")


if __name__ == "__main__":
    main()
