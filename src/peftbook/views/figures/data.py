"""Figures of the chapter on data: what a model sees, what truncation takes, what a split leaks, what padding wastes.

All are computed from the shipped data; the counts of tokens are those that `tests/tools/token_lengths.py` wrote.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from scipy import sparse

from peftbook.core.folders import DATA
from peftbook.evidence import metrics, stats
from peftbook.studies.methods import TEST_EXAMPLES
from peftbook.tasks import get_task
from peftbook.views.figures.parts import SMALL, draw_rows, interval_row, mark, mosaic
from peftbook.views.figures.style import canvas, colour, drawing, finding, name_rows, say, shade

TASKS = {"docstrings": "Docstrings", "sql": "SQL", "e2e": "E2E"}
TONES = {"docstrings": ("lora", "o"), "sql": ("qlora", "D"), "e2e": ("prompt", "^")}
LIMITS = range(40, 281)
BATCH, POOL = 8, 16  # as in the book's own runs
POOLS = {"at random": 1, "sorted in pools": POOL, "sorted as a whole": 10**6}  # batches that are sorted together
ROWS = {"packed to 512": 512, "packed to 2,048": 2048}
SHINGLE = 3
SEED = 0
SPLITS = ("random split", "split by package")


@functools.cache
def shipped_counts() -> dict[str, Any]:
    """The shipped counts."""
    return json.loads((DATA / "token_lengths.json").read_text(encoding="utf-8"))


def token_counts(task: str, split: str = "train") -> np.ndarray:
    """Tokens before the target and of the target with its end of turn, one row an example: (examples, 2)."""
    found = shipped_counts()["tasks"][task][split]
    return np.array([found["before"], found["target"]]).T


# --- one example, token by token ---------------------------------------------------------------------------------

CHARACTER, MARGIN, GAP, LINE = 0.0837, 0.075, 0.028, 0.3  # inches, at ten points of DejaVu Sans Mono
KINDS = {
    "template": "template",
    "question": "user's text",
    "target": "target, graded",
    "end": "end of turn, graded",
    "padding": "padding",
}


def token_strip() -> Figure:
    """What does the model see, and where is it graded? One validation example of the docstrings task."""
    tokens = [*map(tuple, shipped_counts()["example"]["tokens"]), *[("<|im_end|>", "padding")] * 3]
    rows = broken(tokens, 5.62)
    figure, axes = drawing(5.8, LINE * len(rows) + 1.3)
    top = LINE * len(rows) + 0.75
    for number, row in enumerate(rows):
        left = 0.1
        for text, kind in row:
            left += draw_token(axes, left, top - LINE * (number + 1), text, kind) + GAP
        if row[-1][1] == "template" and rows[number + 1 : number + 2] and rows[number + 1][0][1] == "target":
            y = top - LINE * (number + 0.6)
            axes.text(left + 0.1, y, "← the first graded prediction", fontsize=SMALL, va="center")
    for at, (kind, label) in enumerate(KINDS.items()):
        left, y = 0.1 + 1.95 * (at % 3), 0.36 if at < 3 else 0.06
        draw_token(axes, left, y, " ", kind)
        axes.text(left + 0.24, y + 0.11, label, fontsize=SMALL, va="center", color=colour("ink"))
    return finding(figure, "Only the answer and its end of turn are graded")


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.replace("\n", "↵").replace(" ", "·")


def breadth(token: str) -> float:
    """Inches of a token's box."""
    return CHARACTER * len(visible(token)) + MARGIN


def broken(tokens: Sequence[tuple[str, str]], width: float) -> list[list[tuple[str, str]]]:
    """Tokens in lines: a new one after each line break of the text, and where the next box would not fit."""
    rows: list[list[tuple[str, str]]] = [[]]
    used = 0.0
    for text, kind in tokens:
        ended = rows[-1] and "\n" in rows[-1][-1][0] and text.strip()
        if rows[-1] and (ended or used + breadth(text) > width):
            rows.append([])
            used = 0.0
        rows[-1].append((text, kind))
        used += breadth(text) + GAP
    return rows


def draw_token(axes: Axes, left: float, bottom: float, text: str, kind: str) -> float:
    """A token in its box; returns the box's width."""
    faces = {"template": colour("fill"), "target": shade("lora", 0.25), "end": shade("qlora", 0.4)}
    edges = {"target": "lora", "end": "qlora"}
    box = Rectangle(
        (left, bottom),
        breadth(text),
        0.235,
        facecolor=faces.get(kind, colour("paper")),
        edgecolor=colour(edges.get(kind, "muted")),
        linewidth=1.4 if kind in edges else 0.6,
        linestyle="--" if kind == "padding" else "-",
    )
    axes.add_patch(box)
    tone, shown = "muted" if kind == "padding" else "ink", visible(text) if text != " " else ""
    say(axes, left + breadth(text) / 2, bottom + 0.113, shown, tone, family="DejaVu Sans Mono", fontsize=10)
    return breadth(text)


# --- truncation --------------------------------------------------------------------------------------------------


def lost(counts: np.ndarray, limit: int) -> tuple[float, float]:
    """Shares of examples that a cut from the right at `limit` robs of their whole target, and of its end at least."""
    before, target = counts.T
    return float(np.mean(before >= limit)), float(np.mean(before + target > limit))


def truncated_targets() -> Figure:
    """How many targets does truncation destroy? Shares of the training examples against the length that is kept."""
    figure, axes = mosaic([[name] for name in TASKS], height=5.6, sharex=True, sharey=True)
    for name, label in TASKS.items():
        whole, end = 100 * np.array([lost(token_counts(name), limit) for limit in LIMITS]).T
        axes[name].fill_between(LIMITS, whole, color=colour("qlora"), linewidth=0)
        axes[name].fill_between(LIMITS, whole, end, color=shade("qlora", 0.35), linewidth=0)
        axes[name].plot(LIMITS, end, color=colour("qlora"), linewidth=1.6)
        axes[name].set_title(label, fontsize=SMALL, pad=4)
        axes[name].set(xlim=(LIMITS[0], LIMITS[-1]), ylim=(0, 100), yticks=(0, 50, 100))
    axes["sql"].set_ylabel("% of training examples (counted)")
    axes["e2e"].set_xlabel("Tokens kept, cut from the right")
    bold: dict[str, Any] = {"fontsize": SMALL, "fontweight": "bold"}
    say(axes["docstrings"], 70, 45, "no target\nleft", "paper", **bold)
    axes["e2e"].annotate(
        "no end of turn",
        (101, 55),
        xytext=(175, 55),
        va="center",
        arrowprops={"arrowstyle": "-", "color": colour("ink"), "linewidth": 0.8},
        **bold,
    )
    say(axes["docstrings"], 225, 45, "target whole", **bold)
    gone = 100 * lost(token_counts("docstrings"), 100)[0]
    return finding(figure, f"Cut at 100 tokens, {gone:.0f} % of docstring rows lose their whole target")


# --- leakage -----------------------------------------------------------------------------------------------------


def shingles(source: str) -> set[tuple[str, ...]]:
    """All runs of three names, numbers or symbols in a piece of code."""
    tokens = re.findall(r"[A-Za-z_]\w*|\d+|[^\w\s]", source)
    return {tuple(tokens[at : at + SHINGLE]) for at in range(len(tokens) - SHINGLE + 1)}


def jaccard(rows: Sequence[set], columns: Sequence[set]) -> np.ndarray:
    """|a ∩ b| / |a ∪ b| for every pair: (rows, columns)."""
    numbers: dict[Any, int] = {}
    for one in (*rows, *columns):
        for item in one:
            numbers.setdefault(item, len(numbers))

    def incidence(sets: Sequence[set]) -> sparse.csr_matrix:
        indices = [numbers[item] for one in sets for item in one]
        ends = np.cumsum([0, *map(len, sets)])
        return sparse.csr_matrix((np.ones(len(indices)), indices, ends), shape=(len(sets), len(numbers)))

    common = (incidence(rows) @ incidence(columns).T).toarray()
    sizes = [np.array([max(1, len(one)) for one in sets]) for sets in (rows, columns)]
    return common / (sizes[0][:, None] + sizes[1][None, :] - common)


@functools.cache
def split_similarities() -> tuple[np.ndarray, np.ndarray]:
    """Similarity of each test function to its nearest training function, and that one's index: (2, test) each.

    First row: a training set of the same size, drawn at random from all other functions, anew for each test function.
    Second row: the training set of the task, without the test function's package.
    """
    splits = get_task("docstrings").splits
    everything = [*splits["train"], *splits["validation"], *splits["test"]]
    size, first = len(splits["train"]), len(everything) - len(splits["test"])
    sets = [shingles(one.input) for one in everything]
    scores = jaccard(sets[first : first + TEST_EXAMPLES], sets)
    generator = np.random.default_rng(SEED)
    similarity, index = np.empty((2, TEST_EXAMPLES)), np.empty((2, TEST_EXAMPLES), dtype=int)
    for row in range(TEST_EXAMPLES):
        others = np.delete(np.arange(len(everything)), first + row)
        for kind, allowed in enumerate((generator.choice(others, size, replace=False), np.arange(size))):
            index[kind, row] = allowed[scores[row, allowed].argmax()]
            similarity[kind, row] = scores[row, index[kind, row]]
    return similarity, index


@functools.cache
def lookup() -> dict[str, np.ndarray]:
    """ROUGE-L of the sentence of the nearest training function, for each test function and split."""
    splits = get_task("docstrings").splits
    sentences = [one.target for split in ("train", "validation", "test") for one in splits[split]]
    references = [one.target for one in splits["test"][:TEST_EXAMPLES]]
    found = {
        name: metrics.rouge([sentences[at] for at in index], references)["rougeL"]
        for name, index in zip(SPLITS, split_similarities()[1], strict=True)
    }
    found["any sentence"] = metrics.rouge(sentences[: len(references)], references)["rougeL"]
    return {name: np.array(scores) for name, scores in found.items()}


def nearest_neighbours() -> Figure:
    """What does a random split give away? The nearest training function, and what copying its sentence scores."""
    figure, axes = canvas(2, 1, height=5.8, gridspec_kw={"height_ratios": (3, 2)})
    looks = {"random split": ("qlora", "-", "D"), "split by package": ("lora", (0, (4, 1.5)), "o")}
    for (tone, line, _), values in zip(looks.values(), split_similarities()[0], strict=True):
        ordered = np.sort(values)[::-1]
        axes[0].plot(ordered, 100 * np.arange(1, len(ordered) + 1) / len(ordered), color=colour(tone), linestyle=line)
    axes[0].text(0.4, 6, "random split", color=colour("qlora"), fontsize=SMALL, fontweight="bold")
    axes[0].text(0.02, 1.3, "split by\npackage", color=colour("lora"), fontsize=SMALL, fontweight="bold")
    axes[0].set(
        yscale="log", xlim=(0, 0.8), ylim=(0.5, 100), xlabel="Similarity to the nearest training function (Jaccard)"
    )
    axes[0].set_yticks((1, 3, 10, 30, 100), ("1", "3", "10", "30", "100"))
    axes[0].set_ylabel("% of test functions\nat least as similar")
    rows = []
    for name, scores in lookup().items():
        tone, _, marker = looks.get(name, ("muted", "", "s"))
        interval = stats.example_interval(scores.tolist())
        rows.append(interval_row(name, interval, tone=tone, marker=marker))
    draw_rows(axes[1], rows, "ROUGE-L of copying that function's sentence")
    axes[1].set(xlim=(0, 0.25), xticks=(0, 0.05, 0.1, 0.15, 0.2, 0.25))
    leaked, apart = (lookup()[split].mean() for split in SPLITS)
    return finding(
        figure, f"Copying the nearest function scores {leaked:.2f} on a random split, {apart:.2f} by package"
    )


# --- padding -----------------------------------------------------------------------------------------------------


@functools.cache
def waste(task: str) -> dict[str, float]:
    """Share of computed positions that are padding in an epoch of the training split, by how batches are made."""
    from peftbook.scratch.packing import bucketed, pack, padding_share

    lengths = token_counts(task).sum(axis=1).tolist()
    batched = {name: padding_share(bucketed(lengths, BATCH, pool, SEED), lengths) for name, pool in POOLS.items()}
    return batched | {name: padding_share(pack(lengths, row), lengths, row) for name, row in ROWS.items()}


def padding_waste() -> Figure:
    """How much of a batch is padding? Batches of 8 by the way they are made, and packed rows."""
    figure, axes = canvas(height=4.4)
    ways = [*POOLS, *ROWS]
    for shift, (task, label) in zip((-0.2, 0, 0.2), TASKS.items(), strict=True):
        tone, marker = TONES[task]
        shares = [100 * waste(task)[name] for name in ways]
        axes.plot(shares, np.arange(len(ways)) + shift, label=label, **mark(tone, marker))
        axes.hlines(np.arange(len(ways)) + shift, 0, shares, color=colour(tone), linewidth=1.6)
    name_rows(axes, ways, 0.5, 0.5)
    axes.set(xlim=(0, None), xlabel="% of positions that are padding (computed)")
    axes.legend(loc="lower right")
    drawn, packed = (100 * waste("docstrings")[way] for way in ("at random", "packed to 2,048"))
    return finding(figure, f"Random batches of docstrings are {drawn:.0f} % padding, packed rows {packed:.0f} %")
