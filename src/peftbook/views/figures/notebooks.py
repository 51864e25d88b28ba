"""Figures of the chapter on the two notebooks: what a cut leaves, what scores say of systems that learnt nothing,
which rates a prompt bears, and what both recipes need at seven billion parameters."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence import metrics, stats
from peftbook.evidence.comparison import measured
from peftbook.evidence.results import quantity
from peftbook.memory import Setup
from peftbook.methods import arm_looks
from peftbook.scratch import no_learning
from peftbook.studies import methods, prompt_design, sql
from peftbook.tasks import get_task
from peftbook.views.figures.costs import bytes_by_part, draw_peaks, part_key
from peftbook.views.figures.parts import (
    SMALL,
    Points,
    as_row,
    draw_rows,
    interval_row,
    labelled,
    mark,
    plain_ticks,
)
from peftbook.views.figures.style import canvas, colour, finding, tag

LIMIT = 64  # tokens of a row
NOTEBOOK_RATE = 3e-2

# --- scores of systems that learnt nothing -----------------------------------------------------------------------

SYSTEMS = {
    "the right query, in other words": "wrapped",
    "the right query, < and > exchanged": "turned",
    "the nearest training question's query": "copied",
    "SELECT * FROM the table": "everything",
    "the question itself": "question",
}


def question_of(text: str) -> str:
    """The question in the input of an SQL example."""
    return text.rsplit("Question: ", 1)[1]


@functools.cache
def sql_scores() -> dict[str, dict[str, float]]:
    """System → ROUGE-L, exact match and execution match on the SQL task's test questions."""
    task = get_task("sql")
    test, train = task.splits["test"], task.splits["train"]
    questions = [no_learning.words(question_of(one.input)) for one in train]
    closest = [train[no_learning.nearest(no_learning.words(question_of(one.input)), questions)] for one in test]
    texts = {
        "wrapped": [no_learning.wrapped(one.target) for one in test],
        "turned": [no_learning.turned(one.target) for one in test],
        "copied": [no_learning.copied(c.target, c.group, one.group) for c, one in zip(closest, test, strict=True)],
        "everything": [no_learning.everything(one.group) for one in test],
        "question": [question_of(one.input) for one in test],
    }
    assert task.judge is not None
    references = [one.target for one in test]
    return {
        name: {
            "ROUGE-L": float(np.mean(metrics.rouge(written, references)["rougeL"])),
            "exact match": float(np.mean(metrics.exact_match(written, references))),
            "execution match": float(np.mean(task.judge(written, test))),
        }
        for name, written in texts.items()
    }


def scores_of_no_learning() -> Figure:
    """Which score sees that a query is right? Five systems without a model on the SQL task, three scores each."""
    figure, axes = canvas(height=4.6)
    looks = {"ROUGE-L": ("qlora", "D"), "exact match": ("muted", "s"), "execution match": ("lora", "o")}
    found = sql_scores()
    for shift, (score, (tone, marker)) in zip((-0.16, 0.0, 0.16), looks.items(), strict=True):
        values = [found[system][score] for system in SYSTEMS.values()]
        axes.plot(values, np.arange(len(SYSTEMS)) + shift + 0.12, label=score, **mark(tone, marker))
    for at, name in enumerate(SYSTEMS):
        axes.text(0, at - 0.28, name, fontsize=SMALL, va="center", color=colour("ink"))
    axes.set(
        yticks=[],
        ylim=(len(SYSTEMS) - 0.4, -0.6),
        xlim=(-0.04, 1.04),
        xlabel="Mean score over the test questions (computed)",
    )
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, handlelength=1)
    wrong, right = (found[name]["ROUGE-L"] for name in ("turned", "wrapped"))
    return finding(figure, f"ROUGE-L gives wrong queries (< for >) {wrong:.2f}, right ones in other words {right:.2f}")


CONSTANT = "Return a list of the given values."


@functools.cache
def summary_scores() -> dict[str, stats.Interval]:
    """ROUGE-L on the test functions of the head-to-head, of one constant sentence and of the function's name."""
    test = get_task("docstrings").splits["test"][: methods.TEST_EXAMPLES]
    references = [one.target for one in test]
    texts = {
        "one fixed sentence": [CONSTANT] * len(test),
        "the function's name": [no_learning.name_in_words(one.input) for one in test],
    }
    scores = {name: metrics.rouge(written, references)["rougeL"] for name, written in texts.items()}
    return {name: stats.example_interval(values, None, methods.groups()) for name, values in scores.items()}


ARMS = ("untuned", "fewshot", "prompt", "qlora", "lora", "full")


def summary_baselines(store: Store) -> Figure:
    """How good is a ROUGE-L? Two systems without a model below the arms of the head-to-head."""
    rows = [interval_row(name, one, tone="muted", marker="s") for name, one in summary_scores().items()]
    rows += [
        as_row(
            arm_looks()[arm].label, quantity(f"methods.{arm}_rougeL", store), tone=arm, marker=arm_looks()[arm].marker
        )
        for arm in ARMS
    ]
    figure, axes = canvas(height=4.2)
    draw_rows(axes, rows, "ROUGE-L on the test functions")
    axes.set_xlim(0.1, 0.42)
    axes.axvline(rows[1].value, color=colour("muted"), linestyle=(0, (2, 2)), linewidth=1)
    text = (
        f"The function's name scores {rows[1].value:.3f} in ROUGE-L, the untuned model {{methods.untuned_rougeL;value}}"
    )
    return finding(figure, text, store)


# --- answers -----------------------------------------------------------------------------------------------------


def sql_answers(store: Store) -> Figure:
    """What do eight tokens reach? Loss and executed answers of the arms on the SQL task, with their seeds."""
    figure, panels = canvas(1, 2, height=3.6, sharey=True)
    arms = ("untuned", "fewshot", "prompt", "lora")
    for axes, measure, score, label in (
        (panels[0], "loss_nats", "loss", "Loss, nats per token\n(← better)"),
        (panels[1], "execution_match", "execution_match", "Questions answered, share\n(better →)"),
    ):
        rows = []
        for arm in arms:
            seeds = measured(sql.COMPARISON.finals(arm, store), measure)
            found = quantity(f"sql_prompt.{arm}_{score}", store)
            found = replace(found, low=max(found.low or 0, 0))  # Student's t does not know that shares are positive
            rows.append(as_row(arm_looks()[arm].label, found, seeds, arm, arm_looks()[arm].marker))
        draw_rows(axes, rows, label)
        axes.set_xlim(left=-0.04 * axes.get_xlim()[1])
    prompt, lora = (f"{{sql_prompt.{pair}_execution_match;fewer than|not separably more than|more than}}"
                    for pair in ("prompt_minus_fewshot", "lora_minus_prompt"))  # fmt: skip
    return finding(figure, f"A tuned prompt answers {prompt} five examples, LoRA {lora} the prompt", store)


# --- rates -------------------------------------------------------------------------------------------------------


def prompt_rates(store: Store) -> Figure:
    """Was the rate wrong? Validation loss of prompts on E2E against their learning rate, one run a point."""
    figure, axes = canvas(height=4.3)
    looks = {1: ("muted", "v", ":"), 5: ("qlora", "D", "--"), 20: ("prompt", "^", "-"), 100: ("lora", "o", "-.")}
    ends, best = Points(), list[float]()
    for length, (tone, marker, line) in looks.items():
        arm = prompt_design.COMPARISON.arm(prompt_design.arm_name(length, "vocabulary"))
        found = prompt_design.COMPARISON.tuning(arm).losses(store.get)
        axes.plot(list(found), list(found.values()), color=colour(tone), marker=marker, linestyle=line, linewidth=1.6)
        best.append(min(found, key=found.__getitem__))
        ends[f"{length} token{'s' * (length > 1)}"] = max(found), found[max(found)], tone
    axes.axvline(NOTEBOOK_RATE, color=colour("ink"), linestyle=(0, (3, 2)), linewidth=1.2)
    top = axes.get_ylim()[1]
    tag(axes, "the notebook's", (NOTEBOOK_RATE, top), (4, -4), fontsize=SMALL, va="top", fontweight="normal")
    axes.set(xscale="log", xlabel="Learning rate", ylabel="Validation loss, nats per token")
    plain_ticks(axes, (0.01, 0.03, 0.1, 0.3, 1, 3))
    axes.set_xlim(0.003, 300)
    text = f"By length a prompt's best rate is {min(best):.2g} to {max(best):.2g}; the notebook took {NOTEBOOK_RATE:g}"
    return labelled(figure, text, axes, ends, column=0.79)


# --- memory ------------------------------------------------------------------------------------------------------

PROMPT = Setup(method="prompt", length=8, quantised="nf4", double=False, batch=8, seq=LIMIT)
TWEETS = Setup(method="lora", rank=16, quantised="nf4", double=False, dropout=True, batch=4, seq=512)
SETUPS = {
    "Prompt, 8 × 64": PROMPT,
    "… 8 × 256": replace(PROMPT, seq=256),
    "QLoRA, 4 × 512": TWEETS,
    "… double quant.": replace(TWEETS, double=True),
    "… no dropout": replace(TWEETS, double=True, dropout=False),
    "… checkpointing": replace(TWEETS, double=True, dropout=False, checkpointing=True),
}


def notebook_memory() -> Figure:
    """What do the two recipes need at 7B? Tensors at the peak of a step, as they were and changed one by one."""
    figure, axes = canvas(height=4.6)
    rows = {name: bytes_by_part(setup) for name, setup in SETUPS.items()}
    draw_peaks(axes, rows)
    axes.set_xlabel("GB at the peak, Llama-2-7B (computed)")
    axes.tick_params(axis="y", labelsize=SMALL)
    part_key(figure, axes)
    before, after = (sum(rows[name].values()) / 1e9 for name in ("QLoRA, 4 × 512", "… checkpointing"))
    return finding(figure, f"Llama-2-7B: the QLoRA recipe takes {before:.0f} GB, with three changes {after:.1f}")
