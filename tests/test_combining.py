"""Adapters of several tasks made into one: what the probe scores, and what its records decide."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny import tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.studies import averaging, get_study, joint_adapter
from peftbook.training import execute
from peftbook.training.probes import combining, measure

SETTINGS = {
    "validation_examples": 4,
    "density": 0.5,
    "drop": 0.5,
    "sum_scales": (0.5, 1.0),
    "ties_scales": (0.5, 1.0),
    "dare_scales": (0.5, 1.0),
}


@pytest.fixture
def tiny_runs(folder, monkeypatch) -> tuple[specs.Run, ...]:
    """LoRA of a tiny model on three tasks that differ in their instruction."""
    tasks = {
        name: dataclasses.replace(tiny_task(("exact_match",)), name=name, instruction=f"{name}: {{input}}")
        for name in ("one", "two", "three")
    }
    monkeypatch.setattr(execute, "get_task", tasks.__getitem__)
    return tuple(
        specs.Run(
            model=specs.Model(name=str(folder), revision=""), task=task.spec, method=LoRA(rank=2, alpha=4), seed=seed,
            dtype="fp32", budget=specs.Budget(tokens=400, batch_size=4, learning_rate=2e-2),
            evaluation=specs.Evaluation(split="test", n_loss=5),
        )
        for seed, task in enumerate(tasks.values())
    )  # fmt: skip


def probe_of(runs, **settings) -> specs.Probe:
    chosen = SETTINGS | settings
    return specs.Probe(measure="combining.kept_gains", settings=chosen, runs=runs, model=runs[0].model)


def test_every_task_is_scored_under_every_combination_of_its_own(tiny_runs):
    """Three pairs and the three: each task untuned, by each single adapter, and where its own is one of them."""
    found = measure(probe_of(tiny_runs))
    ways = (*combining.PLAIN, *combining.SCALED)
    names = ("one", "two", "three")
    wanted = {f"{task}_{state}" for task in names for state in ("untuned", *(f"by_{other}" for other in names))}
    for subset in combining.subsets(names):
        wanted |= {f"{task}_{'+'.join(subset)}_{way}" for task in subset for way in ways}
    assert {f"{name}_loss_nats" for name in wanted} | {f"{name}_label_tokens" for name in names} == set(
        found.per_example
    )
    assert all(len(values) == 5 for values in found.per_example.values())
    assert found.per_example["one_untuned_loss_nats"] != found.per_example["one_by_one_loss_nats"]
    assert found.measurements["one+two_sum_scale"] in SETTINGS["sum_scales"]
    assert -1 <= found.measurements["one+two_cosine"] <= 1 and "one+two+three_cosine" not in found.measurements
    assert len(found.curve["one+two+three_ties_three"]) == 2


def test_ways_that_are_one_on_paper_score_alike(tiny_runs):
    """A sum at 1/k is the average; dropping nothing is the sum; single adapters score as their own runs do."""
    found = measure(probe_of(tiny_runs[:2], drop=0.0, sum_scales=(0.5,), dare_scales=(0.5,)))
    rows = {way: found.per_example[f"one_one+two_{way}_loss_nats"] for way in ("average", "sum", "dare", "factors")}
    assert rows["sum"] == pytest.approx(rows["average"], abs=1e-4)
    assert rows["dare"] == pytest.approx(rows["average"], abs=1e-4)
    assert rows["factors"] != pytest.approx(rows["average"], abs=1e-4)
    trainee = execute.prepare(tiny_runs[0])
    trainee.train()
    alone, counts = trainee.graded_losses()
    assert found.per_example["one_by_one_loss_nats"] == pytest.approx(alone, abs=1e-3)
    assert found.per_example["one_label_tokens"] == counts


def test_the_scale_is_the_one_that_keeps_most_on_validation_rows(tiny_runs):
    found = measure(probe_of(tiny_runs[:2], sum_scales=(0.0, 0.5, 1.0)))
    kept = np.sum([found.curve[f"one+two_sum_{task}"] for task in ("one", "two")], axis=0)
    assert kept[0] == pytest.approx(0, abs=1e-5)  # at scale 0 nothing is left
    assert found.measurements["one+two_sum_scale"] == (0.0, 0.5, 1.0)[int(kept.argmax())]


def test_what_is_combined_must_be_plain_adapters_of_different_tasks(tiny_runs):
    with pytest.raises(InputError, match="adapters of different tasks"):
        measure(probe_of((tiny_runs[0], tiny_runs[0])))
    prompt = tiny_runs[0].model_copy(update={"method": PromptTuning(length=2)})
    with pytest.raises(InputError, match="kept_gains needs LoRA runs"):
        measure(probe_of((prompt, tiny_runs[1])))


def test_what_is_put_into_a_model_is_taken_out_again(tiny_runs):
    """W + D, then W: bit by bit."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    scorer = combining.Scorer(model, tiny_runs[0])
    before = model[0].weight.detach().clone()
    scorer.put({"0": torch.ones(2, 3)})
    assert torch.equal(model[0].weight, before + 1)
    scorer.put({})
    assert torch.equal(model[0].weight, before)


def test_a_joint_adapter_sees_the_batches_of_the_single_ones_and_no_others(tiny_runs):
    """Each batch of each run once, in an order that the seed draws; tokens are those of the single ones together."""
    trainees = [execute.prepare(run) for run in tiny_runs]
    data, plan = combining.joint_plan(trainees, seed=3)
    alone = [[one.encoded[index] for index in batch] for one in trainees for batch in one.plan]
    joint = [[data[index] for index in batch] for batch in plan]
    assert joint != alone and sorted(map(repr, joint)) == sorted(map(repr, alone))
    found = measure(joint_of(tiny_runs))
    assert found.measurements["train_tokens"] == sum(one.train().tokens for one in trainees)
    assert found.measurements["train_steps"] == len(alone)


def joint_of(runs, rate: float = 2e-2) -> specs.Probe:
    return specs.Probe(
        measure="combining.joint_losses", settings={"learning_rate": rate}, runs=runs, model=runs[0].model, seed=3
    )


def test_a_joint_adapter_is_scored_as_combined_ones_are(tiny_runs):
    """At a rate of nearly nothing it scores as no adapter does; on a run without training there are no batches."""
    idle, learnt = (measure(joint_of(tiny_runs, rate)) for rate in (1e-12, 2e-2))
    untuned = measure(probe_of(tiny_runs)).per_example
    for task in ("one", "two", "three"):
        nats = idle.per_example[f"{task}_joint_loss_nats"]
        assert nats == pytest.approx(untuned[f"{task}_untuned_loss_nats"], abs=1e-4)
        assert nats != pytest.approx(learnt.per_example[f"{task}_joint_loss_nats"], abs=1e-2)
    counts = [untuned[f"{task}_label_tokens"] for task in ("one", "two", "three")]
    means = [
        sum(idle.per_example[f"{task}_joint_loss_nats"]) / sum(counts[at])
        for at, task in enumerate(("one", "two", "three"))
    ]
    assert idle.measurements["loss_nats"] == pytest.approx(np.mean(means), abs=1e-4)
    with pytest.raises(InputError, match="runs with a budget"):
        measure(joint_of((tiny_runs[0].model_copy(update={"budget": None}),)))


# --- the verdict -----------------------------------------------------------------------------------------------

TOKENS = 10.0  # label tokens of every row


def fill(store: Store, kept, gain: float = 2.0, apart: float = 0.0) -> None:
    """Invented records: `kept` of the gain by subset and task, which differs between seeds by up to 2 · apart."""
    while missing := get_study("averaging").missing(store):
        for run in missing:
            if isinstance(run, specs.Run):
                loss = 2.0 + abs(math.log(run.budget.learning_rate / 2e-3))
                store.save(Record(key=run.key, spec=run, measurements={"loss_nats": loss}))
            else:
                store.save(invented(run, kept, gain, apart))


def fill_joint(store: Store, kept, gain: float = 2.0) -> None:
    """Invented records of joint adapters, beside those of averages that keep half: `kept` of the gain by task."""
    fill(store, lambda subset, task: 0.5, gain)
    while missing := get_study("joint_adapter").missing(store):
        for probe in missing:
            loss = abs(math.log(probe.number("learning_rate") / 2e-3))
            measured = {"loss_nats": loss, "train_tokens": 100, "train_steps": 10}
            columns = {
                f"{task}_joint_loss_nats": rows(4.0 - gain * kept(task), 999 + probe.seed) for task in averaging.TASKS
            }
            store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=columns))


def rows(level: float, seed: int) -> list[float]:
    """Nats of test rows around a level, with what all states share and a little of their own."""
    noise = np.random.default_rng(7).normal(0, 0.2, averaging.ROWS)
    return (TOKENS * (level + noise + np.random.default_rng(seed).normal(0, 0.02, averaging.ROWS))).tolist()


def invented(probe: specs.Probe, kept, gain: float, apart: float) -> Record:
    per_example, curve, measured = {}, {}, {}
    for task in averaging.TASKS:
        levels = {"untuned": 4.0} | {f"by_{other}": 4.0 - gain * (other == task) for other in averaging.TASKS}
        for subset in (*averaging.PAIRS, averaging.TASKS):
            if task in subset:
                share = kept(subset, task) + apart * (probe.seed - 3) / 2
                levels |= {f"{'+'.join(subset)}_{way}": 4.0 - share * gain for way in averaging.WAYS}
                curve |= {f"{'+'.join(subset)}_{way}_{task}": [share] * 5 for way in averaging.SCALES}
        per_example[f"{task}_label_tokens"] = [TOKENS] * averaging.ROWS
        for at, (state, level) in enumerate(levels.items()):
            per_example[f"{task}_{state}_loss_nats"] = rows(level, 100 * probe.seed + at)
    for subset in (*averaging.PAIRS, averaging.TASKS):
        name = "+".join(subset)
        measured |= {f"{name}_{way}_scale": 0.5 for way in averaging.SCALES}
        measured |= {f"{name}_cosine": 0.1, f"{name}_cross": 0.8, f"{name}_sign_conflict": 0.4}
    return Record(key=probe.key, spec=probe, measurements=measured, per_example=per_example, curve=curve)


@pytest.fixture(autouse=True)
def ungrouped(monkeypatch):
    """Rows stand for themselves, as where no data are at hand."""
    for module in (averaging, joint_adapter):
        monkeypatch.setattr(module, "test_groups", lambda task, count: ())


@pytest.mark.parametrize(
    ("kept", "gain", "apart", "outcome"),
    [
        (lambda subset, task: 0.98, 2.0, 0.0, "reproduced"),
        (lambda subset, task: 0.6, 2.0, 0.0, "refuted"),
        (lambda subset, task: 0.3 if (len(subset), task) == (4, "sort") else 0.98, 2.0, 0.0, "refuted"),
        (lambda subset, task: 0.9, 2.0, 0.0, "undecided"),
        (lambda subset, task: 0.8, 2.0, 0.3, "undecided"),
        (lambda subset, task: 0.6, 0.05, 0.0, "undecided"),
        (lambda subset, task: 0.0, 2.0, 0.0, "undecided"),
    ],
)
def test_every_share_is_judged(tmp_path, kept, gain, apart, outcome):
    """One of sixteen refutes and all must bear the claim out; without a gain, or with an average that is idle, open."""
    store = Store(tmp_path)
    fill(store, kept, gain, apart)
    verdict, known = get_study("averaging").verdict(store), get_study("averaging").quantities(store)
    assert verdict.outcome == outcome
    assert set(verdict.quantities) <= set(known)
    assert ("does not surely gain" in verdict.sentence) == (gain < averaging.FLOOR)
    assert ("does not surely differ" in verdict.sentence) == (kept((), "") == 0.0)
    assert known["four_adapters_average_mean"].value == pytest.approx(
        100 * np.mean([kept(averaging.TASKS, task) for task in averaging.TASKS]), abs=5 if gain < 1 else 1
    )


def test_refuting_takes_the_wider_interval(tmp_path):
    """What is below the edge at 95 % but not at the level of one of sixteen leaves its share open."""
    store = Store(tmp_path)
    fill(store, lambda subset, task: 0.8, apart=0.04)
    records = averaging.records_of(store)
    one = averaging.cell_share(records, averaging.CELLS[0], "average")
    assert one.high < averaging.LEAST - averaging.MARGIN < averaging.corrected(one).high
    assert averaging.outcome_of(records, averaging.CELLS[0]) == "undecided"


def test_a_parabola_tells_what_halfway_keeps(tmp_path):
    """L(D) = ‖D − D_i‖²: the midpoint of D_i and any D_j keeps (3 + s) / 4, s being what D_j keeps alone."""
    rng = np.random.default_rng(3)
    own, other = rng.normal(size=(2, 5))
    gain, share = own @ own, 1 - (other - own) @ (other - own) / (own @ own)
    halfway = (own + other) / 2
    assert 1 - (halfway - own) @ (halfway - own) / gain == pytest.approx((3 + share) / 4)
    store = Store(tmp_path)
    fill(store, lambda subset, task: 0.75)  # the other adapter alone keeps nothing
    known = get_study("averaging").quantities(store)
    assert known["tickets_sort_sort_parabola"].value == pytest.approx(75, abs=1)
    assert known["parabola_distance"].value == pytest.approx(0, abs=1)
    assert known["two_adapters_average_sort"].value == pytest.approx(75, abs=1)  # over three partners


def test_no_two_adapters_of_a_study_share_a_seed(tmp_path):
    """Else their A would start alike."""
    store = Store(tmp_path)
    fill(store, lambda subset, task: 0.6)
    probes = [run for run in get_study("averaging").runs(store) if isinstance(run, specs.Probe)]
    seeds = [run.seed for probe in probes for run in probe.runs]
    assert len(set(seeds)) == len(seeds) == len(averaging.SEEDS) * len(averaging.TASKS) and 0 not in seeds


@pytest.mark.parametrize(
    ("kept", "gain", "outcome"),
    [
        (lambda task: 0.9, 2.0, "reproduced"),
        (lambda task: 0.3 if task == "sort" else 0.9, 2.0, "refuted"),
        (lambda task: 0.5 if task == "sort" else 0.9, 2.0, "undecided"),
        (lambda task: 0.9, 0.05, "undecided"),
    ],
)
def test_a_joint_adapter_must_keep_more_of_every_gain(tmp_path, kept, gain, outcome):
    """One task in which the average keeps more refutes; a task that nobody learnt leaves it open."""
    store = Store(tmp_path)
    fill_joint(store, kept, gain)
    study = get_study("joint_adapter")
    verdict, known = study.verdict(store), study.quantities(store)
    assert verdict.outcome == outcome and set(verdict.quantities) <= set(known)
    assert known["best_rate"].value == 2e-3 and known["train_tokens"].value == 100
    assert known["sort_kept"].value == pytest.approx(100 * kept("sort"), abs=20 if gain < 1 else 1)
    assert known["sort_lead"].value == pytest.approx(100 * (kept("sort") - 0.5), abs=20 if gain < 1 else 1)
    singles = {
        probe.seed: probe.runs for probe in study.runs(store) if "validation_examples" in getattr(probe, "settings", {})
    }
    joint = [probe for probe in study.runs(store) if getattr(probe, "measure", "") == "combining.joint_losses"]
    assert {probe.seed: probe.runs for probe in joint if probe.seed} == singles  # the very batches
