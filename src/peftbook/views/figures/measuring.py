"""Figures of the measuring chapter: what settings move, what pairing saves, what few seeds see, what choosing costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from scipy import optimize
from scipy.stats import chi2, norm

from peftbook.core.records import Store
from peftbook.evidence import comparison, stats
from peftbook.evidence.results import quantity
from peftbook.methods import arm_looks
from peftbook.studies import coverage, methods
from peftbook.views.figures.parts import (
    SMALL,
    as_row,
    decimals,
    draw_interval,
    draw_margin,
    interval_row,
    mark,
    mark_key,
    plain_ticks,
)
from peftbook.views.figures.style import canvas, colour, finding, look, name_rows, tag

SETTINGS = {
    "default": "Default",
    "stem": "Stemmed",
    "cased": "Case kept",
    "words": "Unicode words",
    "whitespace": "Split at blanks",
    "lsum": "Lsum, lines",
    "lsum_sentences": "Lsum, sentences",
    "corpus": "Whole corpus",
}


def rouge_by_setting(store: Store) -> Figure:
    """Do settings move ROUGE-L more than methods differ? Scores of the same texts, and LoRA's leads, by setting."""
    figure, (scores, leads) = canvas(1, 2, height=5.4, sharey=True, width_ratios=(1, 1.1))
    for arm in ("untuned", "prompt", "lora"):
        values = [quantity(f"rouge_settings.{arm}_{setting}", store).value for setting in SETTINGS]
        scores.plot(values, range(len(SETTINGS)), **(look(arm) | {"linewidth": 1.0}), label=arm_looks()[arm].label)
    for second, tone, marker, shift in (("prompt", "prompt", "^", -0.16), ("untuned", "untuned", "X", 0.16)):
        for at, setting in enumerate(SETTINGS):
            found = quantity(f"rouge_settings.lora_minus_{second}_{setting}", store)
            draw_interval(leads, at + shift, as_row("", found, tone=tone, marker=marker))
    leads.axvline(0, color=colour("muted"), linewidth=1.2)
    scores.set_yticks(range(len(SETTINGS)), list(SETTINGS.values()))
    scores.set(ylim=(len(SETTINGS) - 0.5, -0.6), xlabel="ROUGE-L, 0–1", title="Scores")
    leads.set(xlabel="LoRA − the arm, paired", title="LoRA's lead over …")
    for axes in (scores, leads):
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    figure.legend(*scores.get_legend_handles_labels(), loc="outside lower center", ncols=3, columnspacing=1.2)
    word = "{rouge_settings.spread_minus_gap;less than|not separably more than|more than}"
    text = f"Settings move LoRA's ROUGE-L by {{rouge_settings.lora_spread;value}}, {word} its lead over prompt tuning"
    return finding(figure, text, store)


PAIRS = (("lora", "full"), ("qlora", "lora"), ("prompt", "lora"), ("prompt", "full"))


def unpaired_interval(
    first: stats.Scores, second: stats.Scores, weights: Sequence[float] | None = None, groups: stats.Groups = ()
) -> stats.Interval:
    """The interval of first − second if the arms had shared nothing: errors add in squares, degrees of freedom too."""
    one, two = (stats.mean_interval(rows, weights, groups) for rows in (first, second))
    errors = math.hypot(one.seed_se, two.seed_se), math.hypot(one.example_se, two.example_se)
    freedoms = one.seeds + two.seeds - 2, one.freedom + two.freedom
    half95, half90 = (float(stats.half_width(level, *errors, *freedoms)) for level in (0.05, 0.10))
    return stats.Interval(one.mean - two.mean, half95, half90, *errors, one.seeds, one.examples)


def paired_intervals(store: Store) -> Figure:
    """What is pairing worth? Intervals of the head-to-head differences, with and without it."""
    panels = (("loss_nats", methods.MARGIN_NATS, "Loss difference, nats per token"),
              ("rougeL", methods.MARGIN_ROUGE, "ROUGE-L difference"))  # fmt: skip
    figure, both = canvas(2, 1, height=5.9)
    narrower: list[float] = []
    for axes, (column, margin, label) in zip(both, panels, strict=True):
        draw_margin(axes, -margin, margin, 0)
        for at, pair in enumerate(PAIRS):
            one, two = (methods.final_records(arm, store) for arm in pair)
            first, second = (comparison.table(arm, column) for arm in (one, two))
            alone = unpaired_interval(first, second, comparison.weights(one, column), methods.groups())
            together = methods.paired(one, two, column)
            narrower += [alone.half95 / together.half95] if pair == ("lora", "full") else []
            draw_interval(axes, at + 0.18, interval_row("", alone, tone="untuned", marker="s", hollow=True))
            draw_interval(axes, at - 0.18, interval_row("", together, tone="accent"))
        name_rows(axes, [" − ".join(arm_looks()[arm].label for arm in pair) for pair in PAIRS], 0.5)
        axes.set_xlabel(f"{label} (band: margin)")
    marks = {"paired": mark("accent", "o"), "as if unrelated": mark("untuned", "s", hollow=True)}
    mark_key(figure, both[0], marks)
    loss, rouge = narrower
    text = f"Pairing makes LoRA − full's interval {loss:.0f} times narrower in loss, {rouge:.1f} times in ROUGE-L"
    return finding(figure, text)


DRAWN = {"first_edition": ("untuned", "s"), "satterthwaite": ("qlora", "D"), coverage.RULE: ("lora", "o")}


def coverage_of_rules(store: Store) -> Figure:
    """Does the interval cover, and what does it find? Three rules with three seeds, by the seeds' share."""
    figure, (covered, found) = canvas(2, 1, height=6.4, sharex=True)
    cells = [one for one in coverage.cells(store) if one.seeds == 3 and coverage.PARTS["aimed"](one)]
    shares = sorted({one.share for one in cells})
    for shift, (rule, (tone, marker)) in enumerate(DRAWN.items()):
        for axes, at in ((covered, 0), (found, 1)):
            rates = [[one.rates[rule][at] for one in cells if one.share == share] for share in shares]
            means = np.array([np.mean(values) for values in rates])
            ends = np.array([[min(values), max(values)] for values in rates])
            axes.errorbar(
                np.arange(len(shares)) + 0.12 * (shift - 1),
                means,
                abs(ends.T - means),
                color=colour(tone),
                marker=marker,
                markersize=6,
                linewidth=1.6,
                elinewidth=1.2,
            )
    covered.axhspan(coverage.FEWEST, coverage.MOST, color=colour("fill"), linewidth=0, zorder=0)
    covered.axhline(coverage.MEAN, color=colour("muted"), linewidth=1.2)
    covered.set(ylabel="Truth inside, %", ylim=(88, 100.6))
    found.axhline(100 * OFTEN, color=colour("muted"), linewidth=1.2)
    found.set(ylabel="Difference found, %", xlabel="Share of the variance that is the seeds'", ylim=(0, 88))
    found.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    mark_key(figure, covered, {SHORT_RULES[rule]: mark(*look) for rule, look in DRAWN.items()}, columnspacing=1.2)
    ours, first = (np.mean([one.rates[name] for one in cells], axis=0) for name in (coverage.RULE, coverage.BEFORE))
    text = f"The rule covers {ours[0]:.0f} % and finds {ours[1]:.0f} % of differences"
    text += f", t(n − 1) for both errors {first[1]:.0f} %"
    return finding(figure, text)


SHORT_RULES = {"first_edition": "t(n − 1)", "satterthwaite": "Satterthwaite", coverage.RULE: "the rule"}
SEEDS = (2, 3, 4, 5, 6, 8, 10, 14, 20)
OFTEN = 0.8  # four times in five


def chance(effect: float, seeds: int, bar: float, points: int = 4000) -> float:
    """P(|d̄| > bar · s / √n) for n seed differences that are normal with mean `effect` in units of their SD.

    The mean over s of a normal probability, at the midpoints of equally likely slices of s.
    """
    u = (np.arange(points) + 0.5) / points
    s = np.sqrt(chi2.ppf(u, seeds - 1) / (seeds - 1))
    shift = effect * math.sqrt(seeds)
    return float(np.mean(norm.sf(bar * s - shift) + norm.cdf(-bar * s - shift)))


def quantile(seeds: int) -> float:
    """t(n − 1) at 97.5 %."""
    return float(stats.quantile(0.05, seeds - 1))


def smallest_effect(seeds: int, often: float = OFTEN) -> float:
    """The effect, in SDs of the seed differences, whose 95 % interval excludes zero in this share of studies."""
    return float(optimize.brentq(lambda effect: chance(effect, seeds, quantile(seeds)) - often, 1e-3, 1e2))


def seeds_needed() -> Figure:
    """What can n seeds see? Half-width and findable effect, and how often an effect of one SD is found."""
    figure, (sizes, found) = canvas(2, 1, height=6.6, sharex=True)
    half = [quantile(n) / math.sqrt(n) for n in SEEDS]
    least = [smallest_effect(n) for n in SEEDS]
    straight = {"color": colour("muted"), "linestyle": (0, (4, 1.5)), "linewidth": 1.8}
    sizes.plot(SEEDS, least, color=colour("qlora"), marker="s", markersize=6)
    sizes.plot(SEEDS, half, color=colour("lora"), marker="o", markersize=6)
    sizes.axhline(2, **straight)
    sizes.set(xscale="log", yscale="log", ylabel="SDs of the seed differences")
    plain_ticks(sizes, SEEDS)
    decimals(sizes.yaxis, (1, 2, 5))
    tag(sizes, "effect found\n4 times in 5", (3, smallest_effect(3)), (10, 8), "qlora", fontsize=SMALL)
    tag(sizes, "half-width", (5, half[3]), (-8, -17), "lora", ha="right", fontsize=SMALL)
    tag(sizes, "“two SD” rule", (20, 2), (2, 5), "muted", ha="right", fontsize=SMALL)
    found.plot(SEEDS, [chance(1, n, quantile(n)) for n in SEEDS], color=colour("lora"), marker="o", markersize=6)
    found.plot(SEEDS, [chance(1, n, 2 * math.sqrt(n)) for n in SEEDS], **straight, marker="D", markersize=5)
    found.set(xlabel="Seeds", ylabel="Chance to find\nan effect of one SD", ylim=(0, 1.03))
    tag(found, "95 % interval", (8, chance(1, 8, quantile(8))), (-10, 4), "lora", ha="right", fontsize=SMALL)
    tag(found, "“two SD” rule", (8, chance(1, 8, 2 * math.sqrt(8))), (2, 10), "muted", fontsize=SMALL)
    three, ten = (100 * chance(1, n, quantile(n)) for n in (3, 10))
    return finding(figure, f"Three seeds find an effect of one SD in {three:.0f} % of studies, ten in {ten:.0f} %")


# Intervals of a − b in units of the margin: centre and half-width at 95 %, as five seeds give them.
CASES = ((-1.95, 0.9), (-0.45, 0.35), (-1.3, 0.9), (-0.5, 0.95), (1.2, 0.9), (0.2, 2.2), (2.3, 0.9))


def case(centre: float, half95: float, seeds: int = 5) -> stats.Interval:
    """An interval with the 90 % half-width that belongs to its 95 % one."""
    ratio = float(stats.quantile(0.10, seeds - 1) / stats.quantile(0.05, seeds - 1))
    return stats.Interval(centre, half95, ratio * half95, 0.0, 0.0, seeds, 200)


def verdict_rule() -> Figure:
    """Which verdict does an interval get? The book's own rule, on the claim that a − b is below zero."""
    looks = {"reproduced": ("lora", "o"), "equivalent": ("prompt", "^"), "refuted": ("qlora", "D"),
             "direction only": ("untuned", "P"), "undecided": ("untuned", "X")}  # fmt: skip
    figure, axes = canvas(height=4.3)
    draw_margin(axes, -1, 1, 0)
    for at, (centre, half95) in enumerate(CASES):
        found = case(centre, half95)
        said = stats.judge(found, 1.0, (-math.inf, 0.0))
        look, marker = looks[said]
        tone = colour(look)
        axes.plot([found.low, found.high], [at, at], color=tone, linewidth=1.4)
        axes.plot(
            [centre - found.half90, centre + found.half90], [at, at], color=tone, linewidth=5, solid_capstyle="butt"
        )
        axes.plot(centre, at, **mark(look, marker))
        axes.text(3.4, at, said, color=tone, va="center", fontweight="bold")
    name_rows(axes, list("ABCDEFG"), 0.4, 0.6)
    axes.set(xlim=(-2.9, 5.3), xlabel="a − b (claim: below 0; thick: 90 %, thin: 95 %)")
    axes.set_xticks([-2, -1, 0, 1, 2, 3], ["−2δ", "−δ", "0", "δ", "2δ", "3δ"])
    return finding(figure, "Zero and the margin decide which verdict an interval gets")


ARMS = (1, 2, 4, 8, 16, 32, 64)
SPREADS = {0.0: ("arms all equal", "qlora", "D"), 1.0: ("arms differ as much as noise", "lora", "o")}
STUDIES = 4000


def largest_of(arms: int, points: int = 20_001) -> float:
    """The mean of the largest of k standard normals: ∫ (1 − Φ(z)^k − Φ(−z)^k) dz over z > 0."""
    z = np.linspace(0, 9, points)
    return float(np.trapezoid(1 - norm.cdf(z) ** arms - norm.cdf(-z) ** arms, z))


def inflation(arms: int, spread: float) -> float:
    """By how many noise SDs the winner's score exceeds its true value: e_k / √(1 + τ²), τ the true SD of the arms."""
    return largest_of(arms) / math.sqrt(1 + spread**2)


def curse(arms: int, spread: float, studies: int = STUDIES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The winner's score minus its true value, on validation and on a fresh run, for each simulated study.

    Arms have true values τ · N(0, 1) and scores with noise N(0, 1); the highest score wins. Two arrays, (studies,).
    """
    rng = np.random.default_rng((seed, arms))
    true = spread * rng.normal(size=(studies, arms))
    seen = true + rng.normal(size=(studies, arms))
    fresh = true + rng.normal(size=(studies, arms))
    won = seen.argmax(axis=1)[:, None]
    shown, confirmed = (np.take_along_axis(scores - true, won, axis=1)[:, 0] for scores in (seen, fresh))
    return shown, confirmed


def winners_curse() -> Figure:
    """How much does the winner's score flatter it? Simulation and formula, on validation and on fresh runs."""
    figure, axes = canvas(height=4.2)
    fine = np.geomspace(1, ARMS[-1], 40)
    for spread, (label, tone, marker) in SPREADS.items():
        axes.plot(fine, [inflation(k, spread) for k in fine], color=colour(tone), linewidth=1.6)
        found = [curse(k, spread)[0].mean() for k in ARMS]
        axes.plot(ARMS, found, **mark(tone, marker))
        x, y = (13, inflation(16, spread)) if spread == 0 else (ARMS[-1], 0.6)
        tag(axes, label, (x, y), (0, 10), tone, ha="right", fontsize=SMALL)
    fresh = [curse(k, 0.0)[1].mean() for k in ARMS]
    axes.axhline(0, color=colour("muted"), linewidth=1.2)
    axes.plot(ARMS, fresh, **mark("accent", "s", hollow=True))
    tag(axes, "the same winner on fresh seeds", (64, 0), (0, 9), "accent", ha="right", fontsize=SMALL)
    axes.set(xscale="log", xlabel="Arms or settings tried", ylabel="Score − true value\n(SDs of the noise)")
    plain_ticks(axes, ARMS)
    axes.set_ylim(-0.25, 2.7)
    return finding(figure, f"The best of 16 equal arms looks {inflation(16, 0.0):.1f} SDs of the noise too good")
