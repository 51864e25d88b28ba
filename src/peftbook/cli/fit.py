"""The command that says whether training fits a machine: fit."""

from __future__ import annotations

import argparse
import json
from typing import Any

from peftbook.cli.arguments import Add, positive
from peftbook.errors import InputError
from peftbook.options import listed

TAKEN = (  # options that are fields of the set-up
    "rank", "length", "adapter_dtype", "autocast", "dropout", "padding", "checkpointing", "batch", "seq", "accumulated",
    "device", "devices",
)  # fmt: skip


def add_commands(add: Add) -> None:
    """`fit` with its options."""
    room = add("fit", command_fit)
    words = "a known shape, an id of the hub, a config.json, or a folder with one"
    room.add_argument("--model", required=True, help=words)
    room.add_argument("--method", default="lora", help="full, lora, qlora, prompt, prefix or ia3 (default lora)")
    room.add_argument("--memory", required=True, metavar="SIZE", help="of the machine, like 24GiB")
    room.add_argument("--reserve", default="1GiB", metavar="SIZE", help="left to context and allocator (default 1GiB)")
    room.add_argument("--batch", type=positive, default=1, help="rows of a micro-batch (default 1)")
    room.add_argument("--seq", type=positive, default=1024, help="tokens of a row (default 1024)")
    words = "positions with logits, as a number or as a share like 30%% (default 0: all)"
    room.add_argument("--labels", default="0", help=words)
    room.add_argument("--accumulated", action="store_true", help="gradients that stay over several micro-batches")
    room.add_argument("--rank", type=positive, default=16, help="of lora and qlora (default 16)")
    words = "all, attention, mlp, qv, or names with commas (default all, peft's all-linear)"
    room.add_argument("--targets", default="all", help=words)
    room.add_argument("--length", type=positive, default=20, help="virtual tokens of prompt and prefix (default 20)")
    words = "base in 4 bits (default: what a config.json says of itself, else none)"
    room.add_argument("--quant", choices=("none", "nf4", "fp4"), default="", help=words)
    room.add_argument("--single-quant", action="store_true", help="constants of the quantisation in 32 bits")
    words = "of the weights that are not in 4 bits (default auto: bf16, on a CPU the faster one here)"
    room.add_argument("--dtype", choices=("auto", "bf16", "fp32"), default="auto", help=words)
    room.add_argument("--adapter-dtype", choices=("bf16", "fp32"), default="fp32", help="of adapters (peft's: fp32)")
    room.add_argument("--autocast", action="store_true", help="matrix products in bfloat16 by autocast")
    room.add_argument("--dropout", action="store_true", help="LoRA with dropout")
    words = "sdpa, flash_attention_2 and 3, which take the same, or eager (default sdpa)"
    room.add_argument("--attention", default="sdpa", help=words)
    room.add_argument("--padding", action="store_true", help="rows of different length, with a mask")
    room.add_argument("--checkpointing", action="store_true", help="keep only the input of each layer")
    words = "adamw, adamw_8bit, paged_adamw, paged_adamw_8bit or sgd; transformers' names are understood"
    room.add_argument("--optimiser", default="adamw", help=words)
    room.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    room.add_argument("--devices", type=positive, default=1, help="that share the model (FSDP), each with its rows")
    words = "also seconds of a step on this machine, measured at first use"
    room.add_argument("--time", action="store_true", help=words)
    room.add_argument("--json", action="store_true", help="with the table of terms")


def command_fit(args: argparse.Namespace) -> int:
    """Say what a training step needs of a machine's memory, how large it may be, and what would make it fit.

    Exit status 1 where it does not fit.
    """
    from peftbook.memory import Configuration, Setup, bytes_of_text, fit, read_shape
    from peftbook.memory.fit import as_json, as_text
    from peftbook.memory.names import ATTENTION, OPTIMISER_NAMES, meant

    shape = read_shape(args.model)
    if shape.context and args.seq > shape.context:
        raise InputError(
            f"--seq {args.seq:,} is beyond the {shape.context:,} positions of {args.model}: choose at most those."
        )
    method = "lora" if args.method == "qlora" else args.method
    setup = Setup(
        method=method, targets=targets_named(args.targets), dtype=weights_dtype(args.dtype, args.device),
        attention=meant("Attention", args.attention, ATTENTION),
        optimiser=meant("Optimiser", args.optimiser, OPTIMISER_NAMES), labels=labels_of(args),
        **base_of(args), **{name: getattr(args, name) for name in TAKEN},
    )  # fmt: skip
    if args.time and args.devices > 1:
        raise InputError(f"--time measures one machine, not {args.devices} devices: leave one of the two out.")
    configuration = Configuration(shape, setup)
    fitting = fit(configuration, bytes_of_text(args.memory), bytes_of_text(args.reserve, least=0))
    seconds = step_seconds_here(configuration) if args.time else {}
    if args.json:
        print(json.dumps(as_json(fitting) | ({"step_seconds": seconds} if seconds else {}), indent=1))
    else:
        print(as_text(fitting, args.model))
        if total := sum(seconds.values()):
            parts = ", ".join(f"{name} {each:.3g}" for name, each in seconds.items() if each >= total / 100)
            print(f"A step takes about {total:.3g} s on this machine: {parts}.")
    return 0 if fitting.fits else 1


def base_of(args: argparse.Namespace) -> dict[str, Any]:
    """The quantisation of the base: as asked for, by the method's name, or as the model's own settings have it."""
    from peftbook.memory.shapes import SHAPES, quantised_in, read_config

    known = {} if args.model.lower() in SHAPES else quantised_in(read_config(args.model))
    if args.quant:
        known = {"quantised": "" if args.quant == "none" else args.quant}
    if args.method == "qlora" and not known.get("quantised"):
        known = {"quantised": "nf4"}
    return known | ({"double": False} if args.single_quant else {})


def labels_of(args: argparse.Namespace) -> int:
    """Positions of a micro-batch that have logits, 0 for all. Raises InputError for more than there are."""
    positions = args.batch * args.seq
    try:
        share = args.labels.endswith("%")
        found = float(args.labels.removesuffix("%")) * (positions / 100 if share else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= positions or not (found if share else found.is_integer()):
        raise InputError(
            f"--labels {args.labels} of {args.batch} × {args.seq} positions: choose a whole number up to "
            f"{positions:,}, a share like 30%, or 0 for all."
        )
    return max(1, round(found)) if share else int(found)


def weights_dtype(asked: str, device: str) -> str:
    """The type of weights that is asked for; auto is bf16 on a GPU and what this machine computes in on a CPU."""
    from peftbook.training.precision import chosen_dtype

    return "bf16" if asked == "auto" and device == "cuda" else chosen_dtype(asked)


def step_seconds_here(configuration) -> dict[str, float]:
    """Predicted seconds of a configuration's step on this machine, by part. Raises InputError without its device."""
    import torch

    from peftbook.cost import step_seconds
    from peftbook.training.calibration import machine_rates

    if configuration.setup.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--time measures this machine, which has no GPU that torch can use: add --device cpu.")
    shape, setup = configuration.shape, configuration.setup
    parts = step_seconds(shape, setup, machine_rates(setup.device))
    return {name: round(float(seconds), 6) for name, seconds in parts.items()}


def targets_named(name: str) -> tuple[str, ...]:
    """The matrices that a word, or a list with commas, stands for."""
    from peftbook.memory.names import TARGET_WORDS

    return TARGET_WORDS.get(name) or tuple(dict.fromkeys(listed(name)))
