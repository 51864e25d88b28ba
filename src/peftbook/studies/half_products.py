"""Are bfloat16 products in float32 those of native instructions? The first steps of a training of every method.

With them go two whole runs, so short that anyone can repeat them: of the embedded model in a minute or two, of the
small Llama in moments. No claim is at stake: it is the check behind runs that repeat a record on a processor without
bfloat16. There are two yardsticks: the same steps in float32, which does not round at all, and, for the methods of the
study `methods`, the shipped record of the same training on another processor with native products.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence.sweep import validation_loss
from peftbook.methods import preset, preset_method, usual
from peftbook.studies import Quantity, Verdict, get_study, study
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studies.standard import training

STEPS, TOKENS, SEED = 10, 48_000, 3  # of the finals of the study `methods`, some of whose runs these are
TUNED = ("methods", "benchmark")  # whose finals the other processor had made; of LoRA's variants it has none
METHODS = tuple(kind for kind in usual() if preset(kind).swept in [f"{name}.{kind}" for name in TUNED])
WAYS = ("widened", "elsewhere", "float32")
SHORT_TOKENS = 6_000


def probe(method: str) -> specs.Probe:
    """The first steps of a method's training on docstrings, three ways."""
    run = training("docstrings", preset_method(method), TOKENS, learning_rate_for(method), SEED)
    return specs.Probe(measure="products.first_losses", settings={"steps": STEPS}, runs=(run,))


def short_run() -> specs.Run:
    """A LoRA training of a few steps, with few examples and answers: to be repeated anywhere."""
    asked = {"n_loss": 32, "n_generate": 32, "generation_dtype": "bf16"}
    return training("docstrings", preset_method("lora"), SHORT_TOKENS, learning_rate_for("lora"), SEED, **asked)


def small_run() -> specs.Run:
    """The same training of the small Llama."""
    return short_run().model_copy(update={"model": specs.SMALL_LLAMA})


def shipped(made: Record, store: Store) -> Record | None:
    """The record of the same training, whole, by another processor that has products of bfloat16."""
    assert isinstance(made.spec, specs.Probe)
    (run,) = made.spec.runs
    for record in get_study("methods").records(store):
        spec = record.spec
        if not isinstance(spec, specs.Run) or (spec.method, spec.budget, spec.seed) != (run.method, run.budget, SEED):
            continue
        if record.provenance.get("cpu") != made.provenance.get("cpu"):
            return record
    return None


def differences(store: Store) -> dict[tuple[str, str], tuple[float, tuple[str, ...]]]:
    """(method, way) → the largest |loss − loss with native products| of the steps, in nats per token, and its runs."""
    found: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
    for name in METHODS:
        if (record := store.get(probe(name))) is None:
            continue
        native, other = record.curve["native"], shipped(record, store)
        curves: dict[str, tuple[list[float], tuple[str, ...]]] = {
            way: (record.curve[way], (record.key,)) for way in ("widened", "float32")
        }
        if other is not None:
            curves["elsewhere"] = other.curve["train_loss_nats"][:STEPS], (record.key, other.key)
        for way, (losses, keys) in curves.items():
            found[name, way] = max(abs(a - b) for a, b in zip(losses, native, strict=True)), keys
    return found


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each method: how far the losses are from those with native products: widened, elsewhere, in float32."""
    known = differences(store)
    out = {
        f"{name}_{way}": Quantity(value, "nats per token", keys, seeds=1, n=STEPS, digits=3)
        for (name, way), (value, keys) in known.items()
    }
    for way in WAYS:
        found = [(value, keys) for (_, one), (value, keys) in known.items() if one == way]
        if found:
            values, keys = [value for value, _ in found], tuple(key for _, some in found for key in some)
            ends, note = (min(values), max(values)), "largest and range over methods"
            out[f"largest_{way}"] = Quantity(
                ends[1], "nats per token", keys, *ends, seeds=1, n=STEPS, digits=3, note=note
            )
    for name, run in (("short_run", short_run()), ("small_run", small_run())):
        if (record := store.get(run)) is not None:
            out[f"{name}_loss"] = Quantity(
                validation_loss(record), "nats per token", (record.key,), seeds=1, n=run.evaluation.n_loss, digits=3
            )
    return out


@study("half_products", lambda store: [short_run(), small_run(), *map(probe, METHODS)], quantities)
def verdict(store: Store) -> Verdict:
    """No claim of a paper: a check of the book's own arithmetic."""
    made, found = store.need_all(map(probe, METHODS)), quantities(store)
    if "largest_elsewhere" not in found:
        raise Missing(made[0].spec)
    widened, elsewhere, float32 = (found[f"largest_{way}"].value for way in WAYS)
    return Verdict(
        "measured",
        f"Over the first {STEPS} steps of {len(METHODS)} methods the loss with widened products is at most "
        f"{widened:.3f} nats per token from that with native ones; another processor with native products is up to "
        f"{elsewhere:.3f} away, float32 up to {float32:.3f}.",
        tuple(f"largest_{way}" for way in WAYS),
    )
