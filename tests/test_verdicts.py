"""Verdicts by the one rule: made-up records drive each study to every outcome that it can have."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from peftbook.core import specs
from peftbook.core.records import Record, Store, default_store
from peftbook.evidence import stats
from peftbook.studies import (
    Study,
    Verdict,
    double_quant,
    forgetting,
    get_study,
    second_test,
    subspace,
    two_rates,
    weight_error,
)


def fill(store: Store, study: Study, made: Callable[[specs.Run | specs.Probe], dict]) -> None:
    """Give every run of the study a record, stage after stage."""
    while missing := study.missing(store):
        for run in missing:
            store.save(Record(key=run.key, spec=run, **made(run)))


def decided(store: Store, study: Study, outcome: str, words: str = "") -> Verdict:
    """The study's verdict, which is this outcome, says these words and names quantities that there are."""
    found = study.verdict(store)
    assert found.outcome == outcome, found.sentence
    assert words in found.sentence
    assert found.quantities and set(found.quantities) <= set(study.quantities(store))
    return found


# --- other inputs ----------------------------------------------------------------------------------------------


def record_elsewhere(losses: Mapping[str, float], elsewhere: Mapping[str, float]) -> Callable:
    """Losses of the arms of the E2E studies, of these on the first inputs and of those on the others.

    An arm is named after its method: `prompt 1 random`, or LoRA's rank and its first matrix.
    """

    def made(run: specs.Run) -> dict:
        method, count = run.method, run.evaluation.n_loss
        sizes = (
            f"prompt {method.length} {method.init}" if method.kind == "prompt" else f"{method.rank} {method.targets[0]}"
        )
        level = (elsewhere if run.evaluation.skip else losses).get(sizes, 2.0)
        rng = np.random.default_rng(run.seed)
        nats = level + rng.normal(0, 0.01) + np.random.default_rng(run.evaluation.skip).normal(0, 0.1, count)
        nats += np.random.default_rng(int(run.key[:8], 16)).normal(0, 1e-3, count)
        return {
            "measurements": {"loss_nats": float(nats.mean()) + 0.05 * abs(math.log(run.budget.learning_rate / 0.02))},
            "per_example": {"loss_nats": nats.tolist(), "label_tokens": [1.0] * count},
        }

    return made


AS_FOUND = {
    "prompt 1 vocabulary": 2.4, "prompt 100 vocabulary": 1.8, "prompt 20 random": 1.9,
    "26 q_proj": 2.1, "53 q_proj": 2.1, "1 q_proj": 2.1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("elsewhere", "outcome", "words"),
    [
        ({}, "undecided", "6 of 6"),
        ({"prompt 1 vocabulary": 1.9}, "refuted", "reproduced → refuted"),
        ({"26 q_proj": 2.01}, "undecided", "5 of 6 verdicts hold"),
        ({"1 q_proj": 1.9}, "refuted", "rank matter? reproduced → undecided"),  # rank 1 on the other side of zero
    ],
)
def test_verdicts_on_other_inputs_hold_turn_over_or_stay_open(tmp_path, elsewhere, outcome, words):
    """By the rule of each study; the runs asked for are those of the first test, and read none of its inputs."""
    store, study = Store(tmp_path), get_study("second_test")
    made = record_elsewhere(AS_FOUND, AS_FOUND | elsewhere)
    for name in ("prompt_length", "targets", "rank"):
        fill(store, get_study(name), made)
    tested = {run.key: run for name in second_test.DECIDING for run in get_study(name).runs(store)}
    for run in study.missing(store):
        before = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"skip": 0, "n_loss": 200})})
        assert before.key in tested and run.evaluation.skip == 200 == before.evaluation.n_loss
    fill(store, study, made)
    found = decided(store, study, outcome, words)
    assert found.quantities[-1] == "seed_correlation" and len(found.quantities) == len(second_test.DECIDING) + 1


def test_what_becomes_of_a_verdict_is_said_for_every_pair_of_outcomes():
    """Whatever turns over one way turns over the other way; to be open is no contradiction."""
    outcomes = ("reproduced", "equivalent", "refuted", "direction only", "undecided")
    for before, after in itertools.product(outcomes, repeat=2):
        assert second_test.fate(before, after, False) == "turns over"
        turned = second_test.fate(before, after, True) == "turns over"
        assert turned == (second_test.fate(after, before, True) == "turns over")
        assert turned == ("refuted" in (before, after) and bool({before, after} & {"reproduced", "equivalent"}))
    assert all(second_test.fate(one, one, True) == "holds" for one in outcomes)


# --- subspaces -------------------------------------------------------------------------------------------------


def overlap_map(squares: np.ndarray) -> list[float]:
    """φ of the first i and j directions, from squared cosines of single ones."""
    rows, columns = (np.arange(1, size + 1) for size in squares.shape)
    return (squares.cumsum(axis=0).cumsum(axis=1) / np.minimum(rows[:, None], columns)).flatten().tolist()


def subspace_record(first: float, later: float, noise: float = 0.0, width: int = 576) -> Callable:
    """Records whose first directions overlap by `first` and whose next seven by `later`, give or take `noise`."""

    def made(probe: specs.Probe) -> dict:
        rng = np.random.default_rng(probe.seed)
        shift = noise * rng.normal()
        squares = np.full(subspace.RANKS[:2], 1 / width)
        squares[0, 0] = first + shift
        squares[1:8, 1:8] = (later + shift) / 7
        modules = (squares[0, 0] + 0.001 * rng.normal(size=30)).tolist()
        return {
            "measurements": {"modules": 30, "null_pooled_95": 0.003, "mean_inverse_width": 1 / width},
            "curve": {f"{name}_map": overlap_map(squares) for name in subspace.PAIRS},
            "per_example": dict.fromkeys(
                (*(f"{name}_first" for name in (*subspace.PAIRS, *subspace.LEFT)), *subspace.IN_START), modules
            ),
        }

    return made


@pytest.mark.parametrize(
    ("first", "later", "noise", "outcome"),
    [
        (0.7, 7 / 576, 0.0, "reproduced"),
        (0.2, 7 / 576, 0.0, "fails in this regime"),  # far above chance, but not shared
        (0.45, 7 / 576, 0.0, "undecided"),
        (0.7, 0.4, 0.0, "fails in this regime"),  # the later directions are shared as well
        (0.7, 0.1, 0.03, "undecided"),
    ],
)
def test_a_shared_direction_needs_the_papers_overlap_and_later_ones_that_are_not_shared(
    tmp_path, first, later, noise, outcome
):
    """An overlap above that of random vectors is not enough."""
    store, study = Store(tmp_path), get_study("subspace")
    fill(store, study, subspace_record(first, later, noise))
    decided(store, study, outcome)
    known = study.quantities(store)
    assert known["large_large_first"].value == pytest.approx(known["small_large_first"].value)
    assert known["random_later"].value == pytest.approx(7 / 576)


def test_the_overlap_of_later_directions_is_read_off_the_map():
    """‖V_2…8ᵀ V'_2…8‖² / 7 of two bases, from the cumulative map alone."""
    rng = np.random.default_rng(0)
    small, large = (np.linalg.qr(rng.normal(size=(90, size)))[0] for size in subspace.RANKS[:2])
    probe = subspace.probes()[0]
    record = Record(key=probe.key, spec=probe, curve={"small_large_map": overlap_map((small.T @ large) ** 2)})
    expected = np.linalg.norm(small[:, 1:8].T @ large[:, 1:8]) ** 2 / 7
    assert subspace.later_overlap(record, "small_large") == pytest.approx(expected)


# --- forgetting ------------------------------------------------------------------------------------------------

FALL = {"full_low": 0.6, "full_middle": 1.5, "full_high": 1.2}  # of target loss; LoRA falls by 1
PIECES, TOKENS = 17, 255


def forgetting_record(slopes: Mapping[str, float], spread: float = 0.0, counts: Mapping | None = None) -> Callable:
    """Curves on which prose loss rises by `slopes` for each nat of target loss, and counts of intruders by arm and ε.

    spread: SD over pieces of prose of the rise of the loss at the end, in nats per token.
    """
    arms = {
        forgetting.run_of(arm, seed).key: (arm, seed)
        for arm, seed in itertools.product(forgetting.ARMS, forgetting.SEEDS)
    }

    def made(probe: specs.Probe) -> dict:
        arm, seed = arms[probe.runs[0].key]
        if probe.measure == "weights.intruders":
            found = (counts or {}).get(arm.partition("_")[0], {})
            several = {epsilon: np.broadcast_to(value, 3)[seed - 1] for epsilon, value in found.items()}
            measured = {f"intruders_{epsilon:g}": float(several.get(epsilon, 0)) for epsilon in forgetting.SWEEP}
            return {"measurements": {"vectors": 350, "median_rank_of_update": 5, **measured}}
        steps = np.array([0, *forgetting.STEPS, 50])
        done = 1 - np.exp(-steps / 12)
        fallen = FALL.get(arm, 1.0) * done / done[-1]
        rng = np.random.default_rng(sum(map(ord, arm)))  # pieces behave alike under every seed
        rise = fallen[:, None] * (slopes.get(arm, slopes.get("full", 0.0)) + spread * rng.normal(size=PIECES))
        nats = TOKENS * (np.linspace(2.5, 3.5, PIECES) + rise)
        return {
            "curve": {
                "step": steps.tolist(),
                "validation_loss_nats": (3 - fallen + 0.001 * seed).tolist(),
                "prose_loss_nats": (nats.mean(axis=1) / TOKENS).tolist(),
            },
            "per_example": {
                "prose_tokens": [float(TOKENS)] * PIECES,
                **{f"prose_nats_{step}": row.tolist() for step, row in zip(steps, nats, strict=True)},
            },
        }

    return made


@pytest.mark.parametrize(
    ("slopes", "spread", "outcome", "words"),
    [
        ({"full": 0.05, "r64": 0.01}, 0.0, "reproduced", ""),
        ({"full": 0.01, "r64": 0.05}, 0.0, "refuted", ""),
        ({"full": 0.02, "r64": 0.021}, 0.0, "equivalent", ""),
        ({"full": 0.05, "full_low": 0.0, "r64": 0.01}, 0.0, "undecided", "sign changes with the rate"),
        ({"full": 0.02, "full_high": 0.1, "r64": 0.021}, 0.0, "undecided", "at another rate"),
        ({"full": 0.05, "r64": 0.01}, 0.2, "undecided", "half-width"),
    ],
)
def test_forgetting_is_compared_at_every_rate_and_over_pieces(tmp_path, slopes, spread, outcome, words):
    """The best rate decides, the others may not contradict it, and few pieces that differ decide nothing."""
    store, study = Store(tmp_path), get_study("forgetting")
    fill(store, study, forgetting_record(slopes, spread))
    assert forgetting.best_full(store) == "full_middle"
    decided(store, study, outcome, words)


def test_the_difference_at_matched_loss_is_that_of_the_slopes(tmp_path):
    """Where prose loss is linear in target loss the difference is (slope − slope) · what both have learned."""
    store, study = Store(tmp_path), get_study("forgetting")
    fill(store, study, forgetting_record({"full": 0.05, "r64": 0.02}))
    known = study.quantities(store)
    for arm, learned in (("full_low", 0.6), ("full_middle", 1.0), ("full_high", 1.0)):
        assert known[f"{arm}_minus_r64_prose"].value == pytest.approx(0.03 * learned, abs=1e-4)
    assert known["full_minus_r64_prose"].value == known["full_middle_minus_r64_prose"].value
    assert known["r64_forgotten"].value == pytest.approx(0.02)


def test_pieces_that_differ_widen_every_interval_of_prose(tmp_path):
    """The same seeds, more spread over pieces: a larger interval of the loss, of its rise and of the difference."""
    stores = [Store(tmp_path / name) for name in "ab"]
    for store, spread in zip(stores, (0.01, 0.1), strict=True):
        fill(store, get_study("forgetting"), forgetting_record({"full": 0.05, "r64": 0.02}, spread))
    few, many = (forgetting.quantities(store) for store in stores)
    for name in ("r64_forgotten", "full_minus_r64_prose"):
        assert many[name].high - many[name].low > 5 * (few[name].high - few[name].low)


SOME = dict.fromkeys(forgetting.SWEEP, (20, 22, 21))


@pytest.mark.parametrize(
    ("counts", "outcome", "words"),
    [
        ({}, "undecided", "too short to bring any"),
        ({"r8": {0.8: 9}}, "undecided", "too short to bring any"),
        ({"r8": SOME}, "reproduced", ""),
        ({"r8": {0.6: (20, 22, 21), 0.7: 30, 0.8: 40}}, "reproduced", ""),
        ({"full": SOME}, "refuted", ""),
        ({"r8": {0.6: 20, 0.8: 30}, "full": {0.8: 35}}, "undecided", "sign changes"),
        ({"r8": SOME, "full": SOME}, "equivalent", ""),
        ({"r8": {0.6: (0, 40, 5), 0.7: 50, 0.8: 60}}, "undecided", "half-width"),
    ],
)
def test_intruders_need_an_interval_and_one_sign_over_the_sweep(tmp_path, counts, outcome, words):
    """None against none decides nothing, and neither does one ε."""
    store, study = Store(tmp_path), get_study("intruders")
    fill(store, study, forgetting_record({"full": 0.05}, counts=counts))
    decided(store, study, outcome, words)


def test_further_seeds_of_intruders_wait_for_the_best_rate(tmp_path):
    """Two seeds more for LoRA of rank 8 at once, and for full fine-tuning when its best rate is known."""
    store, made = Store(tmp_path), forgetting_record({"full": 0.05})
    before = forgetting.runs(store)
    for probe in before:
        if probe.measure == "curves.learning_curve":
            store.save(Record(key=probe.key, spec=probe, **made(probe)))
    added = [probe for probe in forgetting.runs(store) if probe not in before]
    assert added == [forgetting.intruder_probe("full_middle", seed) for seed in forgetting.SEEDS[1:]]
    assert len({probe.key for probe in forgetting.runs(store)}) == len(before) + len(added)


# --- memory of a step ------------------------------------------------------------------------------------------


def timing_record(ratios: Sequence[float]) -> Callable:
    """Timing records whose repeats have these ratios of QLoRA's peak memory to LoRA's, on a machine that drifts."""

    def made(run: specs.Run) -> dict:
        base = (3.5e9, 4.1e9, 2.9e9)[run.seed]
        peak = base * (ratios[run.seed] if run.method.kind == "qlora" else 1.0)
        measured = {"median_step_seconds": 2.0, "train_tokens_per_second": 500.0, "peak_memory_bytes": peak}
        return {"measurements": measured}

    return made


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [
        ((0.80, 0.81, 0.82), "reproduced"),
        ((1.10, 1.12, 1.14), "refuted"),
        ((1.00, 1.01, 0.99), "equivalent"),
        ((0.90, 1.20, 1.10), "undecided"),
    ],
)
def test_memory_is_paired_by_repeat(tmp_path, ratios, outcome):
    """A machine on which all repeats overlap still tells methods apart, and one odd repeat refutes nothing."""
    store = Store(tmp_path)
    fill(store, get_study("costs"), timing_record(ratios))
    decided(store, get_study("costs"), outcome, "95 % interval")
    found = get_study("costs").quantities(store)["qlora_over_lora_peak_memory"]
    assert found.value == pytest.approx(math.prod(ratios) ** (1 / 3))
    assert found.low < found.value < found.high


# --- weight error and loss -------------------------------------------------------------------------------------

BOOKS = weight_error.CODEBOOKS


def error_record(loss: Mapping[str, float], copies: float = 0.0, texts: int = 60) -> Callable:
    """Weight error by place in CODEBOOKS and block; loss by codebook, moved by `copies` nats (SD) in every copy."""

    def made(probe: specs.Probe) -> dict:
        rng = np.random.default_rng(7 + probe.seed)
        text = np.random.default_rng(1).normal(3, 0.3, texts)
        sums, measured = {"full": (10 * text).tolist()}, {}
        for name, block in [*itertools.product(BOOKS, map(int, probe.numbers("blocks"))), ("q4_1", 32)]:
            at = (*BOOKS, "q4_1").index(name)
            measured |= {f"{name}_{block}_mse": 0.01 + 0.001 * at + 1e-6 * block, f"{name}_{block}_mae": 0.1 + at}
            added = loss.get(name, 0.0) + 1e-5 * block + copies * rng.normal()
            sums[f"{name}_{block}"] = (10 * (text + added + rng.normal(0, 1e-4, texts))).tolist()
        per_example = {"label_tokens": [10.0] * texts, "kind": ["prose"] * texts, **sums}
        return {"measurements": measured, "per_example": per_example}

    return made


RISING = {name: 0.02 * at for at, name in enumerate(BOOKS)}
SHUFFLED = dict(zip(BOOKS, np.random.default_rng(3).permutation(list(RISING.values())).tolist(), strict=True))


@pytest.mark.parametrize(
    ("loss", "copies", "outcome", "words"),
    [
        (RISING, 0.0, "reproduced", ""),
        ({name: -cost for name, cost in RISING.items()}, 0.0, "refuted", ""),
        (SHUFFLED, 0.0, "undecided", "codebooks are few"),
        ({}, 0.02, "undecided", "too insensitive"),
        ({name: -cost / 100 for name, cost in RISING.items()}, 0.02, "undecided", "too insensitive"),
    ],
)
def test_weight_error_decides_only_where_the_loss_can_tell_codebooks_apart(
    tmp_path, monkeypatch, loss, copies, outcome, words
):
    """Losses that rise with the error, that fall with it, and that are rounding noise."""
    monkeypatch.setattr(weight_error, "DRAWS", 300)
    store, study = Store(tmp_path), get_study("weight_error")
    fill(store, study, error_record(loss, copies))
    found = decided(store, study, outcome, words)
    assert "MiniLM" in found.sentence


@pytest.mark.parametrize(
    ("loss", "copies", "outcome"),
    [
        ({"nf4": 0.0, "e3m0": 0.1, "e2m1": 0.2, "int4": 0.3}, 0.0, "reproduced"),
        ({"nf4": 0.0, "e3m0": 0.5, "e2m1": 0.2, "int4": 0.3}, 0.0, "refuted"),
        ({"nf4": 0.0, "e3m0": 0.2, "e2m1": 0.2, "int4": 0.3}, 0.0, "undecided"),
        ({"nf4": 0.0, "e3m0": 0.203, "e2m1": 0.2, "int4": 0.3}, 0.0, "direction only"),
        ({"nf4": 0.0, "e3m0": 0.5, "e2m1": 0.2, "int4": 0.3}, 0.3, "undecided"),
    ],
)
def test_the_order_of_codebooks_is_judged_over_copies(tmp_path, loss, copies, outcome):
    """The same mean losses decide where copies agree and do not where they scatter."""
    store, study = Store(tmp_path), get_study("weight_error_order")
    for probe in study.runs(store):
        store.save(Record(key=probe.key, spec=probe, **error_record(loss, copies)(probe)))
    found = study.verdict(store)
    assert found.outcome == outcome, found.sentence


def test_without_its_copies_the_small_llama_decides_nothing(tmp_path, monkeypatch):
    """One rounding of the weights has quantities and no verdict."""
    monkeypatch.setattr(weight_error, "DRAWS", 50)
    store, made = Store(tmp_path), error_record(RISING)
    for seed in (0, 1, 2):
        probe = weight_error.probe("small", seed)
        store.save(Record(key=probe.key, spec=probe, **made(probe)))
    assert weight_error.quantities(store)["small_correlation_mse"].seeds == 1
    assert {get_study(name).verdict(store).outcome for name in ("weight_error", "weight_error_order")} == {
        "not yet run"
    }


def small_records(folder, made: Callable) -> list[Record]:
    store = Store(folder)
    for probe in weight_error.probes("small"):
        store.save(Record(key=probe.key, spec=probe, **made(probe)))
    return weight_error.records("small", store)


def test_the_ceiling_is_one_without_noise_and_none_without_signal(tmp_path):
    """Two halves of the data agree as far as there is something to agree on."""
    assert weight_error.ceiling(small_records(tmp_path / "a", error_record(RISING)), (64,)) == pytest.approx(1)
    assert abs(weight_error.ceiling(small_records(tmp_path / "b", error_record({}, 0.02)), (64,))) < 0.5


def test_differences_over_copies_are_the_books_interval(tmp_path):
    """Copies stand where seeds stand in `stats.paired_interval`, and their mean is the value."""
    found = small_records(tmp_path, error_record(RISING, 0.01))
    tables = [[record.per_example[f"{name}_64"] for record in found] for name in ("nf4", "e3m0")]
    expected = stats.paired_interval(*tables, found[0].per_example["label_tokens"])
    assert weight_error.neighbours(found, "nf4", "e3m0") == expected and expected.seeds == len(weight_error.SEEDS)


def test_rank_correlation_is_scipys():
    """With ties, and row by row."""
    from scipy import stats

    rng = np.random.default_rng(2)
    one, two = rng.integers(0, 6, (5, 20)), rng.normal(size=(5, 20))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, two, strict=True)]
    assert weight_error.spearman(one, two) == pytest.approx(expected)
    assert math.isnan(weight_error.spearman(np.ones(4), np.arange(4.0)))


# --- double quantisation ---------------------------------------------------------------------------------------


def constants_record(added: float, own: float = 0.1, noise: float = 1e-3, texts: int = 60) -> Callable:
    """NF4 costs `own` nats a token, and 8-bit constants `added` on top."""

    def made(probe: specs.Probe) -> dict:
        rng = np.random.default_rng(2)
        text, measured, sums = rng.normal(3, 0.3, texts), {"parameters": 1 << 20}, {}
        for block, kind in itertools.product(double_quant.BLOCKS, ("none", "dynamic8")):
            measured |= {f"{block}_{kind}_bytes": 1 << 19, f"{block}_{kind}_mse": 0.008}
            cost = own + (added if kind == "dynamic8" else 0.0)
            sums[f"{block}_{kind}"] = (10 * (text + cost + rng.normal(0, noise, texts))).tolist()
        per_example = {"label_tokens": [10.0] * texts, "kind": ["prose"] * texts, "full": (10 * text).tolist(), **sums}
        return {"measurements": measured, "per_example": per_example}

    return made


@pytest.mark.parametrize(
    ("added", "own", "outcome", "words"),
    [
        (0.005, 0.1, "reproduced", ""),
        (0.02, 0.1, "refuted", ""),
        (0.002, 0.01, "refuted", ""),  # a cost that a larger model would call free
        (0.0, 0.001, "undecided", "too uncertain"),
    ],
)
def test_double_quantisation_is_held_against_what_nf4_costs(tmp_path, added, own, outcome, words):
    """A tenth of NF4's own cost is the margin, whatever that cost is; where it is not known nothing is decided."""
    store, study = Store(tmp_path), get_study("double_quant_loss")
    fill(store, study, constants_record(added, own))
    found = decided(store, study, outcome, words)
    assert "SmolLM2" in found.sentence and "decides nothing" in found.sentence
    known = study.quantities(store)
    assert known["smollm2_64_cost"].note and not known["small_64_cost"].note
    assert known["small_64_margin"].value == pytest.approx(0.1 * known["small_64_none_cost"].value)


def test_the_shaded_margin_is_that_of_the_record_at_hand():
    """The figure's band in nats is the share of what NF4 costs the small Llama at block 64."""
    margin = double_quant.quantities(default_store())["small_64_margin"].value
    assert pytest.approx(margin, abs=5e-6) == double_quant.MARGIN


def test_a_rate_of_a_that_is_too_low_costs_less_than_one_of_b_and_too_high_as_much():
    """LoRA in practice: around the best point of the map a sixteenth of either rate, and four times either."""
    losses = {}
    for name, ratio in two_rates.RATIOS.items():
        swept = two_rates.COMPARISON.tuning(two_rates.COMPARISON.arm(name)).losses(default_store().get)
        losses |= {
            (round(math.log2(rate / 5e-5)), round(math.log2(ratio * rate / 5e-5))): swept[rate] for rate in swept
        }
    a, b = min(losses, key=lambda point: losses[point])
    cost = {point: loss - losses[a, b] for point, loss in losses.items()}
    assert 0.2 < cost[a - 4, b] / cost[a, b - 4] < 0.3
    assert 0.9 < cost[a + 2, b] / cost[a, b + 2] < 1.1
