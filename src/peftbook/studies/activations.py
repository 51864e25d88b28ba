"""Is what autograd keeps for backward computable from a model's settings? Bytes by module, in every architecture.

Shrunk shapes of seven decoders (Llama, SmolLM3, Mistral, Qwen2, Qwen3, Gemma, Gemma 3) × eight ways of training × with
and without checkpointing × fused and eager attention; rows, tokens, padding, dropout, ranks and dtypes are drawn for
each by name. `peftbook.memory` predicts the bytes of each module, and nothing of it is fitted.

One configuration of each pair that differs in attention alone is open, to be looked at while the model is written; the
other is held out. `SPLIT_SHA256` fixed the held-out half before any of these configurations had been measured.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from peftbook import specs
from peftbook.errors import InputError
from peftbook.memory import Configuration, Setup, Shape
from peftbook.memory.shapes import FAMILIES
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.memory import SCRATCH

__all__ = ["GRID", "PARTS", "SPLIT_SHA256", "STUDIES", "predicted", "probe", "split_sha256"]

MARGIN = 0.01  # of the measured bytes
SPLIT_SHA256 = "6312ae447c511679cb1c1b9e50435a084780d9ffffd1f9d3a5ea40f790cc97df"
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


def shape_of(family: str) -> Shape:
    """The shrunk decoder of a family."""
    return Shape(*SIZES[family], **(FAMILIES[family] | {"family": family} | TRAITS.get(family, {})))


def drawn() -> Iterator[tuple[str, str, Configuration]]:
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
for _name, _part, _one in drawn():
    GRID[_part][_name] = _one


def split_sha256() -> str:
    """Hash of the held-out half."""
    texts = [f"{name} {one.text}" for name, one in sorted(GRID["held-out"].items())]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def probe(family: str, part: str) -> specs.Probe:
    """One process that counts a family's configurations of one half."""
    texts = tuple(one.text for name, one in GRID[part].items() if name.startswith(f"{family}_"))
    return specs.Probe(measure="memory.activations", settings={"configurations": texts}, model=SCRATCH)


def runs(store: Store) -> list[specs.Probe]:
    """The open half first."""
    return [probe(family, part) for part in PARTS for family in SIZES]


def predicted(one: Configuration) -> dict[str, float]:
    """Module → bytes, with all layers that it stands for."""
    return {module: size for module, size in one.kept_by_module().items() if size}


def compared(record: Record) -> list[tuple[dict[str, float], dict[str, float]]]:
    """(predicted, measured) bytes by module of every configuration of a record."""
    spec = record.spec
    assert isinstance(spec, specs.Probe)
    found = []
    for index, text in enumerate(spec.words("configurations")):
        measured = {module: float(sizes[index]) for module, sizes in record.per_example.items()}
        found.append((predicted(Configuration.parse(text)), {name: size for name, size in measured.items() if size}))
    return found


def halves(store: Store) -> dict[str, list[tuple[dict[str, float], dict[str, float]]]]:
    """The comparisons of each half; empty unless all its records are there."""
    out = {}
    for part in PARTS:
        records = [store.get(probe(family, part)) for family in SIZES]
        out[part] = [pair for record in records if record is not None for pair in compared(record)]
        if None in records:
            out[part] = []
    return out


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each half: how many configurations, in how many every module's bytes are exact, the ratios of the sums."""
    out: dict[str, Quantity] = {}
    for part, pairs in halves(store).items():
        if not pairs:
            continue
        keys = tuple(record.key for family in SIZES if (record := store.get(probe(family, part))) is not None)
        name = part.replace("-", "_")
        ratios = [sum(one.values()) / sum(other.values()) for one, other in pairs]
        exact = sum(one == other for one, other in pairs)
        modules = sum(len(other) for _, other in pairs)
        out[f"{name}_configurations"] = Quantity(len(pairs), "configurations", keys, digits=0)
        out[f"{name}_modules"] = Quantity(modules, "modules", keys, digits=0)
        out[f"{name}_exact"] = Quantity(exact, "configurations", keys, n=len(pairs), digits=0)
        out[f"{name}_ratio"] = Quantity(
            median(ratios), "×", keys, min(ratios), max(ratios), n=len(pairs), digits=4, note="median and range"
        )
    return out


def verdict(store: Store) -> Verdict:
    """Are the bytes of every module exact in every held-out configuration?"""
    pairs = halves(store)["held-out"]
    if not pairs:
        return Verdict("not yet run", "The held-out configurations are not all counted yet.")
    known = quantities(store)
    off = [one != other for one, other in pairs]
    far = [abs(sum(one.values()) / sum(other.values()) - 1) > MARGIN for one, other in pairs]
    outcome = "refuted" if any(far) else "undecided" if any(off) else "reproduced"
    sentence = (
        f"In {len(pairs) - sum(off)} of {len(pairs)} held-out configurations, of {len(SIZES)} architectures, the bytes "
        f"that autograd keeps are the predicted ones in every one of {known['held_out_modules'].value:.0f} modules; "
        f"{sum(far)} sums are off by more than {MARGIN:.0%}."
    )
    return Verdict(outcome, sentence, ("held_out_exact", "held_out_ratio"))


STUDY = Study(
    name="activations",
    title="Can the memory of activations be computed?",
    claim="What autograd keeps for backward follows from the model's settings and the method, byte for byte.",
    source="korthikanti2022, section 4, which counts a transformer's activations by hand",
    refuted_if=f"in a held-out configuration the predicted sum is off by more than {MARGIN:.0%}.",
    does_not_show="Counted on a CPU with transformers, peft and bitsandbytes of the pinned versions, whose code may "
    "change; small shapes, though the rules know no sizes. What kernels of a GPU keep beside (states of random "
    "generators), and FlashAttention's own package, were not counted.",
    chapter="book/qlora",
    runs=runs,
    quantities=quantities,
    verdict=verdict,
)

STUDIES = {STUDY.name: STUDY}
