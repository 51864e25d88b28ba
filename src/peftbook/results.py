"""Records to named quantities and tables: what pages, deck, scoreboard and studio read."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from peftbook.errors import InputError
from peftbook.records import Store, default_store
from peftbook.studies import NAMES, Quantity, Study, Verdict, get_study

__all__ = ["claims", "format_quantity", "format_value", "quantities", "quantity", "run_command"]


def quantities(store: Store | None = None) -> dict[str, Quantity]:
    """Every quantity of every study, named `study.quantity`."""
    return {
        f"{name}.{key}": value
        for name in NAMES
        for key, value in study_quantities(name, store or default_store()).items()
    }


def study_quantities(name: str, store: Store) -> Mapping[str, Quantity]:
    """The quantities of one study; computed once for each set of records (a record, once written, never changes)."""
    names = tuple(sorted(path.name for folder in store.folders for path in folder.glob("*.json")))
    return _cached(name, store.folders, names)


@functools.lru_cache(maxsize=64)
def _cached(name: str, folders: tuple, names: tuple) -> Mapping[str, Quantity]:
    return get_study(name).quantities(Store(*folders))


def quantity(name: str, store: Store | None = None) -> Quantity:
    """One quantity by `study.quantity`. Raises InputError that says which command makes a missing one."""
    study, dot, key = name.partition(".")
    if not dot:
        raise InputError(
            f"Quantity {name!r} has no study: write it as 'study.quantity', for example 'methods.lora_loss'."
        )
    found = study_quantities(get_study(study).name, store or default_store())
    if key not in found:
        missing = get_study(study).missing(store or default_store())
        if missing:
            raise InputError(f"Quantity {name!r} has no record yet: run `{run_command(study)}`.")
        near = ", ".join(sorted(found)[:8])
        raise InputError(f"Study {study!r} has no quantity {key!r}: it has {near}, …")
    return found[key]


def run_command(study: str) -> str:
    """The command that computes what a study lacks."""
    return f"peftbook run {study}"


def format_value(value: float, digits: int, unit: str = "") -> str:
    """A number for people: thousands separated, `digits` decimals; digits = −n means n significant digits.

    Bytes are printed in kB, MB or GB (powers of ten).
    """
    if unit == "bytes":
        power = min(3, int(math.log10(max(abs(value), 1)) // 3))
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
    number = f"{value:.{-digits}g}" if digits < 0 else f"{value:,.{digits}f}"
    if digits < 0 and "e" in number:
        mantissa, exponent = number.split("e")
        number = f"{mantissa} × 10^{int(exponent)}"
    number = number.replace("-", "−")
    return f"{number}{'' if unit == '%' else ' '}{unit}" if unit else number


def format_quantity(quantity: Quantity, *, interval: bool = True) -> str:
    """Value, interval in brackets where there is one, unit: `0.312 [0.291, 0.333]`."""
    if quantity.low is None or quantity.high is None or not interval:
        return format_value(quantity.value, quantity.digits, quantity.unit)
    low, high = (format_value(end, quantity.digits) for end in (quantity.low, quantity.high))
    text = f"{format_value(quantity.value, quantity.digits)} [{low}, {high}]"
    return f"{text} {quantity.unit}" if quantity.unit else text


def claims(store: Store | None = None) -> list[tuple[Study, Verdict]]:
    """Every study with its verdict, in the order of `studies.NAMES`."""
    where = store or default_store()
    return [(study, study.verdict(where)) for study in map(get_study, NAMES)]
