"""The command that says whether training fits a machine: fit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from peftbook.cli.arguments import Add, positive, print_json
from peftbook.core.errors import InputError, need

if TYPE_CHECKING:
    from peftbook.memory import Configuration
    from peftbook.memory.question import Question


LOGITS = (
    "how logits become a loss (trl: tiled). All of them: whole (transformers 5, in float32), shifted (4.46 to 4.48, "
    "once more), held (a loop that keeps the model's output), loop (its own cross_entropy, in the model's dtype), "
    "in_place (Liger's cross-entropy), narrow (LitGPT). In parts: chunked (torchtune), compiled (with torch.compile), "
    "tiled (TRL from 1.7), liger (Liger's fused linear cross-entropy). Never: fused (cut cross-entropy, Unsloth)"
)


def add_commands(add: Add) -> None:
    """`fit`, whose options are declared when it is asked."""
    add("fit", command_fit, declare_options)


def declare_options(room: argparse.ArgumentParser) -> None:
    """The options of `fit`."""
    from peftbook.memory.question import ON_OFF

    words = "a known shape, an id of the hub, a config.json, or a folder with one"
    room.add_argument("--model", required=True, help=words)
    room.add_argument(
        "--method", default="lora", help="full, lora, qlora, dora, lora_fa, prompt, prefix or ia3 (default lora)"
    )
    room.add_argument("--memory", required=True, metavar="SIZE", help="of a card by its name, like 24GB, or 23.6GiB")
    words = "left to context and allocator (default: a band that nearly all published figures are below)"
    room.add_argument("--reserve", metavar="SIZE", help=words)
    words = "whose defaults hold where nothing is said: trl (the default), trl1 (0.29 to 1.6), trl0 (before 0.29), "
    words += "liger (trl with its kernel), trainer, peft (a loop of your own), peftbook, litgpt, torchtune, axolotl, "
    room.add_argument("--stack", default="trl", help=words + "llamafactory, swift or unsloth")
    words = "sft (the default), dpo or grpo, as TRL's trainers compute them"
    room.add_argument("--stage", default="sft", help=words)
    room.add_argument("--batch", type=positive, help="rows of a micro-batch (trl: 8), pairs with dpo")
    room.add_argument("--seq", type=positive, help="tokens of a row (trl: 1024)")
    words = "positions with logits, as a number or as a share like 30%% (default 0: all, of grpo what it generates)"
    room.add_argument("--labels", default="0", help=words)
    room.add_argument("--rank", type=positive, help="of lora, its variants and galore (16, the book's advice)")
    words = "all, attention, mlp, qv, or names with commas (all, the book's advice: peft's all-linear)"
    room.add_argument("--targets", help=words)
    words = "embed_tokens, lm_head or both with a comma: trained in a copy beside the adapter (peft's modules_to_save)"
    room.add_argument("--saved", default="", help=words)
    room.add_argument("--magnitude-dtype", choices=("bf16", "fp32"), help="of DoRA's magnitudes (fp32)")
    room.add_argument("--saved-dtype", choices=("bf16", "fp32"), help="of those copies (peft: the model's)")
    room.add_argument("--length", type=positive, help="virtual tokens of prompt and prefix (default 20)")
    room.add_argument("--completion", type=positive, help="of a row's tokens those that grpo generates (trl: 512)")
    words = "rows that grpo generates at once (trl: the batch, in groups of 8)"
    room.add_argument("--rollouts", type=positive, help=words)
    words = "base in 4 or 8 bits (default: what a config.json says of itself, else none)"
    room.add_argument("--quant", choices=("none", "nf4", "fp4", "int8"), default="", help=words)
    room.add_argument("--single-quant", action="store_true", help="constants of the quantisation in 32 bits")
    words = (
        "of weights that are not in 4 bits (trl: fp32 for a model given by name; auto: bf16, on a CPU the faster one)"
    )
    room.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), help=words)
    words = "of adapters (trl: fp32, over 4 bits bf16)"
    room.add_argument("--adapter-dtype", choices=("bf16", "fp32"), help=words)
    words = "sdpa, flash_attention_2 and 3, which take the same, or eager (default auto: sdpa, eager for capped scores)"
    room.add_argument("--attention", default="auto", help=words)
    room.add_argument("--logits", help=LOGITS)
    for name, words in ON_OFF.items():
        room.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=words)
    words = (
        "adamw (in one kernel), adamw_foreach (torch's own choice on a GPU), adamw_8bit, paged_adamw, "
        "paged_adamw_8bit, galore_adamw, galore_adamw_8bit or sgd, or as transformers names them"
    )
    room.add_argument("--optimiser", help=words)
    room.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    room.add_argument("--devices", type=positive, default=1, help="that share the model (FSDP), each with its rows")
    words = "also seconds of a step on this machine, measured at first use"
    room.add_argument("--time", action="store_true", help=words)
    room.add_argument("--json", action="store_true", help="with the table of terms")


def command_fit(args: argparse.Namespace) -> int:
    """Say what a training step needs of a machine's memory, how large it may be, and what would make it fit.

    Exit status 1 where it does not fit, or may not.
    """
    from peftbook.memory.fit import as_json, as_text
    from peftbook.memory.question import answered, assumptions_text, option

    question = question_of(args)
    answer = answered(question)
    if args.time and args.devices > 1:
        raise InputError(f"--time measures one machine, not {args.devices} devices: leave one of the two out.")
    if args.time and question.stage != "sft":
        raise InputError(f"--time counts supervised fine-tuning, not {question.stage}: leave one of the two out.")
    configuration = answer.fit.configuration
    seconds = step_seconds_here(configuration) if args.time else {}
    if args.json:
        settings = {one.field: [one.value, one.source] for one in answer.assumed}
        print_json(as_json(answer.fit) | {"assumed": settings, "notes": answer.notes, "step_seconds": seconds})
    else:
        print("\n".join([as_text(answer.fit, args.model, option), *answer.notes]))
        print("\n".join(assumptions_text(question, answer.assumed)))
        idle = [name for name in answer.asked if name in configuration.setup.idle and given(args, name)]
        if without := [option(name, answer.asked[name]) for name in idle]:
            print(f"Without effect here: {' '.join(without)}.")
        if total := sum(seconds.values()):
            parts = ", ".join(f"{name} {each:.3g}" for name, each in seconds.items() if each >= total / 100)
            print(f"A step takes about {total:.3g} s on this machine: {parts}.")
    return 0 if answer.fit.fits else 1


def question_of(args: argparse.Namespace) -> Question:
    """The options, with what their words stand for."""
    from dataclasses import fields

    from peftbook.core.options import listed
    from peftbook.memory.question import Question

    said = {field.name: getattr(args, field.name) for field in fields(Question)}
    said |= {"method": args.method.lower(), "stack": args.stack.lower(), "stage": args.stage.lower()}
    said["saved"] = tuple(dict.fromkeys(listed(args.saved)))
    if args.targets is not None:
        said["targets"] = targets_named(args.targets)
    if args.dtype == "auto" or (args.device == "cpu" and said["stack"] == "peft" and not args.dtype):
        said["dtype"] = weights_dtype(args.device)
    return Question(**said)


def given(args: argparse.Namespace, name: str) -> bool:
    """Whether the command line names a setting."""
    return args.single_quant if name == "double" else getattr(args, name, None) is not None


def weights_dtype(device: str) -> str:
    """What --dtype auto stands for: bf16 on a GPU, and what this machine computes in on a CPU."""
    if device == "cuda":
        return "bf16"
    need("torch", "What a CPU computes in is measured, which")
    from peftbook.runtime.precision import chosen_dtype

    return chosen_dtype()


def step_seconds_here(configuration: Configuration) -> dict[str, float]:
    """Predicted seconds of a configuration's step on this machine, by part. Raises InputError without its device."""
    need("torch", "--time")
    import torch

    from peftbook.memory.time_model import step_seconds
    from peftbook.training.calibration import machine_rates

    if configuration.setup.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--time measures this machine, which has no GPU that torch can use: add --device cpu.")
    shape, setup = configuration.shape, configuration.setup
    parts = step_seconds(shape, setup, machine_rates(setup.device))
    return {name: round(float(seconds), 6) for name, seconds in parts.items()}


def targets_named(name: str) -> tuple[str, ...]:
    """The matrices that a word, or a list with commas, stands for."""
    from peftbook.core.options import listed
    from peftbook.memory.architecture import unfused
    from peftbook.memory.names import TARGET_WORDS

    return TARGET_WORDS.get(name) or unfused(listed(name))
