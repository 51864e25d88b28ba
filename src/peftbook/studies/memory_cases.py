"""The configurations whose memory is measured: open ones, and held-out ones that are drawn by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from peftbook.memory import SHAPES, Configuration, Setup

SMALL, LARGE = SHAPES["smollm2-135m"], SHAPES["llama-2-7b"]
PLAIN = Setup(method="lora", seq=128, device="cpu")  # peft's default: adapters in float32
NF4 = replace(PLAIN, quantised="nf4", double=False)
SETUPS = {
    "lora": PLAIN,
    "lora_bf16": replace(PLAIN, adapter_dtype="bf16"),
    "lora_fa": replace(PLAIN, freeze_a=True),
    "lora_qv": replace(PLAIN, targets=("q_proj", "v_proj")),
    "qlora_single": NF4,
    "qlora": replace(NF4, double=True),
    "prompt": replace(PLAIN, method="prompt"),
}
SMALL_CASES = {
    **{f"{name}_{seq}": replace(setup, seq=seq) for seq in (128, 512) for name, setup in SETUPS.items()},
    **{
        f"{name}_512_checkpointed": replace(SETUPS[name], seq=512, checkpointing=True)
        for name in ("lora", "qlora", "prompt")
    },
    **{f"lora_{seq}": replace(PLAIN, seq=seq) for seq in (1024, 2048)},
}
LARGE_CASES = {
    "qlora_7b": SETUPS["qlora"],
    "qlora_single_7b": SETUPS["qlora_single"],
    "qlora_7b_checkpointed": replace(SETUPS["qlora"], checkpointing=True),
    "prompt_7b": replace(SETUPS["qlora"], method="prompt"),
    "lora_7b": PLAIN,
}
OTHERS = {
    "smollm2_360m": SHAPES["smollm2-360m"],
    "llama3_1b": SHAPES["llama-3.2-1b"],
    "qwen2_500m": SHAPES["qwen2.5-0.5b"],
    "qwen3_600m": SHAPES["qwen3-0.6b"],
    "gemma3_1b": SHAPES["gemma-3-1b"],
    "mistral_4layers": replace(SHAPES["mistral-7b"], layers=4, sliding=()),
}
WAYS = {
    "full": replace(PLAIN, method="full"),
    "lora": PLAIN,
    "lora_qv": replace(PLAIN, targets=("q_proj", "v_proj"), adapter_dtype="bf16"),
    "qlora": SETUPS["qlora"],
    "prompt": SETUPS["prompt"],
    "prefix": replace(PLAIN, method="prefix"),
    "ia3": replace(PLAIN, method="ia3"),
}
EACH = 4  # ways that are drawn for a shape
SPLIT_SHA256 = "0caf3423d7175a0c6e898dc10b930bc0c45e7a7969a4998befcc2c6fcbf649d7"


def draw_cases() -> Iterator[tuple[str, Configuration]]:
    """The held-out cases: four ways for each shape, and for each way what else there is to choose."""
    for label, shape in OTHERS.items():
        for way in random.Random(label).sample(sorted(WAYS), EACH):
            name = f"{label}_{way}"
            draw = random.Random(name)
            batch = draw.choice((1, 2))
            checkpointing = way != "prefix" and draw.random() < 0.5
            seq = draw.choice((96, 160, 256))
            padding = batch > 1 and draw.random() < 0.5
            setup = replace(
                WAYS[way],
                batch=batch,
                checkpointing=checkpointing,
                seq=seq,
                padding=padding,
                attention=draw.choice(("sdpa", "sdpa", "eager")),
            )
            yield name + "_checkpointed" * checkpointing, Configuration(shape, setup)


HALVES: dict[str, dict[str, Configuration]] = {
    "open": {name: Configuration(SMALL, setup) for name, setup in SMALL_CASES.items()}
    | {name: Configuration(LARGE, setup) for name, setup in LARGE_CASES.items()},
    "held-out": dict(draw_cases()),
}
CASES = HALVES["open"] | HALVES["held-out"]
