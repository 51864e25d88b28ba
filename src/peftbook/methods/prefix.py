"""Prefix tuning: trained keys and values before those of every attention layer."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field

from peftbook.memory import DecoderShape
from peftbook.methods.method import Look, Method, Preset
from peftbook.methods.prompt import UNCHECKPOINTED, UNSHARDED, common_tokens, virtual_tokens


class Prefix(Method):
    """`length` trainable keys and values before those of every attention layer; the model stays frozen.

    They start as the keys and values of `length` common tokens. Source: Li and Liang 2021, arXiv:2101.00190,
    section 4; without the reparametrisation by an MLP.
    """

    title = "Prefix tuning"
    family = "additive"
    unmerged = "keys and values before the input are no weights of the model"
    unsharded = UNSHARDED
    uncheckpointed = UNCHECKPOINTED

    kind: Literal["prefix"] = "prefix"
    length: int = Field(default=10, ge=1)
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """Prefix tuning through peft, started in the frozen model.

        peft starts at N(0, 1), which is far from anything the model has seen; Li and Liang 2021, section 7.4, find
        that real activations start better.
        """
        import torch
        from peft import PrefixTuningConfig, get_peft_model

        ids = common_tokens(tokenizer, model.get_input_embeddings().num_embeddings, self.length, seed)
        with torch.no_grad():
            cache = model.model(input_ids=ids[None].to(model.device), use_cache=True).cache
        config = PrefixTuningConfig(num_virtual_tokens=self.length, prefix_projection=False, task_type="CAUSAL_LM")
        tuned = get_peft_model(model, config)
        rows = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
        virtual_tokens(tuned).data.copy_(torch.cat(rows, dim=1))  # (length, layers · 2 · kv heads · head width)
        return tuned

    def parameters(self, shape: DecoderShape) -> int:
        return 2 * shape.layers * self.length * shape.kv_width

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        return {"method": "prefix", "length": self.length}

    def sized(self, **sizes: int) -> Self:
        return self.changed(length=sizes.get("prefix_length") or self.length)


PRESETS = (
    Preset(
        "prefix", Prefix(), "Keys and values before those of every attention layer are trained.",
        swept="benchmark.prefix", rate=0.075, look=Look("Prefix", "<"), place=6,
    ),
)  # fmt: skip
