"""The command that says whether training fits a machine: fit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from peftbook.cli.arguments import TYPE_CHECKING, positive, print_json
from peftbook.errors import InputError

if TYPE_CHECKING:
    from typing import Any

    from peftbook.cli.arguments import Add
    from peftbook.memory import Configuration, Fit, Setup, Shape
    from peftbook.memory.stacks import Assumption

ON_OFF = {  # options that are on or off; without them it is as the stack has it
    "autocast": "matrix products in bfloat16 by autocast", "dropout": "LoRA with dropout",
    "padding": "rows of different length, with a mask", "checkpointing": "keep only the input of each layer",
    "offloaded": "with checkpointing: and that on the host",
    "accumulated": "gradients that stay over several micro-batches",
    "wide_norms": "norms in float32 over a quantised base, and with them what layers hand on",
    "keeps_inputs": "4-bit matrices keep their inputs: bitsandbytes before 0.43.2",
    "in_backward": "full: the optimiser moves a weight when it has its gradient, which is then let go",
}  # fmt: skip
TAKEN = (
    "batch",
    "seq",
    "rank",
    "length",
    "adapter_dtype",
    "magnitude_dtype",
    "saved_dtype",
    "logits",
    "device",
    "devices",
    *ON_OFF,
)


def add_commands(add: Add) -> None:
    """`fit` with its options."""
    room = add("fit", command_fit)
    words = "a known shape, an id of the hub, a config.json, or a folder with one"
    room.add_argument("--model", required=True, help=words)
    room.add_argument(
        "--method", default="lora", help="full, lora, qlora, dora, lora_fa, prompt, prefix or ia3 (default lora)"
    )
    room.add_argument("--memory", required=True, metavar="SIZE", help="of the machine, like 24GiB")
    words = "left to context and allocator (default: a band that nearly all published figures are below)"
    room.add_argument("--reserve", metavar="SIZE", help=words)
    words = "whose defaults hold where nothing is said: peft (a loop of your own, the default), trainer, trl, "
    room.add_argument(
        "--stack", default="peft", help=words + "trl0 (before 1.0), peftbook, litgpt, torchtune, axolotl or unsloth"
    )
    room.add_argument("--batch", type=positive, help="rows of a micro-batch (peft: 1)")
    room.add_argument("--seq", type=positive, help="tokens of a row (peft: 1024)")
    words = "positions with logits, as a number or as a share like 30%% (default 0: all)"
    room.add_argument("--labels", default="0", help=words)
    room.add_argument("--rank", type=positive, help="of lora, its variants and galore (16, the book's advice)")
    words = "all, attention, mlp, qv, or names with commas (all, the book's advice: peft's all-linear)"
    room.add_argument("--targets", help=words)
    words = "embed_tokens, lm_head or both with a comma: trained in a copy beside the adapter (peft's modules_to_save)"
    room.add_argument("--saved", default="", help=words)
    room.add_argument("--magnitude-dtype", choices=("bf16", "fp32"), help="of DoRA's magnitudes (peft: the adapter's)")
    room.add_argument("--saved-dtype", choices=("bf16", "fp32"), help="of those copies (peft: the model's)")
    room.add_argument("--length", type=positive, help="virtual tokens of prompt and prefix (default 20)")
    words = "base in 4 or 8 bits (default: what a config.json says of itself, else none)"
    room.add_argument("--quant", choices=("none", "nf4", "fp4", "int8"), default="", help=words)
    room.add_argument("--single-quant", action="store_true", help="constants of the quantisation in 32 bits")
    words = "of the weights that are not in 4 bits (peft: bf16; auto: bf16, on a CPU the faster one here)"
    room.add_argument("--dtype", choices=("auto", "bf16", "fp32"), help=words)
    room.add_argument("--adapter-dtype", choices=("bf16", "fp32"), help="of adapters (peft: fp32)")
    words = "sdpa, flash_attention_2 and 3, which take the same, or eager (default auto: sdpa, eager for capped scores)"
    room.add_argument("--attention", default="auto", help=words)
    words = "how logits become a loss: whole, shifted, held, narrow, chunked, compiled, tiled or fused (peft: whole)"
    room.add_argument("--logits", help=words)
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
    from peftbook.memory import Configuration, bytes_of_text, fit, read_shape
    from peftbook.memory.fit import GPU_RESERVE, as_json, as_text

    shape = read_shape(args.model)
    args.method, args.stack = args.method.lower(), args.stack.lower()
    asked = asked_for(args, shape)

    def derive(fields: Mapping[str, object]) -> tuple[Setup, tuple[Assumption, ...]]:
        return in_stack(args, shape, asked | dict(fields))

    setup, assumed = derive({})
    if shape.context and setup.seq > shape.context:
        raise InputError(
            f"--seq {setup.seq:,} is beyond the {shape.context:,} positions of {args.model}: choose at most those."
        )
    setup = with_labels(setup, args.labels)
    if args.time and args.devices > 1:
        raise InputError(f"--time measures one machine, not {args.devices} devices: leave one of the two out.")
    configuration = Configuration(shape, setup)
    reserve = bytes_of_text(args.reserve, least=0) if args.reserve else GPU_RESERVE
    fitting = fit(configuration, bytes_of_text(args.memory), reserve, lambda fields: derive(fields)[0])
    seconds = step_seconds_here(configuration) if args.time else {}
    if args.json:
        settings = {one.field: [one.value, one.source] for one in assumed}
        print_json(as_json(fitting) | {"assumed": settings, "step_seconds": seconds})
    else:
        print(as_text(fitting, args.model, option))
        print("\n".join(assumptions_text(args.stack, assumed)))
        if without := [option(name, asked[name]) for name in asked if name in setup.idle and given(args, name)]:
            print(f"Without effect here: {' '.join(without)}.")
        if args.stack == "peft" and (line := elsewhere(fitting, asked, args.labels)):
            print(line)
        if total := sum(seconds.values()):
            parts = ", ".join(f"{name} {each:.3g}" for name, each in seconds.items() if each >= total / 100)
            print(f"A step takes about {total:.3g} s on this machine: {parts}.")
    return 0 if fitting.fits else 1


def in_stack(args: argparse.Namespace, shape: Shape, asked: dict[str, Any]) -> tuple[Setup, tuple[Assumption, ...]]:
    """The set-up of the stack. Where a GPU has no fused attention and nobody asked for it, eager stands for its own."""
    from dataclasses import replace

    from peftbook.memory import Configuration
    from peftbook.memory.stacks import Assumption, setup_in

    setup, assumed = setup_in(args.stack, **asked)
    if args.attention == "auto" and setup.attention == "sdpa":
        try:
            Configuration(shape, setup).step  # noqa: B018 — whether there is such a step
        except InputError:
            setup = replace(setup, attention="eager")
            why = "torch's math kernel, which keeps what eager attention does: no fused one here"
            assumed = (*assumed, Assumption("attention", "eager", why))
    return setup, assumed


def given(args: argparse.Namespace, name: str) -> bool:
    """Whether the command line names a setting."""
    return args.single_quant if name == "double" else getattr(args, name, None) is not None


def asked_for(args: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    """The fields of the set-up that the options name."""
    from peftbook.memory.names import METHOD_NAMES, OPTIMISER_NAMES, meant, variant

    asked = {name: getattr(args, name) for name in TAKEN if getattr(args, name) is not None}
    asked |= {"method": meant("Method", args.method, METHOD_NAMES), **variant(args.method)}
    if args.saved:
        from peftbook.options import listed

        asked["saved"] = tuple(dict.fromkeys(listed(args.saved)))
    asked["attention"] = attention_named(args.attention, shape.capped_scores)
    if args.targets is not None:
        asked["targets"] = targets_named(args.targets)
    if args.optimiser is not None:
        named = meant("Optimiser", args.optimiser, OPTIMISER_NAMES)
        asked["optimiser"] = "adamw" if (named, args.device) == ("adamw_foreach", "cpu") else named
    if args.dtype is not None or (args.device == "cpu" and args.stack == "peft"):
        asked["dtype"] = weights_dtype(args.dtype or "auto", args.device)
    return asked | base_of(args)


def assumptions_text(stack: str, assumed: tuple[Assumption, ...]) -> list[str]:
    """What a stack assumed, each as the option that says it, with its source."""
    from peftbook.memory.stacks import STACKS

    known = STACKS[stack]
    lines = ["", f"Assumed, as {known.named} has it; each is an option:"]
    said = {one.field: option(one.field, one.value) for one in assumed}
    wide = max((len(words) for words in said.values()), default=0)
    lines += [f"  {said[one.field]:{wide}}  {one.source}" for one in assumed if said[one.field]]
    return lines + [f"Not counted: {known.uncounted}."] * bool(known.uncounted)


def option(field: str, value: Any) -> str:
    """The option that says a setting; none for what only the book's loop does."""
    from peftbook.memory.names import TARGET_WORDS

    if field in ON_OFF:
        return f"--{'' if value else 'no-'}{field.replace('_', '-')}"
    if field in ("targets", "saved"):
        known = TARGET_WORDS.items() if field == "targets" else ()
        value = next((word for word, names in known if names == value), ",".join(value) or "''")
    if field == "double":
        return "" if value else "--single-quant"
    name = {"quantised": "quant"}.get(field, field.replace("_", "-"))
    return "" if field in ("held", "dora", "freeze_a") else f"--{name} {value}"


def elsewhere(fitting: Fit, asked: dict[str, Any], labels: str) -> str:
    """The same question as TRL's SFTTrainer would run it, in a line."""
    from peftbook.memory import Configuration
    from peftbook.memory.stacks import STACKS, setup_in

    mine = fitting.configuration.setup
    try:
        setup, _ = setup_in("trl", **{"batch": mine.batch, "seq": mine.seq, "dtype": mine.dtype} | asked)
        peak = Configuration(fitting.configuration.shape, with_labels(setup, labels)).step.peak().total
    except InputError:
        return ""
    return f"As {STACKS['trl'].named} trains it (--stack trl --dtype {mine.dtype}): {peak / 2**30:.3f} GiB."


def base_of(args: argparse.Namespace) -> dict[str, Any]:
    """The quantisation of the base: as asked for, by the method's name, or as the model's own settings have it."""
    from peftbook.memory.shapes import SHAPES, quantised_in, read_config

    known = {} if args.model.lower() in SHAPES else quantised_in(read_config(args.model))
    if not known and args.model.lower().endswith("-bnb-4bit"):
        known = {"quantised": "nf4"}
    if args.quant:
        known = {"quantised": "" if args.quant == "none" else args.quant}
    if args.method == "qlora":
        if args.quant in ("none", "int8"):
            raise InputError(
                f"--method qlora is LoRA over a base in 4 bits: leave --quant {args.quant} out, or choose lora."
            )
        known = known if known.get("quantised") else {"quantised": "nf4"}
    return known | ({"double": False} if args.single_quant else {})


def attention_named(name: str, capped: bool) -> str:
    """The attention that a word stands for; auto is transformers' own choice, see Gemma 2's `_supports_sdpa`.

    Raises InputError for torch's fused kernel where scores are capped.
    """
    from peftbook.memory.names import ATTENTION, meant

    if name == "auto":
        return "eager" if capped else "sdpa"
    if name == "sdpa" and capped:
        raise InputError("--attention sdpa caps no scores, which this model does: choose eager or flash_attention_2.")
    return meant("Attention", name, ATTENTION)


def with_labels(setup: Setup, said: str) -> Setup:
    """The set-up with so many positions that have logits. Raises InputError for more than there are."""
    from dataclasses import replace

    positions = setup.batch * setup.seq
    try:
        share = said.endswith("%")
        found = float(said.removesuffix("%")) * (positions / 100 if share else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= positions or not (found if share else found.is_integer()):
        raise InputError(
            f"--labels {said} of {setup.batch} × {setup.seq} positions: choose a whole number up to "
            f"{positions:,}, a share like 30%, or 0 for all."
        )
    return replace(setup, labels=max(1, round(found)) if share else int(found))


def weights_dtype(asked: str, device: str) -> str:
    """The type of weights that is asked for; auto is bf16 on a GPU and what this machine computes in on a CPU."""
    from peftbook.training.precision import chosen_dtype

    return "bf16" if asked == "auto" and device == "cuda" else chosen_dtype(asked)


def step_seconds_here(configuration: Configuration) -> dict[str, float]:
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
    from peftbook.memory.architecture import unfused
    from peftbook.memory.names import TARGET_WORDS
    from peftbook.options import listed

    return TARGET_WORDS.get(name) or unfused(listed(name))
