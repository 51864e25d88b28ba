"""Serving: merged, beside the weights, many adapters at once; peft and the scratch LoRA are the oracles."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import NumberTokenizer, random_examples, randomize_adapters, tiny_llama, tiny_task, tokens

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.methods.lora import LoRA
from peftbook.methods.qlora import QLoRA
from peftbook.scratch.codebooks import quantise_dense
from peftbook.scratch.lora import add_lora, load_lora_state, lora_state
from peftbook.scratch.multi_lora import add_multi_lora, select_adapters
from peftbook.studies import get_study, merging
from peftbook.training import execute, merges
from peftbook.training.forward import apply_method
from peftbook.training.loop import losses
from peftbook.training.probes import measure
from peftbook.training.probes import serving as probes

few = settings(max_examples=10, deadline=None)
TARGETS = {"q_proj", "v_proj", "down_proj"}


def states(count: int, rank: int = 3) -> list[dict]:
    """Adapters of the tiny model with random values."""
    model = tiny_llama()
    add_lora(model, TARGETS, rank, alpha=2.0 * rank)
    generator = torch.Generator().manual_seed(9)
    shapes = {name: value.shape for name, value in lora_state(model).items()}
    return [{n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(count)]


def with_one(state: dict, rank: int = 3) -> torch.nn.Module:
    """The scratch LoRA with one of these adapters."""
    model = tiny_llama()
    add_lora(model, TARGETS, rank, alpha=2.0 * rank)
    load_lora_state(model, state)
    return model


@few
@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_each_row_is_what_its_own_adapter_alone_makes_of_it(rows):
    """The scratch LoRA, one adapter at a time, is the oracle of the mixed batch."""
    adapters = states(3)
    mixed = add_multi_lora(tiny_llama(), adapters, scaling=2.0)
    select_adapters(mixed, rows)
    ids = tokens(len(rows))
    with torch.no_grad():
        found = mixed(ids).logits
        for at, adapter in enumerate(rows):
            alone = with_one(adapters[adapter])(ids[at : at + 1]).logits
            torch.testing.assert_close(found[at : at + 1], alone, atol=1e-5, rtol=1e-5)


def test_mixed_batch_equals_peft_row_by_row_and_mixed():
    """peft's set_adapter on each row, and its adapter_names on the batch, give the same logits."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=sorted(TARGETS), task_type="CAUSAL_LM")
    names = ["default", "second", "third"]
    tuned = get_peft_model(tiny_llama(), config)
    for name in names[1:]:
        tuned.add_adapter(name, config)
    randomize_adapters(tuned)
    tuned.eval()
    mixed = add_multi_lora(tiny_llama(), [merges.adapter_state(tuned, name) for name in names], scaling=2.0)
    rows, ids = [2, 0, 1, 2], tokens(4)
    select_adapters(mixed, rows)
    with torch.no_grad():
        found = mixed(ids).logits
        torch.testing.assert_close(tuned(ids, adapter_names=[names[row] for row in rows]).logits, found)
        for at, row in enumerate(rows):
            tuned.set_adapter(names[row])
            torch.testing.assert_close(tuned(ids[at : at + 1]).logits, found[at : at + 1], atol=1e-5, rtol=1e-5)


def test_rows_must_be_chosen_and_adapters_must_fit():
    """A wrong batch, an empty list, another set of layers or another shape is refused, not broadcast."""
    with pytest.raises(ValueError, match="call add_multi_lora first"):
        select_adapters(tiny_llama(), [0])
    one, two = states(2)
    with pytest.raises(ValueError, match="give one or more"):
        add_multi_lora(tiny_llama(), [], scaling=1.0)
    two.pop(next(iter(two)))
    with pytest.raises(ValueError, match="2 sets of layers"):
        add_multi_lora(tiny_llama(), [one, two], scaling=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        add_multi_lora(tiny_llama(), [{name: value.T for name, value in one.items()}], scaling=1.0)
    mixed = add_multi_lora(tiny_llama(), states(2), scaling=1.0)
    with pytest.raises(ValueError, match="call select_adapters first"):
        mixed(tokens())
    select_adapters(mixed, [0, 1, 1])
    with pytest.raises(ValueError, match="2 rows has 3 adapters"):
        mixed(tokens())


@pytest.fixture(scope="module")
def tiny_model(folder) -> specs.Model:
    """A tiny model on disk, as a probe names it."""
    return specs.Model(name=str(folder), revision="")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_latency_times_every_variant_in_every_trial(tiny_model, dtype):
    """One time for each trial, variant and part; merged and unmerged compute the same function."""
    wanted = {"dtype": dtype, "batch": 2, "tokens": 5, "decode_steps": 2, "trials": 3, "rank": 4, "width": 4}
    found = measure(specs.Probe(measure="serving.latency", settings=wanted, model=tiny_model))
    assert set(found.per_example) == {
        f"{name}_{part}_seconds" for name in probes.VARIANTS for part in ("forward", "decode")
    }
    assert all(len(values) == 3 and min(values) > 0 for values in found.per_example.values())
    assert found.measurements["merged_logit_gap"] < (1e-4 if dtype == "fp32" else 1)


@pytest.mark.parametrize("adapters", [1, 3])
def test_all_ways_to_serve_give_the_same_logits(tiny_model, adapters):
    """A contender that computed something else would win for nothing."""
    wanted = {"dtype": "fp32", "adapters": adapters, "batch": 4, "tokens": 5, "new_tokens": 2, "trials": 2, "rank": 4}
    found = measure(specs.Probe(measure="serving.many_adapters", settings=wanted, model=tiny_model))
    for name in probes.CONTENDERS:
        assert found.measurements[f"{name}_logit_gap"] < 1e-4
        assert found.measurements[f"{name}_tokens_per_second"] > 0
        assert len(found.per_example[f"{name}_forward_seconds"]) == 2


def test_bad_settings_are_refused(tiny_model):
    """The message names the value."""
    with pytest.raises(InputError, match="trials is 0"):
        measure(
            specs.Probe(measure="serving.latency", settings={"batch": 1, "tokens": 1, "decode_steps": 1, "trials": 0})
        )
    with pytest.raises(InputError, match="'int8'"):
        probes.chosen_dtype(specs.Probe(measure="serving.latency", settings={"dtype": "int8"}))


def trained(std: float, base: torch.nn.Module | None = None) -> torch.nn.Module:
    """The tiny model, or another base, with a LoRA whose B has this size."""
    model = apply_method(base or tiny_llama(), LoRA(rank=4, alpha=8), seed=0, tokenizer=NumberTokenizer())
    randomize_adapters(model, std=std)
    return model


def test_merging_in_float32_is_the_same_function_and_leaves_no_trace():
    """merged ≡ unmerged; afterwards base and adapter are bit by bit what they were."""
    model = trained(std=0.3)
    before = copy.deepcopy(model.state_dict())
    found = merges.compare_merges(model, random_examples(6), pad_id=2)
    assert found.measurements["merged_logit_gap"] < 1e-4
    np.testing.assert_allclose(
        found.per_example["merged_loss_nats"], found.per_example["unmerged_loss_nats"], rtol=1e-4
    )
    assert found.measurements["untuned_loss_nats"] != pytest.approx(found.measurements["unmerged_loss_nats"], rel=1e-3)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


def test_untuned_is_the_base_model():
    """The adapter's gain is measured from the model without it."""
    found = merges.compare_merges(trained(std=0.3), random_examples(6), pad_id=2)
    plain, _ = losses(tiny_llama(), random_examples(6), pad_id=2, dtype="fp32")
    np.testing.assert_allclose(found.per_example["untuned_loss_nats"], plain, rtol=1e-5)


def test_an_update_below_half_a_step_of_bfloat16_is_lost_in_merging():
    """bfloat16 has 8 significant bits: W + D rounds back to W where |D| is below |W| / 512, so the model is untuned."""
    model = trained(std=1e-7)
    with torch.no_grad():
        for _, value in merges.base_parameters(model):
            value.copy_(value.sign() * value.abs().clamp(min=0.01))  # so that every D is far below |W| / 512
    found = merges.compare_merges(model, random_examples(6), pad_id=2)
    assert found.measurements["unchanged_weights_share"] == 1
    assert found.measurements["update_kept_share"] == 0
    assert found.per_example["merged_bf16_loss_nats"] == found.per_example["untuned_bf16_loss_nats"]


def test_a_large_update_survives_merging_in_bfloat16():
    """What is lost to rounding shrinks with the size of the update."""
    small, large = (merges.compare_merges(trained(std), random_examples(6), pad_id=2) for std in (0.003, 1.0))
    assert large.measurements["update_kept_share"] == pytest.approx(1, abs=0.01)
    assert large.measurements["update_error_share"] < small.measurements["update_error_share"]
    assert large.measurements["unchanged_weights_share"] < small.measurements["unchanged_weights_share"]


QUANTISED = QLoRA(rank=4, alpha=8, quant="nf4", double_quant=False)


def requantised(std: float) -> dict[str, list[float]]:
    """The losses of every recipe for an adapter whose B has this size."""
    state = merges.adapter_state(trained(std), "default")
    return merges.requantised_losses(tiny_llama(), state, 2.0, QUANTISED, random_examples(6), pad_id=2)


def test_without_an_update_requantising_changes_nothing():
    """Q(Q(W)) = Q(W) where the constants are exact: every recipe is the base that it started from."""
    found = requantised(0.0)
    assert found["untuned"] == found["merged"] == found["requantised"] == found["requantised_16bit"]
    assert found["full"] == found["merged_16bit"] != found["untuned"]


def test_merging_into_the_dequantised_base_is_the_adapter_beside_it():
    """peft over a dense quantised base is the oracle."""
    beside = trained(0.3, quantise_dense(tiny_llama(), "nf4", double_quant=False))
    expected, _ = losses(beside, random_examples(6), pad_id=2, dtype="fp32")
    found = requantised(0.3)
    np.testing.assert_allclose(found["merged"], expected, rtol=1e-4)
    assert found["requantised"] != found["merged"] != found["untuned"]


def test_requantising_rounds_a_small_update_away():
    """An update far below the gaps of the code leaves every weight at its level."""
    found = requantised(1e-4)
    kept, moved = (abs(sum(found[name]) - sum(found["untuned"])) for name in ("requantised", "merged"))
    assert kept < moved


@pytest.fixture
def tiny_run(tiny_model, monkeypatch) -> specs.Run:
    """A QLoRA of a tiny model on a tiny task that the registry does not know."""
    task = tiny_task(())
    monkeypatch.setattr(execute, "get_task", lambda name: task)
    return specs.Run(
        model=tiny_model,
        task=task.spec,
        method=QUANTISED,
        budget=specs.Budget(tokens=400, batch_size=4, learning_rate=1e-2),
        evaluation=specs.Evaluation(n_loss=4),
        dtype="fp32",
    )


@pytest.mark.parametrize("name", ["requantise_gap", "surviving_update"])
def test_requantising_needs_a_plain_start(name):
    """LoftQ's base is not the rounded weight, so it cannot be made again from the model alone."""
    run = merging.merge_probe(1).runs[0].model_copy(update={"method": QLoRA(init="loftq")})
    with pytest.raises(InputError, match=f"{name} needs a QLoRA run with init 'kaiming'"):
        measure(specs.Probe(measure=f"serving.{name}", runs=(run,)))


def test_the_probe_measures_the_update_that_it_trains(tiny_run):
    """The losses are those of `requantise_gap`, and what is pooled lies between the least and the greatest matrix."""
    found = measure(specs.Probe(measure="serving.surviving_update", runs=(tiny_run,)))
    gap = measure(specs.Probe(measure="serving.requantise_gap", runs=(tiny_run,)))
    assert all(found.measurements[name] == gap.measurements[name] for name in found.measurements if "loss" in name)
    assert all(
        found.per_example[f"{name}_loss_nats"] == gap.per_example[f"{name}_loss_nats"] for name in probes.GAIN_STATES
    )
    assert found.per_example["label_tokens"] == gap.per_example["label_tokens"]
    sizes, kept = (np.array(found.per_example[f"module_{name}"]) for name in ("size", "kept"))
    assert len(sizes) == len(kept) == len(found.per_example["module"]) == 14
    assert sizes.min() <= found.measurements["size"] <= sizes.max()
    assert kept.min() <= found.measurements["kept"] <= kept.max() and found.measurements["error"] > 0


def test_a_larger_rate_makes_a_larger_update(tiny_run):
    """Which then survives better."""
    faster = tiny_run.model_copy(update={"budget": tiny_run.budget.model_copy(update={"learning_rate": 0.5})})
    small, large = (
        measure(specs.Probe(measure="serving.surviving_update", runs=(run,))).measurements for run in (tiny_run, faster)
    )
    assert large["size"] > 3 * small["size"] and large["kept"] > small["kept"]


def test_a_ratio_of_times_does_not_depend_on_the_unit_or_the_direction():
    """log(a / b) = −log(b / a), and milliseconds give the ratio of seconds."""
    rng = np.random.default_rng(1)
    one, two = np.exp(rng.normal(size=(2, 3, 20)))
    there, back = merging.log_ratio(one, two), merging.log_ratio(1000 * two, 1000 * one)
    assert there.mean == pytest.approx(-back.mean)
    assert there.half95 == pytest.approx(back.half95)
    assert merging.ratio_quantity(there, ()).value == pytest.approx(math.exp(there.mean))


def fill(store: Store, wanted, factors: dict[str, float], parts=("forward", "decode")) -> None:
    """Invented timing records: every name takes its factor times a second, with 1 % noise."""
    for probe in wanted:
        rng = np.random.default_rng(probe.seed)
        trials = int(probe.settings["trials"])
        per_example = {
            f"{name}_{part}_seconds": (factor * np.exp(0.01 * rng.normal(size=trials))).tolist()
            for name, factor in factors.items()
            for part in parts
        }
        measured = {name: float(np.median(values)) for name, values in per_example.items()}
        measured |= {f"{name}_tokens_per_second": 1 / factor for name, factor in factors.items()}
        store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=per_example))


@pytest.mark.parametrize(
    ("factors", "latency", "adapter"),
    [
        ({"base": 1, "merged": 1, "lora": 1.3, "adapter": 1.2}, "reproduced", "reproduced"),
        ({"base": 1, "merged": 1.3, "lora": 1.8, "adapter": 1.5}, "refuted", "reproduced"),
        ({"base": 1, "merged": 1, "lora": 1, "adapter": 1}, "refuted", "refuted"),
        ({"base": 1, "merged": 1, "lora": 1.05, "adapter": 1.05}, "undecided", "undecided"),
    ],
)
def test_latency_verdicts_follow_the_times(tmp_path, factors, latency, adapter):
    """The verdicts are what the rule written beforehand makes of the times."""
    store = Store(tmp_path)
    fill(store, get_study("merging_latency").runs(store), factors)
    found = {name: get_study(name).verdict(store) for name in ("merging_latency", "adapter_latency")}
    assert [one.outcome for one in found.values()] == [latency, adapter]
    known = get_study("merging_latency").quantities(store)
    assert all(name in known for one in found.values() for name in one.quantities)
    assert known["lora_over_merged_decode_bf16_batch32"].value == pytest.approx(
        factors["lora"] / factors["merged"], rel=0.05
    )


@pytest.mark.parametrize(("swapped", "outcome"), [(2.0, "reproduced"), (0.8, "refuted"), (1.0, "equivalent")])
def test_serving_verdict_follows_the_times(tmp_path, swapped, outcome):
    """Swapping that takes twice as long as the mixed batch bears the claim out; less time refutes it."""
    store = Store(tmp_path)
    fill(store, get_study("serving").runs(store), {"mixed": 1, "mixed_peft": 1.5, "swapped": swapped, "merged": 0.9})
    found = get_study("serving").verdict(store)
    assert found.outcome == outcome
    assert set(found.quantities) <= set(get_study("serving").quantities(store))


@pytest.mark.parametrize(("lost", "outcome"), [(0.0, "reproduced"), (0.5, "refuted"), (0.05, "undecided")])
def test_quality_verdict_follows_the_loss(tmp_path, lost, outcome):
    """The share lost is measured against the same adapter beside the same bfloat16 weights."""
    study, store = get_study("merging_quality"), Store(tmp_path)
    for probe in study.runs(store):
        rng = np.random.default_rng(probe.seed)
        count = np.full(100, 20.0)
        untuned = count * (3 + rng.normal(0, 0.3, 100))
        gain = count * (1 + rng.normal(0, 0.1, 100))
        noise = rng.normal(0, 0.1, (2, 100))
        nats = {"untuned": untuned, "untuned_bf16": untuned, "unmerged": untuned - gain, "merged": untuned - gain}
        nats |= {"unmerged_bf16": untuned - gain + noise[0], "merged_bf16": untuned - (1 - lost) * gain + noise[1]}
        nats |= {"merged_then_rounded": nats["merged"]}
        names = ("update_kept_share", "update_error_share", "unchanged_weights_share")
        measured = dict.fromkeys((*names, *(f"{state}_logit_gap" for state in merging.STATES)), 0.5)
        per_example = {f"{name}_loss_nats": values.tolist() for name, values in nats.items()}
        per_example |= {"label_tokens": count.tolist()}
        store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=per_example))
    verdict, known = study.verdict(store), study.quantities(store)
    assert verdict.outcome == outcome
    assert known["bf16_merge_lost"].value == pytest.approx(100 * lost, abs=1)
    assert known["merged_lost"].value == 0
