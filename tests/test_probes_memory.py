"""Memory and time of a training step, measured: the probes' own counts, and the verdicts on them."""

import gc
import hashlib
import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.memory import TARGETS, Configuration, DecoderShape, Setup
from peftbook.runtime.hardware import peak_memory
from peftbook.studies import activations, get_study, memory_cases
from peftbook.studies import memory as study
from peftbook.training.probes import measure
from peftbook.training.probes import memory as probes
from peftbook.training.random_model import random_ids, subject

TINY = DecoderShape(layers=2, hidden=128, ffn=256, heads=4, kv_heads=2, vocab=512, tied=True)
STEP = Setup(rank=4, seq=24, device="cpu")
QLORA = replace(STEP, quantised="nf4")


@pytest.fixture(autouse=True, scope="module")
def nothing_old() -> None:
    """The collector, which every probe of a peak calls, passes over what earlier tests left."""
    gc.collect()
    gc.freeze()


def tiny_probe(shape: DecoderShape = TINY, setup: Setup = STEP, **more) -> specs.Probe:
    """A case of the study at a tiny shape."""
    settings = {"configuration": Configuration(shape, setup).text, "trials": 2} | more
    return specs.Probe(measure="memory.peak", settings=settings, model=study.SCRATCH)


@pytest.mark.parametrize("setup", [STEP, QLORA, replace(STEP, checkpointing=True)], ids=["lora", "qlora", "saved"])
def test_a_probe_finds_the_predicted_bytes(setup):
    """Every term, and the peak of the tensors, at a shape whose tensors outweigh what kernels need."""
    shape, setup = replace(TINY, vocab=8192, hidden=256, ffn=768, head_dim=64), replace(setup, seq=64)
    found = measure(tiny_probe(shape, setup, trials=1)).measurements
    terms = study.predicted(Configuration(shape, setup))
    for name in ("weights", "constants", "adapter", "gradients", "moments", "kept"):
        assert found[f"{name}_bytes"] == pytest.approx(terms[name], rel=1e-3), name
    assert found["tensor_peak_bytes"] == pytest.approx(terms["total"], rel=0.02)
    assert found["process_rest_bytes"] <= found["process_peak_bytes"]
    assert found["step_seconds"] > 0


def test_the_allocators_peak_is_that_of_the_call_alone():
    """Tensors of before do not count, freed ones count while they live."""
    before = torch.zeros(1_000_000)

    def call():
        first = torch.zeros(30_000)
        del first
        second, third = torch.zeros(20_000), torch.zeros(25_000)
        return second.sum() + third.sum() + before[0]

    for _ in range(2):
        assert probes.allocated_peak(call) == pytest.approx(4 * 45_000, abs=1000)


def test_the_systems_peak_is_forgotten_on_reset():
    """A block that was unmapped before the reset is no part of the peak after it; malloc might have kept it."""
    block = mmap.mmap(-1, 300_000_000)
    for at in range(0, len(block), mmap.PAGESIZE):
        block[at] = 1
    high = peak_memory("cpu")
    block.close()
    was_reset = probes.reset_peak()
    assert (peak_memory("cpu") < high - 200_000_000) == was_reset


def test_a_quantised_model_is_what_qlora_trains():
    """The decoder's linear layers are bitsandbytes' under peft's 4-bit LoRA; all else is bfloat16."""
    tuned = subject(TINY, QLORA, 0)
    adapted = [part for part in tuned.model.modules() if isinstance(part, LoraLinear4bit)]
    assert len(adapted) == len(TARGETS) * TINY.layers
    for part in adapted:
        base = part.get_base_layer()
        assert base.weight.dtype == torch.uint8 and base.weight.quant_state.nested
        assert base.quant_state is base.weight.quant_state  # not a second copy
        assert not base.support_avx512bf16_for_cpu
    addresses = [part.get_base_layer().weight.data_ptr() for part in adapted]
    assert len(set(addresses)) == len(addresses)
    rest = {n: v.dtype for n, v in tuned.model.named_parameters() if "lora" not in n and v.dtype != torch.uint8}
    assert set(rest.values()) == {torch.bfloat16}
    assert len(rest) == 2 * TINY.layers + 2  # gains of the norms, and embedding and head in one


@pytest.mark.parametrize(
    "given", [{"labels": 3}, {"optimiser": "sgd"}, {"quantised": "int8"}], ids=lambda given: next(iter(given))
)
def test_what_is_counted_alone_is_not_run(given):
    """A record cannot claim to have measured a set-up that its model does not follow."""
    with pytest.raises(InputError, match=f"{next(iter(given))} .* is counted, not run"):
        subject(TINY, replace(STEP, **given), 0)


def test_a_step_learns():
    """A step that is measured is a real one: trained on one row, the loss falls, over either base."""
    ids = random_ids(TINY, STEP, seed=0)
    for setup in (STEP, QLORA):
        tuned = subject(TINY, setup, 0)
        for group in tuned.optimizer.param_groups:
            group["lr"] = 1e-2
        first = tuned.loss(ids).item()
        for _ in range(20):
            tuned.step(ids)
        assert tuned.loss(ids).item() < first - 0.1


def test_every_contender_is_timed_in_every_trial():
    """One time for each base and trial; the medians are theirs."""
    setups = (replace(STEP, seq=8), replace(QLORA, seq=8))
    settings = {
        "contenders": ("lora", "qlora"),
        "configurations": tuple(Configuration(TINY, one).text for one in setups),
        "trials": 3,
    }
    found = measure(specs.Probe(measure="memory.step_time", settings=settings, model=study.SCRATCH))
    for name in ("lora", "qlora"):
        values = found.per_example[f"{name}_seconds"]
        assert len(values) == 3 and min(values) > 0
        assert found.measurements[f"{name}_seconds"] == sorted(values)[1]


def test_counts_of_many_configurations_are_those_of_each():
    """By module and configuration; what a configuration lacks is 0."""
    both = [Configuration(TINY, one) for one in (STEP, replace(STEP, method="prompt"))]
    texts = tuple(one.text for one in both)
    probe = specs.Probe(measure="memory.activations", settings={"configurations": texts}, model=study.SCRATCH)
    found = measure(probe).per_example
    assert found["prompt_encoder.default.embedding"][0] == 0 < found["prompt_encoder.default.embedding"][1]
    for index, one in enumerate(both):
        assert sum(sizes[index] for sizes in found.values()) == sum(one.kept_by_module().values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"configuration": "[{}]"}, "no configuration"),
        ({"trials": 0}, "trials is 0"),
        ({"configuration": Configuration(replace(TINY, ffn=10**8), STEP).text}, "give a smaller shape"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    """The message names the value and the fix."""
    with pytest.raises(InputError, match=message):
        measure(tiny_probe(**wrong))
    with pytest.raises(InputError, match="use platform 'cpu'"):
        measure(tiny_probe().model_copy(update={"platform": "cuda"}))


def fill(store: Store, factors: dict[str, float], worst: float | None = None) -> None:
    """Invented records whose peaks are the predicted total times a factor; `worst` replaces it in one repeat."""
    for name, case in study.CASES.items():
        terms = study.predicted(case)
        for seed in study.repeats(name):
            peaks = {against: terms["total"] * factor for against, factor in factors.items()}
            if worst is not None and (name, seed) == ("lora_128", 0):
                peaks = dict.fromkeys(peaks, terms["total"] * worst)
            values = {term: terms[term] for term in study.MEASURED.values() if term in terms} | peaks
            measured = {f"{term}_bytes": int(value) for term, value in values.items()}
            measured |= {"process_rest_bytes": 1, "step_seconds": 1.0}
            spec = study.probe(name, seed)
            store.save(Record(key=spec.key, spec=spec, measurements=measured))


@pytest.mark.parametrize(
    ("tensors", "process", "worst", "outcomes"),
    [
        (1.01, 1.05, None, ("reproduced", "reproduced")),
        (1.01, 1.2, None, ("reproduced", "refuted")),
        (0.8, 1.05, None, ("refuted", "reproduced")),
        (1.01, 1.05, 1.3, ("undecided", "undecided")),
    ],
)
def test_memory_verdicts_follow_the_bytes(tmp_path, tensors, process, worst, outcomes):
    """Within the margin bears a claim out, every repeat beyond it refutes, repeats that disagree decide nothing."""
    store = Store(tmp_path)
    both = [get_study(name) for name in ("memory", "memory_process")]
    fill(store, {"tensor_peak": tensors, "process_peak": process}, worst)
    assert not get_study("memory").missing(store)
    found = [one.verdict(store) for one in both]
    assert tuple(one.outcome for one in found) == outcomes
    known = get_study("memory").quantities(store)
    assert all(name in known for one in found for name in one.quantities)
    assert known["qlora_7b_tensor_peak_error"].value == pytest.approx(100 * (1 / tensors - 1), abs=1e-3)
    assert known["held_out_tensor_peak_median_error"].value == pytest.approx(100 * abs(1 / tensors - 1), abs=1e-3)
    assert known["qlora_7b_kept_measured"].value == int(known["qlora_7b_kept_predicted"].value)


@pytest.mark.parametrize(
    ("factor", "noise", "outcome"),
    [(2.0, 0.01, "reproduced"), (0.9, 0.01, "refuted"), (1.0, 0.01, "refuted"), (1.05, 0.2, "undecided")],
)
def test_time_verdict_follows_the_times(tmp_path, factor, noise, outcome):
    """Slower by more than the margin bears the claim out; as fast or faster refutes it."""
    store, timed = Store(tmp_path), get_study("quantised_step_time")
    for spec in timed.runs(store):
        rng = np.random.default_rng(spec.seed)
        spread = noise * (spec.seed - 1)
        times = {
            f"{name}_seconds": (np.exp(0.01 * rng.normal(size=int(spec.settings["trials"]))) * value).tolist()
            for name, value in {"lora": 1.0, "qlora_single": factor, "qlora": factor * np.exp(spread)}.items()
        }
        medians = {name: float(np.median(values)) for name, values in times.items()}
        store.save(Record(key=spec.key, spec=spec, measurements=medians, per_example=times))
    found, known = timed.verdict(store), timed.quantities(store)
    assert found.outcome == outcome
    assert set(found.quantities) <= set(known)
    assert known["qlora_single_over_lora_135m_512"].value == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize(
    ("factor", "noise", "outcome"), [(0.7, 0.01, "reproduced"), (0.99, 0.01, "refuted"), (0.95, 0.05, "undecided")]
)
def test_the_verdict_on_a_frozen_a_follows_the_peaks(tmp_path, factor, noise, outcome):
    """Lower by more than the margin bears the claim out."""
    store, frozen = Store(tmp_path), get_study("lora_fa_memory")
    fill(store, {"tensor_peak": 1.0, "process_peak": 1.0})
    for seed in study.REPEATS:
        specification = study.probe("lora_fa_512", seed)
        record, reference = store.get(specification), store.get(study.probe("lora_512", seed))
        peak = int(reference.measurements["tensor_peak_bytes"] * factor * (1 + noise * (seed - 1)))
        (tmp_path / f"{record.short_key}.json").unlink()
        store.save(
            Record(key=record.key, spec=specification, measurements=record.measurements | {"tensor_peak_bytes": peak})
        )
    assert not frozen.missing(store)
    assert frozen.verdict(store).outcome == outcome
    assert frozen.quantities(store)["lora_fa_over_lora_peak"].value == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize(("share", "outcome"), [(0.4, "reproduced"), (0.6, "refuted")])
def test_the_verdict_at_7b_is_a_count_of_bytes(tmp_path, share, outcome):
    """Less than half of LoRA's tensors, in one process each."""
    store, large = Store(tmp_path), get_study("qlora_7b_memory")
    for name, factor in zip(study.LARGE_RIVALS, (share, 1.0), strict=True):
        specification = study.probe(name, 0)
        measured = {
            f"{term}_bytes": 10e9 * factor for term in (*study.MEASURED.values(), "tensor_peak", "process_rest")
        }
        store.save(Record(key=specification.key, spec=specification, measurements=measured | {"step_seconds": 1.0}))
    assert large.verdict(store).outcome == outcome
    assert large.quantities(store)["qlora_over_lora_peak"].value == pytest.approx(share)


def test_the_held_out_cases_are_those_that_were_committed():
    """Their names and settings were drawn before anything was measured; a change would be seen here."""
    found = "\n".join(f"{name} {one.text}" for name, one in sorted(study.HALVES["held-out"].items()))
    assert hashlib.sha256(found.encode()).hexdigest() == memory_cases.SPLIT_SHA256
    assert not study.HALVES["open"].keys() & study.HALVES["held-out"].keys()
    assert len(study.CASES) >= 40


def test_settings_of_every_case_reach_the_probe():
    """Each case's spec names its configuration; at a tiny shape it trains as many bytes as it predicts."""
    for name, case in study.CASES.items():
        assert Configuration.parse(study.probe(name, 0).word("configuration")) == case
        tuned = subject(TINY, case.setup, 0)
        full = case.setup.method == "full"
        decoder = tuned.model if full else tuned.model.get_base_model()
        assert decoder.is_activation_checkpointing == case.setup.checkpointing
        terms = study.predicted(Configuration(TINY, case.setup))
        assert probes.storage_bytes(tuned.trained) == terms["weights" if full else "adapter"]
        assert bool(probes.constants(tuned.model)) == bool(case.setup.quantised)


def counts(store: Store, off: float = 1.0, peak: float = 1.0) -> None:
    """Invented counts: as predicted, in one held-out configuration `off` times that, its peak `peak` times."""
    for part in activations.PARTS:
        for family in activations.SIZES:
            first = activations.probe(family, part)
            kept = [Configuration.parse(text).kept_by_module() for text in first.words("configurations")]
            wrong = (family, part) == ("gemma", "held-out")
            if wrong:
                kept[0] = {module: size * off for module, size in kept[0].items()}
            modules = sorted({module for one in kept for module in one})
            found = {module: [one.get(module, 0.0) for one in kept] for module in modules}
            store.save(Record(key=first.key, spec=first, measurements={}, per_example=found))
            second = activations.peak_probe(family, part)
            steps = [Configuration.parse(text).step for text in second.words("configurations")]
            peaks = [one.peak().total - sum(one.numbers(one.state).values()) for one in steps]
            peaks[0] *= peak if wrong else 1.0
            store.save(Record(key=second.key, spec=second, measurements={}, per_example={"peak_bytes": peaks}))


@pytest.mark.parametrize(
    ("off", "peak", "outcomes"),
    [
        (1.0, 1.0, ("reproduced", "reproduced")),
        (1.001, 1.08, ("undecided", "reproduced")),
        (1.02, 1.2, ("refuted", "refuted")),
    ],
)
def test_the_verdicts_on_what_is_kept_follow_the_counts(tmp_path, off, peak, outcomes):
    """One byte off decides nothing, one in a hundred refutes; a peak may be a tenth off."""
    store, both = Store(tmp_path), [get_study(name) for name in ("activations", "step_peaks")]
    counts(store, off, peak)
    found = [one.verdict(store) for one in both]
    assert tuple(one.outcome for one in found) == outcomes
    for one, verdict in zip(both, found, strict=True):
        assert not one.missing(store) and set(verdict.quantities) <= set(one.quantities(store))
    assert get_study("activations").quantities(store)["held_out_exact"].value == 105 - (off != 1.0)
