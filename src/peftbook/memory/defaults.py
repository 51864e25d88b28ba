"""What a config.json leaves out because it is the default of transformers' configuration of that family.

transformers writes into a config.json only what differs from its class. The class is read, not run: importing it
brings torch with it, for seconds.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["completed", "defaults_of"]

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


@functools.lru_cache(maxsize=64)
def defaults_of(family: str) -> dict[str, Any]:
    """The defaults that the installed transformers' configuration class of a model_type has; empty without one."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return {}
    folder = family.removesuffix("_text")
    source = Path(found.origin).parent / "models" / folder / f"configuration_{folder}.py"
    if not source.is_file():
        return {}
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and (values := literals(node)).get("model_type") == family:
            return values
    return {}


def literals(node: ast.ClassDef) -> dict[str, Any]:
    """The class attributes whose values are written out."""
    values: dict[str, Any] = {}
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and line.value is not None:
            try:
                values[target.id] = ast.literal_eval(line.value)
            except ValueError:  # computed
                continue
    return values
