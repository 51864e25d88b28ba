"""Train one method on the reader's own file: `peftbook train`."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from peftbook import specs
from peftbook.base_models import model_named
from peftbook.canonical import build
from peftbook.errors import InputError
from peftbook.methods import named
from peftbook.records import Store
from peftbook.tasks.files import Split, describe_reading, read_file, task_from_table
from peftbook.tasks.table import Columns
from peftbook.training.precision import chosen_dtype

__all__ = ["train_on_file"]

SHOWN = ("loss_nats", "as_lora_loss_nats", "perplexity", "rouge1", "rouge2", "rougeL", "bertscore_f1", "exact_match",
         "trainable_parameters", "train_steps", "train_seconds", "peak_memory_bytes")  # fmt: skip


def train_on_file(args: argparse.Namespace) -> int:
    """Everything is checked before the model is loaded; the folder appears whole, by rename, when all is done."""
    if args.out.exists():
        raise InputError(f"Output folder {str(args.out)!r} exists: name a new one, results are never overwritten.")
    fields = {"rank": args.rank} if args.rank is not None else {}
    method = named(args.method, **fields)
    _, table = read_file(args.file)
    columns = Columns(args.input, args.target, group=args.group)
    task = task_from_table(table, columns, Split(seed=args.seed))
    budget = None
    if method.trains:
        budget = build(specs.Budget, tokens=args.tokens, learning_rate=args.learning_rate)
    n_test, dtype = len(task.splits["test"]), chosen_dtype(args.dtype)
    evaluation = build(
        specs.Evaluation, split="test", n_loss=n_test, n_generate=min(n_test, 200), generation_dtype=dtype
    )
    run = build(
        specs.Run,
        model=model_named(args.model),
        task=task.spec,
        method=method,
        budget=budget,
        evaluation=evaluation,
        seed=args.seed,
        dtype=dtype,
    )
    for line in describe_reading(args.file.name, table, columns, task):
        print(line, file=sys.stderr, flush=True)
    if slow := slow_on_own_data(run):
        print(slow, file=sys.stderr, flush=True)
    from peftbook.training.execute import execute, quieten_libraries

    quieten_libraries()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=args.out.parent, prefix=".peftbook-"))
    try:
        adapter = None if budget is None else work / "adapter"
        record = execute(run, Store(work), task=task, adapter=adapter)
        if record.failure:
            raise InputError(record.failure)
        work.replace(args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name in SHOWN:
        if name in record.measurements:
            print(f"{name:<22} {record.measurements[name]:,.4g}")
    print(f"Record, texts{' and adapter' if adapter else ''} are in {args.out}")
    return 0


def slow_on_own_data(run: specs.Run) -> str:
    """That training takes far longer here than on the book's machine, in a sentence; empty where it does not.

    By the tokens a second that were found on both; empty, too, where this machine was never examined.
    """
    from peftbook.training.doctor import book_machines, last_examination
    from peftbook.training.queue import slow_words

    here, there = last_examination(), next(iter(book_machines()), None)
    if run.budget is None or here is None or there is None:
        return ""
    rates = [one.tokens_per_second.get(run.method.kind) for one in (here, there)]
    return slow_words(*(run.budget.tokens / rate if rate else None for rate in rates))
