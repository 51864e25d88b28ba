"""Is what autograd keeps for backward computable from a model's settings? Bytes by module, in every architecture.

Shrunk shapes of seven decoders (Llama, SmolLM3, Mistral, Qwen2, Qwen3, Gemma, Gemma 3) × eight ways of training × with
and without checkpointing × fused and eager attention; rows, tokens, padding, dropout, ranks and dtypes are drawn for
each by name. `peftbook.memory` predicts the bytes of each module, and nothing of it is fitted.

One configuration of each pair that differs in attention alone is open, to be looked at while the model is written; the
other is held out: which one hangs on the names alone, and was committed before any of these configurations had been
measured. `SPLIT_SHA256` is the hash of the held-out names.

peaks: the most that torch's allocator hands out during a step, in the same configurations at four times the widths.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.evidence.comparison import keys_of
from peftbook.memory import Configuration, DecoderShape, Setup
from peftbook.memory.shapes import FAMILIES
from peftbook.studies import Quantity, Verdict, available, study
from peftbook.studies.memory import SCRATCH

MARGIN = 0.01  # of the measured bytes
MARGIN_PEAK = 0.10  # of the measured peak
WIDER = 4
SPLIT_SHA256 = "dd2128d908992ef38b42c39c6899e86e77e7a07c3f081e5af3e8eccb23157eed"
PARTS = ("open", "held-out")

# layers, width, width of the MLP, heads, key and value heads, vocabulary
SIZES = {
    "llama": (4, 96, 208, 6, 2, 160),
    "smollm3": (5, 64, 176, 4, 4, 144),
    "mistral": (5, 80, 224, 5, 1, 192),
    "qwen2": (6, 112, 240, 7, 1, 208),
    "qwen3": (4, 64, 160, 8, 2, 176),
    "gemma": (4, 72, 256, 3, 1, 224),
    "gemma3_text": (8, 80, 192, 4, 2, 240),
}
TRAITS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 32},
    "gemma3_text": {"head_dim": 24, "window": 20, "sliding": tuple((index + 1) % 6 > 0 for index in range(8))},
    "mistral": {"window": 36},
}
# way of training → what of the set-up is fixed, and dtypes to draw from
PLAIN = ({"dtype": "bf16"}, {"dtype": "fp32"}, {"dtype": "fp32", "autocast": True})
MIXED = (*PLAIN, {"dtype": "bf16", "adapter_dtype": "bf16"}, {"dtype": "bf16", "autocast": True})
PREPARED = ({"dtype": "fp32"}, {"dtype": "fp32", "autocast": True})  # prepare_model_for_kbit_training
WAYS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "full": ({"method": "full"}, PLAIN),
    "lora": ({"method": "lora"}, MIXED),
    "lora_qv": ({"method": "lora", "targets": ("q_proj", "v_proj")}, MIXED),
    "qlora": ({"method": "lora", "quantised": "nf4"}, ({"dtype": "bf16"}, {"dtype": "bf16", "adapter_dtype": "bf16"})),
    "qlora_prepared": ({"method": "lora", "quantised": "fp4", "double": False}, PREPARED),
    "prompt": ({"method": "prompt"}, PLAIN),
    "prefix": ({"method": "prefix"}, PLAIN),
    "ia3": ({"method": "ia3"}, (*PLAIN, *({"quantised": "nf4", **one} for one in PREPARED))),
}


def shape_of(family: str) -> DecoderShape:
    """The shrunk decoder of a family."""
    return DecoderShape(*SIZES[family], **(FAMILIES[family] | {"family": family} | TRAITS.get(family, {})))


def draw_grid() -> Iterator[tuple[str, str, Configuration]]:
    """(name, part, configuration) of the whole grid; what is drawn hangs on the name alone."""
    for family in SIZES:
        for way, (fixed, dtypes) in WAYS.items():
            for checkpointing in (False, True):
                order = random.Random(f"{family} {way} {checkpointing}").sample(PARTS, 2)
                for attention, part in zip(("sdpa", "eager"), order, strict=True):
                    name = f"{family}_{way}_{attention}{'_checkpointed' * checkpointing}"
                    draw = random.Random(name)
                    batch = draw.choice((1, 2, 3))
                    try:
                        setup = Setup(
                            **(fixed | draw.choice(dtypes)),
                            rank=draw.choice((1, 4, 7)),
                            length=draw.choice((3, 8)),
                            dropout=fixed["method"] == "lora" and draw.random() < 0.25,
                            batch=batch,
                            seq=draw.choice((17, 24, 40, 48)),
                            padding=batch > 1 and draw.random() < 0.5,
                            attention=attention,
                            checkpointing=checkpointing,
                            device="cpu",
                        )
                    except InputError:  # prefix tuning cannot be checkpointed
                        continue
                    yield name, part, Configuration(shape_of(family), setup)


GRID: dict[str, dict[str, Configuration]] = {part: {} for part in PARTS}
for _name, _part, _one in draw_grid():
    GRID[_part][_name] = _one


def texts(family: str, part: str, wider: int = 1, longer: int = 1, window: int = 1) -> tuple[str, ...]:
    """A family's configurations of one half, for a probe: widths and vocabulary, tokens, window so many times as large.

    In wide models tensors outweigh what kernels need.
    """
    chosen = [one for name, one in GRID[part].items() if name.startswith(f"{family}_")]
    found = []
    for shape, setup in ((one.shape, one.setup) for one in chosen):
        sizes = {name: wider * getattr(shape, name) for name in ("hidden", "ffn", "head_dim", "vocab")}
        larger = replace(shape, **sizes, window=shape.window and window * shape.window)
        found.append(Configuration(larger, replace(setup, seq=longer * setup.seq)).text)
    return tuple(found)


def probe(family: str, part: str) -> specs.Probe:
    """One process that counts what is kept in a family's configurations of one half."""
    return specs.Probe(measure="memory.activations", settings={"configurations": texts(family, part)}, model=SCRATCH)


def peak_probe(family: str, part: str) -> specs.Probe:
    """One process that measures the peaks of a family's configurations of one half, at four times the widths."""
    settings: dict = {"configurations": texts(family, part, WIDER, 2)}
    return specs.Probe(measure="memory.step_peaks", settings=settings, model=SCRATCH)


def half(make: Callable[[str, str], specs.Probe], part: str, store: Store) -> list[Record]:
    """The records of a half. Raises Missing."""
    return store.need_all(make(family, part) for family in SIZES)


def by_half(make: Callable[[str, str], specs.Probe], store: Store) -> dict[str, list[Record]]:
    """The records of each half. Raises Missing."""
    return {part: half(make, part, store) for part in PARTS}


def halves_at_hand(
    make: Callable[[str, str], specs.Probe], store: Store
) -> list[tuple[str, tuple[str, ...], list[Record]]]:
    """(name in quantities, keys, records) of each half whose records are all there."""
    halves = available(lambda part: (part, half(make, part, store)), PARTS)
    return [(part.replace("-", "_"), keys_of(records), records) for part, records in halves]


def configurations(record: Record) -> list[Configuration]:
    """What a record measured."""
    assert isinstance(record.spec, specs.Probe)
    return [Configuration.parse(text) for text in record.spec.words("configurations")]


def predicted_and_measured(record: Record) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """(predicted, measured) bytes by module of every configuration of a record."""
    for index, one in enumerate(configurations(record)):
        measured = {module: float(sizes[index]) for module, sizes in record.per_example.items()}
        yield one.kept_by_module(), {module: size for module, size in measured.items() if size}


def peaks(record: Record) -> Iterator[float]:
    """Predicted over measured bytes of a step's peak in every configuration, both beyond weights and optimiser."""
    measured = [float(size) for size in record.per_example["peak_bytes"]]
    for one, size in zip(configurations(record), measured, strict=True):
        yield (one.step.peak().total - sum(one.step.numbers(one.step.state).values())) / size


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each half: how many configurations, in how many every module's bytes are exact, the ratios of the sums."""
    out: dict[str, Quantity] = {}
    for name, keys, records in halves_at_hand(probe, store):
        pairs = [pair for record in records for pair in predicted_and_measured(record)]
        exact = sum(one == other for one, other in pairs)
        out[f"{name}_configurations"] = Quantity(len(pairs), "configurations", keys, digits=0)
        out[f"{name}_modules"] = Quantity(sum(len(other) for _, other in pairs), "modules", keys, digits=0)
        out[f"{name}_exact"] = Quantity(exact, "", keys, n=len(pairs), digits=0)
        out[f"{name}_ratio"] = Quantity.middle(
            [sum(one.values()) / sum(other.values()) for one, other in pairs], "×", keys, n=len(pairs), digits=4
        )
    return out


def peak_quantities(store: Store) -> Mapping[str, Quantity]:
    """For each half: the ratios of predicted and measured peaks."""
    out: dict[str, Quantity] = {}
    for name, keys, records in halves_at_hand(peak_probe, store):
        ratios = [ratio for record in records for ratio in peaks(record)]
        out[f"{name}_peak_ratio"] = Quantity.middle(ratios, "×", keys, n=len(ratios), digits=4)
    return out


@study("activations", lambda store: [probe(family, part) for part in PARTS for family in SIZES], quantities)
def verdict(store: Store) -> Verdict:
    """Are the bytes of every module exact in every held-out configuration?"""
    records = half(probe, "held-out", store)
    known, pairs = quantities(store), [pair for record in records for pair in predicted_and_measured(record)]
    off = sum(one != other for one, other in pairs)
    far = sum(abs(sum(one.values()) / sum(other.values()) - 1) > MARGIN for one, other in pairs)
    sentence = (
        f"In {len(pairs) - off} of {len(pairs)} held-out configurations, of {len(SIZES)} architectures, the bytes that "
        f"autograd keeps are the predicted ones in every module ({known['held_out_modules'].value:.0f} of them); "
        f"{far} sums are off by more than {MARGIN:.0%}."
    )
    outcome = "refuted" if far else "undecided" if off else "reproduced"
    return Verdict(outcome, sentence, ("held_out_exact", "held_out_ratio"))


@study("step_peaks", lambda store: [peak_probe(family, part) for part in PARTS for family in SIZES], peak_quantities)
def peak_verdict(store: Store) -> Verdict:
    """Is the predicted peak within the margin in every held-out configuration?"""
    found = [one for record in half(peak_probe, "held-out", store) for one in peaks(record)]
    far = sum(abs(one - 1) > MARGIN_PEAK for one in found)
    worst = max(found, key=lambda one: abs(one - 1))
    sentence = (
        f"In {len(found) - far} of {len(found)} held-out configurations the predicted peak of a step's tensors, beyond "
        f"weights and optimiser, is within {MARGIN_PEAK:.0%} of the measured one; the median is {median(found):.4f} "
        f"times that, the worst {worst:.3f}."
    )
    return Verdict("refuted" if far else "reproduced", sentence, ("held_out_peak_ratio",))
