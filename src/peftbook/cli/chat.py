"""Commands on models as they are tried and served: chat, same."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from peftbook.cli.arguments import Add, on_dtype, positive

if TYPE_CHECKING:
    from peftbook.training.models import Loaded

MODEL = "embedded model, hub id, or folder: of a model, of an adapter, of train --out"


def add_commands(add: Add) -> None:
    """`chat` and `same`."""
    add("chat", command_chat, chat_options)
    add("same", command_same, same_options)


def chat_options(chat: argparse.ArgumentParser) -> None:
    """Of `chat`."""
    chat.add_argument("model", nargs="?", default="smollm2-135m-instruct", help=f"{MODEL} (default: the embedded one)")
    chat.add_argument("--against", metavar="MODEL", help="another one that answers beside it")
    chat.add_argument(
        "--message", help="the only one to answer (default: those that are typed, or piped, line by line)"
    )
    chat.add_argument("--system", metavar="TEXT", help="a system prompt (default: that of all rows of train --out)")
    words = "base of an adapter, if not the one that it names"
    chat.add_argument("--base", default="", metavar="MODEL", help=words)
    words = "what stands around each message, with {input} in it (default: what train --out was told)"
    chat.add_argument("--instruction", metavar="TEXT", help=words)
    chat.add_argument("--max-new-tokens", type=positive, default=200, help="of an answer (default 200)")
    on_dtype(chat)


def same_options(same: argparse.ArgumentParser) -> None:
    """Of `same`."""
    same.add_argument("model", help=f"the reference: {MODEL}")
    same.add_argument("others", nargs="+", metavar="OTHER", help="the same, a GGUF file, or http://SERVER[#MODEL]")
    same.add_argument("--base", default="", metavar="MODEL", help="base of adapters, if not the one that they name")
    words = "what servers compute in (default bf16)"
    same.add_argument("--served", choices=("fp32", "bf16", "fp16"), default="bf16", help=words)


def command_same(args: argparse.Namespace) -> int:
    """Say whether adapter, merged folder, GGUF file and server are one model, and where they part; 1 if they do."""
    from peftbook.core.progress import show_progress
    from peftbook.core.quiet import quieten_libraries
    from peftbook.views.export.roads import load_road
    from peftbook.views.export.same import Road, compare_roads, log_probabilities
    from peftbook.views.export.served import compare_served

    quieten_libraries()
    status = 0
    with show_progress("Same", f"asking {args.model}") as phases:
        first = Road(args.model, load_road(args.model, args.base))
        own = log_probabilities(first.loaded.model, first.sequences)
        for name in args.others:
            phases(f"asking {name}")
            if name.startswith(("http://", "https://")):
                found = compare_served(first, name, args.served, own)
            else:
                found = compare_roads(first, Road(name, load_road(name, args.base)), own)
            status = status or int(bool(found.stage))
            said = f"not the same, from {found.stage} on: " if found.stage else "same: "
            measured = f" ({found.nats:.2g} nats a position, rounding {found.bound:.2g})"
            print(f"{name}: {said}{found.words}{measured if found.nats == found.nats else ''}.", flush=True)
            if name.endswith(".gguf"):
                print("  Its weights as transformers reads them; for llama.cpp's arithmetic, name a llama-server.")
    return status


def command_chat(args: argparse.Namespace) -> int:
    """Talk to a model, or to two side by side; greedy answers. An empty line begins anew, Ctrl-D ends."""
    from peftbook.core.errors import InputError
    from peftbook.core.progress import show_progress
    from peftbook.core.quiet import quieten_libraries
    from peftbook.runtime.hardware import platform_here
    from peftbook.views.export.roads import instruction_of, load_road, system_of

    instruction = instruction_of(args.model) if args.instruction is None else args.instruction
    if "{input}" not in instruction:
        raise InputError(f"The instruction {instruction!r} does not say where the input goes: put {{input}} in it.")
    names = list(dict.fromkeys(filter(None, (args.model, args.against))))
    platform = platform_here("cuda")
    quieten_libraries()
    with show_progress("Chat", "loading " + " and ".join(names)):
        models = {name: load_road(name, args.base, platform) for name in names}
    system = system_of(args.model) if args.system is None else args.system
    if system and args.system is None:
        print(f"System prompt of the training (--system for another): {system}", file=sys.stderr, flush=True)
    start = [{"role": "system", "content": system}] if system else []
    turns = {name: list(start) for name in names}
    for message in [args.message] if args.message is not None else typed():
        if not message.strip():
            turns = {name: list(start) for name in names}
            continue
        for name, answer in answers(models, turns, instruction.replace("{input}", message), args, platform):
            print(f"{name}: {answer}" if args.against else answer, flush=True)
    return 0


def typed() -> Iterator[str]:
    """The lines of standard input; on a terminal, behind a prompt."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def answers(
    models: Mapping[str, Loaded],
    turns: dict[str, list[dict[str, str]]],
    text: str,
    args: argparse.Namespace,
    where: str,
) -> Iterator[tuple[str, str]]:
    """Each model's answer to a text after its own turns, which then have both."""
    from peftbook.runtime.precision import chosen_dtype
    from peftbook.training.encode import encode_turns
    from peftbook.training.generate import generate
    from peftbook.training.loop import autocast, frozen_head_in, frozen_linears_in

    dtype = chosen_dtype(args.dtype, where)
    for name, loaded in models.items():
        model = loaded.model.requires_grad_(False)
        turns[name].append({"role": "user", "content": text})
        prompt = [token for piece in encode_turns(loaded.tokenizer, turns[name]) for token in piece]
        with frozen_linears_in(dtype, model), frozen_head_in(dtype, model), autocast(dtype, where):
            answer = generate(model, loaded.tokenizer, [prompt], max_new_tokens=args.max_new_tokens)[0]
        turns[name].append({"role": "assistant", "content": answer})
        yield name, answer
