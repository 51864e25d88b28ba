"""Does the byte model hold? Predicted and measured bytes of a training step, and what 4 bits cost in time.

Written before the recorded runs, after trial steps at the small shape. Those showed the peak of torch's tensors within
1 % of the prediction and the peak of the process, at 128 tokens, about 10 % above it; so they are two claims here.
Models with random weights in two shapes: SmolLM2-135M's and, at 128 tokens, that of Llama-2-7B at its full depth. One
row, bfloat16 without autocast, fused attention, AdamW; adapters on all linear layers in the dtype that a case names.

tensors: the predicted total against the most that torch's allocator held for tensors.  process: against the peak
memory of the process beyond what it held before the model was built; what libraries take, and blocks that the system's
allocator keeps, count as the model's error. This is a first slice on a CPU: one batch size, no padding, short texts.

LoRA-FA: the peak of tensors with A frozen against LoRA's, at 512 tokens.

Time: LoRA on a bfloat16 base and QLoRA in one process, step by step in random order; three processes. Layers of the
7B's shape decide, since that is where QLoRA is used; the small shape is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from peftbook import metrics, specs
from peftbook.records import Record, Store
from peftbook.specs import Model
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.merging import MACHINE, log_ratio, ratio_quantity, said_ratio, times

__all__ = [
    "CASES",
    "SHAPES",
    "STUDIES",
    "Case",
    "Shape",
    "activation_elements",
    "base_bytes",
    "predicted",
    "probe",
    "time_probe",
]

ALL = specs.LoRA().targets
BLOCK, OUTER_BLOCK = 64, 256  # weights that share a constant, constants that share one of theirs
LOGIT_COPIES = 3  # float32, at the start of backward: log-probabilities, their gradient, the gradient of the logits
BYTES = {"bf16": 2, "fp32": 4}
RANK, LENGTH = 16, 20
MARGIN = 0.10  # of the measured peak
MARGIN_TIME = 0.05  # a share of the time of a step
MARGIN_FROZEN = 0.05  # a share of the peak
REPEATS = (0, 1, 2)

# The model is made from the settings and the seed: no weights are loaded.
SCRATCH = Model(name="random-llama", revision="made from settings and seed")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama. tied: one matrix is both embedding and head."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    @property
    def kv_width(self) -> int:
        """Width of the keys and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's seven matrices."""
        h, kv, f = self.hidden, self.kv_width, self.ffn
        return {
            "q_proj": (h, h), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (h, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip

    @property
    def linear_parameters(self) -> int:
        """Weights of all decoder matrices."""
        return self.layers * sum(d_in * d_out for d_in, d_out in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Embedding, head and the gains of the norms."""
        return (1 if self.tied else 2) * self.vocab * self.hidden + (2 * self.layers + 1) * self.hidden


@dataclass(frozen=True)
class Case:
    """One training step: what is adapted how, over which base, at how many tokens.

    base: how the decoder matrices are stored, bf16, nf4 (one float32 constant a block) or nf4_double (constants in
    8 bits); everything else is bfloat16.  method: lora, lora_fa (A is frozen) or prompt.  dtype: of adapter, gradients
    and moments; float32 for lora_fa.
    """

    shape: str
    base: str
    method: str
    dtype: str
    tokens: int
    checkpointing: bool = False
    targets: tuple[str, ...] = ALL


SHAPES = {
    "135m": Shape(layers=30, hidden=576, ffn=1536, heads=9, kv_heads=3, vocab=49152, tied=True),
    "7b": Shape(layers=32, hidden=4096, ffn=11008, heads=32, kv_heads=32, vocab=32000, tied=False),
}
BASE_CASES = {
    "lora": Case("135m", "bf16", "lora", "fp32", 128),  # peft's default: adapters in float32
    "lora_bf16": Case("135m", "bf16", "lora", "bf16", 128),
    "lora_fa": Case("135m", "bf16", "lora_fa", "fp32", 128),
    "lora_qv": Case("135m", "bf16", "lora", "fp32", 128, targets=("q_proj", "v_proj")),
    "qlora_single": Case("135m", "nf4", "lora", "fp32", 128),
    "qlora": Case("135m", "nf4_double", "lora", "fp32", 128),
    "prompt": Case("135m", "bf16", "prompt", "fp32", 128),
}
SMALL_CASES = {
    **{f"{name}_{tokens}": replace(case, tokens=tokens) for tokens in (128, 512) for name, case in BASE_CASES.items()},
    **{
        f"{name}_512_checkpointed": replace(BASE_CASES[name], tokens=512, checkpointing=True)
        for name in ("lora", "qlora", "prompt")
    },
    **{f"lora_{tokens}": replace(BASE_CASES["lora"], tokens=tokens) for tokens in (1024, 2048)},
}
LARGE_CASES = {
    "qlora_7b": Case("7b", "nf4_double", "lora", "fp32", 128),
    "qlora_single_7b": Case("7b", "nf4", "lora", "fp32", 128),
    "qlora_7b_checkpointed": Case("7b", "nf4_double", "lora", "fp32", 128, checkpointing=True),
    "prompt_7b": Case("7b", "nf4_double", "prompt", "fp32", 128),
    "lora_7b": Case("7b", "bf16", "lora", "fp32", 128),
}
CASES = {**SMALL_CASES, **LARGE_CASES}

# name → shape, tokens, trials of a process; the first decides
TIMED = {
    "7b_layers": (replace(SHAPES["7b"], layers=4), 128, 8),
    "135m_128": (SHAPES["135m"], 128, 8),
    "135m_512": (SHAPES["135m"], 512, 4),
}
CONTENDERS = ("lora", "qlora_single", "qlora")


def activation_elements(shape: Shape, case: Case) -> int:
    """Values of 2 bytes that a decoder layer keeps for backward, for each token.

    6h + 2h_kv + 3f wherever a gradient passes through: both norms keep their input in float32 (4h), attention its
    queries, keys, values and output, the MLP the gate before and after SiLU and the up projection. LoRA also keeps the
    input of every adapted matrix, and A x: in the base's dtype two matrices with one input share it, and that of
    o_proj is kept already; with float32 adapters in a bfloat16 model every matrix has a float32 copy of its own.
    All seven: 8h + 2h_kv + 4f + 7r and 18h + 2h_kv + 5f + 14r. With A frozen (LoRA-FA) only A x is kept, in float32.
    Counted for transformers' Llama with fused attention.
    """
    h, f = shape.hidden, shape.ffn
    base = 6 * h + 2 * shape.kv_width + 3 * f
    if case.method == "prompt":
        return base
    if case.method == "lora_fa":
        return base + 2 * RANK * len(case.targets)
    if case.dtype == "fp32":
        return base + sum(2 * shape.linears[name][0] + 2 * RANK for name in case.targets)
    inputs = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "mlp", "up_proj": "mlp"}
    shared = {inputs[name] for name in case.targets if name in inputs}
    return base + len(shared) * h + ("down_proj" in case.targets) * f + len(case.targets) * RANK


def base_bytes(shape: Shape, base: str) -> tuple[float, float]:
    """Bytes of a frozen model's weights and of the constants of its quantisation.

    2 bytes a weight, in 4 bits ½ byte; constants of 32 bits for each block of 64 weights, or with double quantisation
    of 8 bits and one of 32 for each 256 of them. Source: Dettmers et al. 2023, arXiv:2305.14314, section 3.
    """
    linear, other = shape.linear_parameters, shape.other_parameters
    constant = {"bf16": 0.0, "nf4": 4.0, "nf4_double": 1.0 + 4.0 / OUTER_BLOCK}[base]
    return (2.0 if base == "bf16" else 0.5) * linear + 2.0 * other, constant * linear / BLOCK


def predicted(shape: Shape, case: Case) -> dict[str, float]:
    """The terms of a step's memory in bytes, and the largest sum of those that are there at once.

    weights: `base_bytes`, and A where it is frozen.  constants: `base_bytes`.  adapter, gradients, moments (two of
    Adam): of what is trained, in the adapter's dtype.
    activations: `activation_elements` in all layers, or with checkpointing each layer's input.  logits: three float32
    copies.  working: what backward needs for a moment in one layer, a 4-bit base's largest matrix in bfloat16 and with
    checkpointing the layer's activations.
    kept: what is kept between forward and backward, activations and one copy of the logits.
    total: weights + constants + adapter + moments + max(activations + max(logits, working), gradients).
    A soft prompt lengthens the text.
    """
    tokens = case.tokens + (LENGTH if case.method == "prompt" else 0)
    quantised = case.base != "bf16"
    weights, constants = base_bytes(shape, case.base)
    inputs, outputs = (shape.layers * RANK * sum(shape.linears[name][at] for name in case.targets) for at in (0, 1))
    trained = {"prompt": LENGTH * shape.hidden, "lora": inputs + outputs, "lora_fa": outputs}[case.method]
    if case.method == "lora_fa":
        weights += BYTES[case.dtype] * inputs
    layer = 2.0 * tokens * activation_elements(shape, case)
    largest = max(d_in * d_out for d_in, d_out in shape.linears.values())
    logit_copy = 4.0 * shape.vocab * tokens
    terms = {
        "weights": weights,
        "constants": constants,
        "adapter": float(BYTES[case.dtype] * trained),
        "gradients": float(BYTES[case.dtype] * trained),
        "moments": 2.0 * BYTES[case.dtype] * trained,
        "activations": shape.layers * (2.0 * tokens * shape.hidden if case.checkpointing else layer),
        "logits": LOGIT_COPIES * logit_copy,
        "working": 2.0 * largest * quantised + layer * case.checkpointing,
    }
    state = sum(terms[name] for name in ("weights", "constants", "adapter", "moments"))
    moment = terms["activations"] + max(terms["logits"], terms["working"])
    terms["kept"] = terms["activations"] + logit_copy
    terms["total"] = state + max(moment, terms["gradients"])
    return terms


def probe(name: str, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that measures one case."""
    case = CASES[name]
    settings = asdict(SHAPES[case.shape]) | asdict(case) | {"rank": RANK, "length": LENGTH, "trials": 2}
    del settings["shape"]
    return specs.Probe(
        measure="memory.peak", settings=settings, model=SCRATCH, seed=seed, purpose="timing", machine=machine
    )


def repeats(name: str) -> tuple[int, ...]:
    """Seeds of a case: three at the small shape; one at the large, where the process adds little to the tensors."""
    return REPEATS if CASES[name].shape == "135m" else REPEATS[:1]


def runs(store: Store) -> list[specs.Probe]:
    """Every case once, the large ones first; then the repeats in turn."""
    order = [*LARGE_CASES, *SMALL_CASES]
    return [probe(name, seed) for seed in REPEATS for name in order if seed in repeats(name)]


def records(name: str, store: Store) -> list[Record]:
    """The repeats of a case; empty unless all are there."""
    found = [record for seed in repeats(name) if (record := store.get(probe(name, seed))) is not None]
    return found if len(found) == len(repeats(name)) else []


def measured(record: Record, term: str) -> float:
    """Bytes of a term in a record."""
    return float(record.measurements[f"{term}_bytes"] or 0)


def errors(name: str, found: list[Record], against: str) -> list[float]:
    """Predicted total over measured − 1 of every repeat. against: process_peak or tensor_peak."""
    total = predicted(SHAPES[CASES[name].shape], CASES[name])["total"]
    return [total / measured(record, against) - 1 for record in found]


# predicted term → what is measured of it
MEASURED = {
    **{name: name for name in ("weights", "constants", "adapter", "gradients", "moments", "kept")},
    "total": "process_peak",
}


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Every predicted and every measured term of each case, the errors of the total, and the seconds of a step."""
    out: dict[str, Quantity] = {}
    for name, case in CASES.items():
        if not (found := records(name, store)):
            continue
        keys = tuple(record.key for record in found)
        for term, value in predicted(SHAPES[case.shape], case).items():
            out[f"{name}_{term}_predicted"] = Quantity(value, "bytes", keys, note="computed from the shape")
        for term in (*MEASURED.values(), "tensor_peak", "process_rest"):
            values = sorted(measured(record, term) for record in found)
            out[f"{name}_{term}_measured"] = Quantity(values[len(values) // 2], "bytes", keys, seeds=len(values))
        for against in ("process_peak", "tensor_peak"):
            values = sorted(100 * one for one in errors(name, found, against))
            out[f"{name}_{against}_error"] = spread(values, "%", keys, 1)
        out[f"{name}_step_seconds"] = spread(
            sorted(float(record.measurements["step_seconds"] or 0) for record in found), "s", keys, 2
        )
    return out


def spread(values: list[float], unit: str, keys: tuple[str, ...], digits: int) -> Quantity:
    """Median and range of sorted repeats; no range where there is one."""
    low, high = (values[0], values[-1]) if len(values) > 1 else (None, None)
    note = "median and range of the repeats" if len(values) > 1 else "one run"
    return Quantity(values[len(values) // 2], unit, keys, low, high, len(values), digits=digits, note=note)


def decide(store: Store, against: str, what: str) -> Verdict:
    """Is the predicted total within the margin of a measured peak in every case?"""
    known = {name: found for name in CASES if (found := records(name, store))}
    if len(known) < len(CASES):
        return Verdict("not yet run", f"{len(CASES) - len(known)} of {len(CASES)} memory cases are not there yet.")
    beyond = {name: [abs(one) > MARGIN for one in errors(name, found, against)] for name, found in known.items()}
    broken = sum(all(repeats) for repeats in beyond.values())
    outcome = "refuted" if broken else "undecided" if any(map(any, beyond.values())) else "reproduced"
    worst = worst_case(known, against)
    share = max(errors(worst, known[worst], against), key=abs)
    sentence = (
        f"The predicted total misses the peak of {what} by more than {MARGIN:.0%} in {broken} of {len(CASES)} cases; "
        f"the largest error is {100 * share:+.1f} % ({worst})."
    )
    return Verdict(outcome, sentence, (f"{worst}_{against}_error",))


def verdict(store: Store) -> Verdict:
    """The claim about tensors."""
    return decide(store, "tensor_peak", "torch's tensors")


def process_verdict(store: Store) -> Verdict:
    """The claim about the process."""
    return decide(store, "process_peak", "the process")


def frozen_saving(store: Store) -> metrics.Interval | None:
    """log(peak of LoRA-FA's tensors / that of LoRA's) at 512 tokens, paired by repeat; None if a record is missing."""
    one, two = records("lora_fa_512", store), records("lora_512", store)
    if not one or not two:
        return None
    return metrics.mean_interval(
        [[math.log(measured(a, "tensor_peak") / measured(b, "tensor_peak"))] for a, b in zip(one, two, strict=True)]
    )


def frozen_runs(store: Store) -> list[specs.Probe]:
    """The two cases, repeat by repeat."""
    return [probe(name, seed) for seed in REPEATS for name in ("lora_fa_512", "lora_512")]


def frozen_quantities(store: Store) -> Mapping[str, Quantity]:
    """The ratio of the peaks, and what both keep between forward and backward."""
    if (found := frozen_saving(store)) is None:
        return {}
    names = ("lora_fa_512", "lora_512")
    keys = tuple(record.key for name in names for record in records(name, store))
    value, low, high = (math.exp(one) for one in (found.mean, found.low, found.high))
    out = {"lora_fa_over_lora_peak": Quantity(value, "×", keys, low, high, len(REPEATS), digits=3)}
    known = quantities(store)
    return out | {
        f"{name}_{term}": known[f"{name}_{term}_measured"] for name in names for term in ("kept", "tensor_peak")
    }


def frozen_verdict(store: Store) -> Verdict:
    """Is the peak of LoRA-FA lower than LoRA's by more than the margin?"""
    if (found := frozen_saving(store)) is None:
        return Verdict("not yet run", "The memory cases of LoRA and LoRA-FA at 512 tokens are not all there.")
    outcome = metrics.judge(found, 0.0, (-math.inf, math.log(1 - MARGIN_FROZEN)))
    sentence = (
        f"At SmolLM2-135M's shape and 512 tokens {said_ratio('the tensors of LoRA-FA take', found)} the memory of "
        f"LoRA's at the peak; margin {MARGIN_FROZEN:.0%}."
    )
    return Verdict(outcome, sentence, ("lora_fa_over_lora_peak",))


def worst_case(known: Mapping[str, list[Record]], against: str) -> str:
    """The case with the largest error."""
    return max(known, key=lambda name: max(map(abs, errors(name, known[name], against))))


def time_probe(name: str, seed: int, machine: str = MACHINE) -> specs.Probe:
    """One process that times LoRA and QLoRA at one shape."""
    shape, tokens, trials = TIMED[name]
    settings = asdict(shape) | {"tokens": tokens, "trials": trials, "rank": RANK, "dtype": "fp32", "targets": ALL}
    return specs.Probe(
        measure="memory.step_time", settings=settings, model=SCRATCH, seed=seed, purpose="timing", machine=machine
    )


def time_runs(store: Store) -> list[specs.Probe]:
    """The deciding shape first; the processes of a shape after each other."""
    return [time_probe(name, seed) for name in TIMED for seed in REPEATS]


def time_records(name: str, store: Store) -> list[Record]:
    """The processes of a shape; empty unless all are there."""
    found = [record for seed in REPEATS if (record := store.get(time_probe(name, seed))) is not None]
    return found if len(found) == len(REPEATS) else []


def slowdown(found: list[Record], first: str, second: str = "lora") -> metrics.Interval:
    """log(seconds of first / seconds of second)."""
    return log_ratio(times(found, first), times(found, second))


def time_quantities(store: Store) -> Mapping[str, Quantity]:
    """Median seconds of a step for every contender and shape, and QLoRA's time over LoRA's."""
    out: dict[str, Quantity] = {}
    for name, (_, _, trials) in TIMED.items():
        if not (found := time_records(name, store)):
            continue
        keys = tuple(record.key for record in found)
        for one in CONTENDERS:
            values = sorted(float(record.measurements[f"{one}_seconds"] or 0) for record in found)
            note = "median and range of the processes' medians"
            out[f"{one}_{name}_seconds"] = Quantity(
                values[len(values) // 2], "s", keys, values[0], values[-1], len(values), trials, 2, note
            )
        for one in CONTENDERS[1:]:
            out[f"{one}_over_lora_{name}"] = ratio_quantity(slowdown(found, one), keys)
    return out


def time_verdict(store: Store) -> Verdict:
    """Is QLoRA's step slower than LoRA's by more than the margin in layers of the 7B's shape?"""
    name = next(iter(TIMED))
    if not (found := time_records(name, store)):
        return Verdict("not yet run", "The timing probes in layers of Llama-2-7B's shape are not all there.")
    interval = slowdown(found, "qlora")
    least = math.log(1 + MARGIN_TIME)
    outcome = "reproduced" if interval.low >= least else "refuted" if interval.high < least else "undecided"
    shape, tokens, _ = TIMED[name]
    sentence = (
        f"In {shape.layers} layers of Llama-2-7B's shape at {tokens} tokens "
        f"{said_ratio('a step of QLoRA takes', interval)} that of LoRA on a bfloat16 base; margin {MARGIN_TIME:.0%}."
    )
    return Verdict(outcome, sentence, (f"qlora_over_lora_{name}",))


LIMITS = (
    f"One CPU ({MACHINE}), one row at a time, random weights, texts of 128 to 2,048 tokens (128 at 7B), fused "
    "attention without a padding mask, bfloat16 without autocast. A GPU has other kernels and another allocator."
)

STUDY = Study(
    name="memory",
    title="Does the byte model hold?",
    claim="The peak of the tensors of a training step follows from the model's shape, the method and the number of "
    f"tokens, to within {MARGIN:.0%}.",
    source="dettmers2023, section 2, on memory",
    refuted_if=f"in some case every repeat's peak of torch's tensors is more than {MARGIN:.0%} away from the "
    "predicted total.",
    does_not_show=LIMITS,
    chapter="book/qlora",
    runs=runs,
    quantities=quantities,
    verdict=verdict,
)

PROCESS_STUDY = replace(
    STUDY,
    name="memory_process",
    title="Does the byte model tell what a process needs?",
    claim="The predicted bytes of a training step's tensors are the memory that the process needs beyond its start, to "
    f"within {MARGIN:.0%}.",
    refuted_if=f"in some case every repeat's peak memory of the process is more than {MARGIN:.0%} away from the "
    "predicted total.",
    verdict=process_verdict,
)

TIME_STUDY = Study(
    name="quantised_step_time",
    title="Is a step over a 4-bit base slower?",
    claim="A QLoRA step takes longer than a LoRA step over the same weights in bfloat16.",
    source="dettmers2023, section 1, which compares with full fine-tuning",
    refuted_if=f"in layers of Llama-2-7B's shape QLoRA's step takes less than {1 + MARGIN_TIME:g} times LoRA's (the "
    "whole 95 % interval).",
    does_not_show=f"One CPU ({MACHINE}), where bitsandbytes dequantises a whole matrix before it multiplies; a GPU has "
    "fused kernels. The paper compares QLoRA's time with that of full fine-tuning in 16 bits, not of LoRA.",
    chapter="book/qlora",
    runs=time_runs,
    quantities=time_quantities,
    verdict=time_verdict,
)

FROZEN_STUDY = Study(
    name="lora_fa_memory",
    title="Does freezing A save memory?",
    claim="LoRA-FA needs less memory than LoRA, because a frozen A needs no input kept for its gradient.",
    source="zhang2023fa, abstract",
    refuted_if=f"the peak of torch's tensors is less than {MARGIN_FROZEN:.0%} below LoRA's (the whole 95 % interval).",
    does_not_show=f"{LIMITS} One shape and one length; float32 adapters, whose inputs are copies of their own. The "
    "paper's factor is for whole trainings on a GPU.",
    chapter="book/lora",
    runs=frozen_runs,
    quantities=frozen_quantities,
    verdict=frozen_verdict,
)

STUDIES = {one.name: one for one in (STUDY, PROCESS_STUDY, FROZEN_STUDY, TIME_STUDY)}
