"""What a bench found, as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from bench.rounds import LAST_STEPS, TRIAL_SECONDS

COLUMNS = ("contestant", "examples/s", "label tok/s", "real tok/s", "× ours", "bf16 | fp32", "padding", "peak MiB",
           "train loss", "validation")  # fmt: skip


def table(rows: Sequence[dict]) -> str:
    """The rows as text: numbers first, then every setting and the caveats of each contestant."""
    if rows and "build" in rows[0]:
        lines = [f"{row['build']:<8}{row['seconds']:8.1f} s" for row in rows]
        return "\n".join([*lines, f"command: {' '.join(rows[0]['command'])}", f"touched: {rows[0]['chapter']}"])
    blocks = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        blocks += [numbers(method, mine), *map(settings, mine)]
    return "\n\n".join(blocks)


def numbers(method: str, rows: Sequence[dict]) -> str:
    """The table of one method: medians over rounds, ranges in brackets."""
    base = next((r["examples_per_second"]["median"] for r in rows if r["contestant"] == "ours" and r["rounds"]), None)
    cells = [list(COLUMNS)]
    for row in rows:
        if not row["rounds"]:
            cells.append([row["contestant"], "failed", *[""] * (len(COLUMNS) - 2)])
            continue
        median = row["examples_per_second"]["median"]
        cells.append([
            row["contestant"],
            ranged(row["examples_per_second"], 2),
            ranged(row["label_tokens_per_second"], 1),
            ranged(row["real_tokens_per_second"], 0),
            f"{median / base:.2f}" if base else "",
            " | ".join(f"{rate:.0f}" for rate in row["tokens_per_second_by_dtype"].values()) or "its own",
            f"{1 - row['real_tokens'] / row['padded_tokens']:.1%}",
            ranged(row["peak_memory_mib"], 0),
            f"{row['loss_start_nats']:.3f} → {row['loss_end_nats']:.3f}",
            ranged(row["validation_loss_nats"], 4),
        ])  # fmt: skip
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    rounds = max(row["rounds"] for row in rows)
    title = f"{method}: median of {rounds} rounds [lowest–highest], first step left out"
    foot = (
        "examples/s and label tok/s: real tok/s times their number per real token in the whole run.\n"
        f"bf16 | fp32: real tok/s of the second step in either type (0: two steps took more than {TRIAL_SECONDS} s); "
        "the rounds are in the faster one.\n"
        f"train loss: nats per label token, first step → mean of the last {LAST_STEPS} steps, on each library's own "
        "batches.\nvalidation: nats per label token of the same held-out examples, by our function, after training."
    )
    if where := next((row["machine"] for row in rows if row["rounds"]), None):
        versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        foot += (
            f"\n{where['name']}, {where['instructions']}, {where['threads']} threads, nice {where['nice']}; {versions}"
        )
    return "\n".join([title, *lines, foot])


def ranged(value: dict[str, float], digits: int) -> str:
    """Median, with the range where rounds differ."""
    middle, low, high = (f"{value[name]:.{digits}f}" for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} [{low}–{high}]"


def settings(row: dict) -> str:
    """Every setting of a contestant, one block: set here, left alone, caveats, failure."""
    lines = [f"{row['contestant']} ({row['method']})"]
    if row["rounds"]:
        lines.append(
            f"  {row['steps']} steps, {row['examples']} examples, {row['label_tokens']} label tokens, "
            f"{row['real_tokens']} real tokens; load {row['load_seconds']['median']:.1f} s "
            f"({row['load_memory_mib']['median']:.0f} MiB), prepare {row['prepare_seconds']['median']:.1f} s, "
            f"whole training {row['train_seconds']['median']:.1f} s"
        )
        for title, name in (("set here", "set_here"), ("left alone", "left_alone")):
            pairs = ", ".join(f"{key}={value}" for key, value in row[name].items())
            lines += textwrap.wrap(f"{title}: {pairs}", 118, initial_indent="  ", subsequent_indent="    ")
    if row["note"]:
        lines += textwrap.wrap(row["note"], 118, initial_indent="  ", subsequent_indent="  ")
    if row["failure"]:
        lines += textwrap.wrap(f"FAILED: {row['failure']}", 118, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)
