"""Memory of a training step: counted bytes against independent counts, the formula's terms, and the verdicts."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from transformers import LlamaConfig, LlamaForCausalLM

from peftbook import specs
from peftbook.errors import InputError
from peftbook.records import Record, Store
from peftbook.studies import memory as study
from peftbook.studies.memory import ALL, LENGTH, RANK, Case, Shape
from peftbook.training.execute import peak_memory
from peftbook.training.probes import measure
from peftbook.training.probes import memory as probes

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TINY = Shape(layers=2, hidden=128, ffn=256, heads=4, kv_heads=2, vocab=512, tied=True)
TOKENS = 24
STEP = Case("tiny", "bf16", "lora", "fp32", TOKENS)
CASES = {
    "default": STEP,
    "bf16_adapters": replace(STEP, dtype="bf16"),
    "qv": replace(STEP, targets=("q_proj", "v_proj")),
    "qv_bf16_adapters": replace(STEP, targets=("q_proj", "v_proj"), dtype="bf16"),
    "frozen_a": replace(STEP, method="lora_fa"),
    "nf4": replace(STEP, base="nf4"),
    "nf4_double": replace(STEP, base="nf4_double"),
    "prompt": replace(STEP, method="prompt"),
    "prompt_nf4": replace(STEP, method="prompt", base="nf4"),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def tiny_probe(case: Case, shape: Shape = TINY, **settings) -> specs.Probe:
    """A case of the study at a tiny shape."""
    wanted = asdict(shape) | asdict(case) | {"rank": RANK, "length": LENGTH, "trials": 2} | settings
    del wanted["shape"]
    return specs.Probe(measure="memory.peak", settings=wanted, model=study.SCRATCH)


def counted(case: Case, shape: Shape = TINY) -> dict[str, int]:
    """Bytes counted in one training step."""
    subject = probes.prepare(tiny_probe(case, shape), shape, case.base)
    return probes.count_step(subject, probes.random_ids(shape, case.tokens, seed=0))


@pytest.mark.parametrize("shape", [*study.SHAPES.values(), TINY], ids=[*study.SHAPES, "tiny"])
def test_a_shape_has_the_parameters_of_transformers_llama(shape):
    """Every matrix of the decoder, and everything else, is counted."""
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.hidden,
                intermediate_size=shape.ffn,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                vocab_size=shape.vocab,
                tie_word_embeddings=shape.tied,
            )
        )
    linear = sum(part.weight.numel() for part in model.model.modules() if isinstance(part, torch.nn.Linear))
    assert shape.linear_parameters == linear
    assert shape.other_parameters == sum(value.numel() for value in model.parameters()) - linear


@every_case
def test_stored_bytes_are_values_times_their_size(case):
    """16 bits a weight or 4; a float32 scale for each block, or 8 bits and a scale for each 256; two moments."""
    found = counted(case)
    matrices = [d_in * d_out for d_in, d_out in TINY.linears.values()] * TINY.layers
    a, b = (TINY.layers * RANK * sum(TINY.linears[name][at] for name in case.targets) for at in (0, 1))
    trained = {"prompt": LENGTH * TINY.hidden, "lora": a + b, "lora_fa": b}[case.method]
    frozen = 4 * a if case.method == "lora_fa" else 0
    weights = sum(matrices) * (2 if case.base == "bf16" else 0.5) + 2 * TINY.other_parameters
    assert found["weights_bytes"] == weights + frozen
    levels, fine_levels, mean = 16 * 4, 256 * 4, 4  # the tables that codes are looked up in, a matrix
    blocks = [size // 64 for size in matrices]
    scales = {
        "bf16": [0 for _ in blocks],
        "nf4": [4 * count + levels for count in blocks],
        "nf4_double": [count + 4 * -(-count // 256) + levels + fine_levels + mean for count in blocks],
    }
    assert found["constants_bytes"] == sum(scales[case.base])
    size = {"fp32": 4, "bf16": 2}[case.dtype]
    assert found["adapter_bytes"] == found["gradients_bytes"] == size * trained
    assert found["moments_bytes"] == 2 * size * trained


@every_case
def test_predicted_terms_are_the_counted_ones(case):
    """The formula and the tensors agree byte by byte, look-up tables of the constants apart."""
    terms, found = study.predicted(TINY, case), counted(case)
    for name in ("weights", "adapter", "gradients", "moments"):
        assert found[f"{name}_bytes"] == terms[name]
    tables = 16 * 4 + 256 * 4 + 2 * 4  # of codes, a matrix, with its mean and the last scale of a short block
    rest = found["constants_bytes"] - terms["constants"]
    assert 0 <= rest <= len(TINY.linears) * TINY.layers * tables


@every_case
def test_a_layer_keeps_what_the_formula_says(case):
    """One more layer adds exactly the formula's values, and float32 scalars: one a head and two a norm, each token."""
    deeper = replace(TINY, layers=TINY.layers + 1)
    more = counted(case, deeper)["kept_bytes"] - counted(case)["kept_bytes"]
    tokens = case.tokens + (LENGTH if case.method == "prompt" else 0)
    assert more == tokens * (2 * study.activation_elements(TINY, case) + 4 * TINY.heads + 4 * 2)


def test_the_formula_is_the_books_table():
    """All linear layers: 8h + 2h_kv + 4f + 7r, and 18h + 2h_kv + 5f + 14r with float32 adapters; q, v; a prompt."""
    h, kv, f = TINY.hidden, TINY.kv_width, TINY.ffn
    wanted = {
        "bf16_adapters": 8 * h + 2 * kv + 4 * f + 7 * RANK,
        "default": 18 * h + 2 * kv + 5 * f + 14 * RANK,
        "qv_bf16_adapters": 7 * h + 2 * kv + 3 * f + 2 * RANK,
        "qv": 10 * h + 2 * kv + 3 * f + 4 * RANK,
        "frozen_a": 6 * h + 2 * kv + 3 * f + 14 * RANK,
        "prompt": 6 * h + 2 * kv + 3 * f,
    }
    assert {name: study.activation_elements(TINY, CASES[name]) for name in wanted} == wanted


@pytest.mark.parametrize("name", ["default", "bf16_adapters", "nf4_double", "prompt"])
def test_checkpointing_keeps_one_input_a_layer(name):
    """Far less is kept; what is left grows by 2h bytes a token and layer."""
    case = replace(CASES[name], checkpointing=True)
    deeper = replace(TINY, layers=TINY.layers + 1)
    found = counted(case)["kept_bytes"]
    tokens = case.tokens + (LENGTH if case.method == "prompt" else 0)
    assert found < 0.7 * counted(CASES[name])["kept_bytes"]
    assert counted(case, deeper)["kept_bytes"] - found == 2 * TINY.hidden * tokens


def test_what_one_layer_more_costs_is_what_a_layer_costs_at_any_depth():
    """Bytes are linear in depth, so that a slice of a model tells of the whole."""
    one, two, four = (counted(STEP, replace(TINY, layers=layers)) for layers in (1, 2, 4))
    assert all(four[name] - two[name] == 2 * (two[name] - one[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in CASES), ("default", True), ("nf4_double", True), ("prompt", True)],
)
def test_predicted_total_is_the_peak_of_the_tensors(name, checkpointing):
    """Where tensors are large beside the scalars of a layer, the largest sum of terms is torch's own peak."""
    shape = replace(TINY, vocab=8192, hidden=256, ffn=768)
    case = replace(CASES[name], tokens=64, checkpointing=checkpointing)
    found = measure(tiny_probe(case, shape, trials=1)).measurements
    assert found["tensor_peak_bytes"] == pytest.approx(study.predicted(shape, case)["total"], rel=0.02)
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
    """A block that was freed before the reset is no part of the peak after it."""
    block = bytearray(b"x") * 300_000_000
    high = peak_memory("cpu")
    del block
    was_reset = probes.reset_peak()
    assert (peak_memory("cpu") < high - 200_000_000) == was_reset


def test_a_quantised_model_is_what_qlora_trains():
    """The decoder's linear layers are bitsandbytes' under peft's 4-bit LoRA; all else is bfloat16."""
    subject = probes.prepare(tiny_probe(CASES["nf4_double"]), TINY, "nf4_double")
    adapted = [part for part in subject.model.modules() if isinstance(part, LoraLinear4bit)]
    assert len(adapted) == len(ALL) * TINY.layers
    for part in adapted:
        base = part.get_base_layer()
        assert base.weight.dtype == torch.uint8 and base.weight.quant_state.nested
        assert base.quant_state is base.weight.quant_state  # not a second copy
        assert not base.support_avx512bf16_for_cpu
    addresses = [part.get_base_layer().weight.data_ptr() for part in adapted]
    assert len(set(addresses)) == len(addresses)
    rest = {n: v.dtype for n, v in subject.model.named_parameters() if "lora" not in n and v.dtype != torch.uint8}
    assert set(rest.values()) == {torch.bfloat16}
    assert len(rest) == 2 * TINY.layers + 2  # gains of the norms, and embedding and head in one


def test_a_step_learns():
    """A step that is measured is a real one: trained on one row, the loss falls, over either base."""
    ids = probes.random_ids(TINY, TOKENS, seed=0)
    for name in ("default", "nf4_double"):
        subject = probes.prepare(tiny_probe(CASES[name]), TINY, CASES[name].base)
        for group in subject.optimizer.param_groups:
            group["lr"] = 1e-2
        first = subject.loss(ids).item()
        for _ in range(20):
            subject.step(ids)
        assert subject.loss(ids).item() < first - 0.1


def test_every_contender_is_timed_in_every_trial():
    """One time for each base and trial; the medians are theirs."""
    settings = asdict(TINY) | {"tokens": 8, "trials": 3, "rank": 4, "dtype": "fp32", "targets": ALL}
    found = measure(specs.Probe(measure="memory.step_time", settings=settings, model=study.SCRATCH))
    for name in study.CONTENDERS:
        values = found.per_example[f"{name}_seconds"]
        assert len(values) == 3 and min(values) > 0
        assert found.measurements[f"{name}_seconds"] == sorted(values)[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"base": "int3"}, "base is 'int3'"),
        ({"method": "full"}, "method is 'full'"),
        ({"dtype": "fp8"}, "dtype is 'fp8'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"heads": 3}, "heads = 3"),
        ({"kv_heads": 3}, "kv_heads = 3"),
        ({"targets": ("q_proj", "w_proj")}, "w_proj"),
        ({"ffn": 10**12}, "give a smaller shape"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    """The message names the value and the fix."""
    with pytest.raises(InputError, match=message):
        measure(tiny_probe(STEP, **wrong))


def test_only_a_cpu_is_measured():
    with pytest.raises(InputError, match="use platform 'cpu'"):
        measure(tiny_probe(STEP).model_copy(update={"platform": "cuda"}))


def test_terms_follow_the_tokens_and_the_base():
    """Text enters activations and logits alone, in proportion; 4 bits shrink the weights and leave the text's share."""
    for shape in study.SHAPES.values():
        short, long = (study.predicted(shape, replace(STEP, tokens=tokens)) for tokens in (128, 256))
        for name, value in short.items():
            if name in ("activations", "logits", "kept"):
                assert long[name] == 2 * value
            elif name != "total":
                assert long[name] == value
        quantised = study.predicted(shape, replace(STEP, tokens=128, base="nf4_double"))
        assert quantised["activations"] == short["activations"]
        bits = 8 * (quantised["weights"] + quantised["constants"] - 2 * shape.other_parameters)
        assert bits / shape.linear_parameters == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))
        assert quantised["total"] < short["total"]


def test_gradients_count_where_they_outgrow_the_text():
    """With no text to speak of, the peak is the state and the gradients."""
    shape = replace(study.SHAPES["7b"], vocab=1)
    terms = study.predicted(shape, replace(STEP, tokens=1))
    state = sum(terms[name] for name in ("weights", "constants", "adapter", "moments"))
    assert terms["total"] == state + terms["gradients"]


def fill(store: Store, factors: dict[str, float], worst: float | None = None) -> None:
    """Invented records whose peaks are the predicted total times a factor; `worst` replaces it in one repeat."""
    for name, case in study.CASES.items():
        terms = study.predicted(study.SHAPES[case.shape], case)
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
    both = [study.STUDIES[name] for name in ("memory", "memory_process")]
    assert [one.verdict(store).outcome for one in both] == ["not yet run"] * 2
    assert study.STUDY.quantities(store) == {}
    fill(store, {"tensor_peak": tensors, "process_peak": process}, worst)
    assert not study.STUDY.missing(store)
    found = [one.verdict(store) for one in both]
    assert tuple(one.outcome for one in found) == outcomes
    known = study.STUDY.quantities(store)
    assert all(name in known for one in found for name in one.quantities)
    assert known["qlora_7b_tensor_peak_error"].value == pytest.approx(100 * (1 / tensors - 1), abs=1e-3)
    assert known["qlora_7b_kept_measured"].value == int(known["qlora_7b_kept_predicted"].value)


@pytest.mark.parametrize(
    ("factor", "noise", "outcome"),
    [(2.0, 0.01, "reproduced"), (0.9, 0.01, "refuted"), (1.0, 0.01, "refuted"), (1.05, 0.2, "undecided")],
)
def test_time_verdict_follows_the_times(tmp_path, factor, noise, outcome):
    """Slower by more than the margin bears the claim out; as fast or faster refutes it."""
    store, timed = Store(tmp_path), study.STUDIES["quantised_step_time"]
    assert timed.verdict(store).outcome == "not yet run"
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
    store, frozen = Store(tmp_path), study.STUDIES["lora_fa_memory"]
    assert frozen.verdict(store).outcome == "not yet run" and not frozen.quantities(store)
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


def test_settings_of_every_case_reach_the_probe():
    """At a tiny shape each case's spec trains the adapter that the case names, of the bytes that it predicts."""
    for name, case in study.CASES.items():
        spec = study.probe(name, 0)
        assert probes.shape_of(spec) == study.SHAPES[case.shape]
        small = spec.model_copy(update={"settings": spec.settings | asdict(TINY)})
        subject = probes.prepare(small, TINY, spec.word("base"))
        assert subject.model.get_base_model().is_activation_checkpointing == case.checkpointing
        assert probes.storage_bytes(subject.trained) == study.predicted(TINY, case)["adapter"]
        assert bool(probes.constants(subject.model)) == (case.base != "bf16")
