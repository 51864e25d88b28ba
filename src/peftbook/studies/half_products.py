"""Are bfloat16 products in float32 those of native instructions? The first steps of a training of every method.

No claim is at stake: it is the check behind runs that repeat a record on a processor without bfloat16. A training in
float32 is the yardstick: by so much a curve differs that does not round at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook import specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.tasks import task_spec

__all__ = ["STUDIES", "probe", "records"]

STEPS, TOKENS, SEED = 10, 48_000, 3  # of the finals of the study `methods`, some of whose runs these are
METHODS = tuple(name for name in specs.METHODS if name != "untuned")


def probe(method: str) -> specs.Probe:
    """The first steps of a method's training on docstrings, three ways."""
    budget = specs.Budget(tokens=TOKENS, learning_rate=learning_rate_for(method))
    run = specs.Run(task=task_spec("docstrings"), method=specs.method_from(method), budget=budget, seed=SEED)
    return specs.Probe(measure="products.first_losses", settings={"steps": STEPS}, runs=(run,))


def records(store: Store) -> dict[str, Record]:
    """Method → record, of those that are there."""
    return {name: record for name in METHODS if (record := store.get(probe(name))) is not None}


def largest_difference(record: Record, way: str) -> float:
    """The largest |loss − loss with native products| of the steps, in nats per token."""
    return max(abs(a - b) for a, b in zip(record.curve[way], record.curve["native"], strict=True))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each method: how far the losses are from those with native products, widened and in float32."""
    out: dict[str, Quantity] = {}
    for name, record in records(store).items():
        for way in ("widened", "float32"):
            value = largest_difference(record, way)
            out[f"{name}_{way}"] = Quantity(value, "nats per token", (record.key,), seeds=1, n=STEPS, digits=4)
    if found := records(store):
        for way in ("widened", "float32"):
            values = [largest_difference(record, way) for record in found.values()]
            keys = tuple(record.key for record in found.values())
            out[f"largest_{way}"] = Quantity(
                max(values), "nats per token", keys, min(values), max(values), seeds=1, n=STEPS, digits=4,
                note="largest and range over methods",
            )  # fmt: skip
    return out


def verdict(store: Store) -> Verdict:
    """No claim of a paper: a check of the book's own arithmetic."""
    found = records(store)
    if len(found) < len(METHODS):
        return Verdict("not yet run", "The first steps are not there for every method yet.")
    widened, float32 = (max(largest_difference(one, way) for one in found.values()) for way in ("widened", "float32"))
    return Verdict(
        "measured",
        f"Over the first {STEPS} steps of {len(found)} methods the loss with widened products is at most "
        f"{widened:.4f} nats per token from that with native ones; in float32 it is up to {float32:.4f} away.",
        ("largest_widened", "largest_float32"),
    )


STUDIES = {
    "half_products": Study(
        name="half_products",
        title="A processor without bfloat16 repeats the book's runs",
        claim="Products of bfloat16 that are widened to float32 and rounded once train as native ones do.",
        source="the book's own arithmetic (`training/products.py`)",
        refuted_if="nothing: this study checks a tool of the book",
        does_not_show="Later steps, where rounding differences grow; other models. One seed a method.",
        chapter="book/many-machines",
        runs=lambda store: [probe(name) for name in METHODS],
        quantities=quantities,
        verdict=verdict,
    )
}
