"""Defaults that installed libraries declare, read from their source: importing them brings torch, for seconds.

transformers writes into a config.json only what differs from its configuration class of that family.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OMITTED = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings", "sliding_window",
    "max_window_layers", "num_local_experts", "num_experts", "num_experts_per_tok", "moe_intermediate_size",
)  # fmt: skip


def completed(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The settings of a config.json with the family's defaults for what is left out; sizes of its own it must give."""
    if all(key in config for key in OMITTED):
        return dict(config)
    known = defaults_of(family)
    return {key: known[key] for key in OMITTED if key in known} | dict(config)


def defaults_of(family: str) -> dict[str, Any]:
    """The defaults that the installed transformers' configuration class of a model_type has; empty without one."""
    folder = family.removesuffix("_text")
    classes = classes_in(f"transformers/models/{folder}/configuration_{folder}.py")
    return next((values for values in classes.values() if values.get("model_type") == family), {})


def declared_in(where: str) -> dict[str, Any]:
    """Field → default of a class. where: package/file:class. Empty where one of the three is not there."""
    path, _, owner = where.partition(":")
    return classes_in(path).get(owner, {})


@functools.cache
def classes_in(path: str) -> dict[str, dict[str, Any]]:
    """Class → field → default, of all classes in a source file (package/file); empty where it is not there."""
    package, _, file = path.partition("/")
    spec = importlib.util.find_spec(package)
    source = Path(spec.origin).parent / file if spec and spec.origin else None
    if source is None or not source.is_file():
        return {}
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: literals(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}


def literals(body: Iterable[ast.stmt]) -> dict[str, Any]:
    """The class attributes whose values are written out, as such, as `field(default=…)`, or by an earlier one's name.

    Conditions are taken as true (`if is_torch_available():`).
    """
    values: dict[str, Any] = {}
    for line in body:
        if isinstance(line, ast.If):
            values |= literals(line.body)
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if not isinstance(line, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name) or line.value is None:
            continue
        value = line.value
        if isinstance(value, ast.Call):
            value = next((word.value for word in value.keywords if word.arg == "default"), value)
        try:
            values[target.id] = values[value.id] if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (KeyError, ValueError):  # computed
            continue
    return values
