"""Are bfloat16 products in float32 those of native instructions? The first steps of a training of every method.

No claim is at stake: it is the check behind runs that repeat a record on a processor without bfloat16. There are two
yardsticks: the same steps in float32, which does not round at all, and, for the methods of the study `methods`, the
shipped record of the same training on another processor with native products.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook import specs
from peftbook.methods import named, preset, usual
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict, methods
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.tasks import task_spec

__all__ = ["METHODS", "STUDIES", "probe", "records"]

STEPS, TOKENS, SEED = 10, 48_000, 3  # of the finals of the study `methods`, some of whose runs these are
METHODS = tuple(kind for kind in usual() if preset(kind).swept.endswith(f".{kind}"))  # with a rate of their own
WAYS = ("widened", "elsewhere", "float32")


def probe(method: str) -> specs.Probe:
    """The first steps of a method's training on docstrings, three ways."""
    budget = specs.Budget(tokens=TOKENS, learning_rate=learning_rate_for(method))
    run = specs.Run(task=task_spec("docstrings"), method=named(method), budget=budget, seed=SEED)
    return specs.Probe(measure="products.first_losses", settings={"steps": STEPS}, runs=(run,))


def records(store: Store) -> dict[str, Record]:
    """Method → record, of those that are there."""
    return {name: record for name in METHODS if (record := store.get(probe(name))) is not None}


def shipped(name: str, store: Store) -> Record | None:
    """The record of the same training, whole, by another processor that has products of bfloat16."""
    made, run = store.get(probe(name)), probe(name).runs[0]
    for record in methods.STUDY.records(store):
        spec = record.spec
        if not isinstance(spec, specs.Run) or (spec.method, spec.budget, spec.seed) != (run.method, run.budget, SEED):
            continue
        if made is not None and record.provenance.get("cpu") != made.provenance.get("cpu"):
            return record
    return None


def differences(store: Store) -> dict[tuple[str, str], tuple[float, tuple[str, ...]]]:
    """(method, way) → the largest |loss − loss with native products| of the steps, in nats per token, and its runs."""
    found: dict[tuple[str, str], tuple[float, tuple[str, ...]]] = {}
    for name, record in records(store).items():
        native, other = record.curve["native"], shipped(name, store)
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
            out[f"largest_{way}"] = Quantity(
                max(values), "nats per token", keys, min(values), max(values), seeds=1, n=STEPS, digits=3,
                note="largest and range over methods",
            )  # fmt: skip
    return out


def verdict(store: Store) -> Verdict:
    """No claim of a paper: a check of the book's own arithmetic."""
    found = quantities(store)
    if len(records(store)) < len(METHODS) or "largest_elsewhere" not in found:
        return Verdict("not yet run", "The first steps are not there for every method yet.")
    widened, elsewhere, float32 = (found[f"largest_{way}"].value for way in WAYS)
    return Verdict(
        "measured",
        f"Over the first {STEPS} steps of {len(METHODS)} methods the loss with widened products is at most "
        f"{widened:.3f} nats per token from that with native ones; another processor with native products is up to "
        f"{elsewhere:.3f} away, float32 up to {float32:.3f}.",
        tuple(f"largest_{way}" for way in WAYS),
    )


STUDIES = {
    "half_products": Study(
        name="half_products",
        title="A processor without bfloat16 repeats the book's runs",
        claim="Products of bfloat16 that are widened to float32 and rounded once train as native ones do.",
        source="micikevicius2017, section 3.3: products in half width, sums in float32",
        refuted_if="nothing: this study checks a tool of the book",
        does_not_show="Later steps, where differences grow; other models. One seed a method, one other processor.",
        chapter="book/many-machines",
        runs=lambda store: [probe(name) for name in METHODS],
        quantities=quantities,
        verdict=verdict,
    )
}
