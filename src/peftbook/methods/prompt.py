"""Prompt tuning: trained vectors before the embedded text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from peftbook.core.errors import InputError
from peftbook.memory import DecoderShape
from peftbook.methods.method import Look, Method, Preset

if TYPE_CHECKING:
    from torch import Tensor

COMMON_TOKENS = 5000
UNSHARDED = "soft prompts and prefixes reach the layers on ways that fsdp does not see"

UNCHECKPOINTED = "transformers drops a prefix where layers are checkpointed"


class PromptTuning(Method):
    """`length` trainable vectors before the input embeddings; the model stays frozen.

    init, after Lester et al. 2021, section 3.2 — random: U(−0.5, 0.5).  vocabulary: embeddings of tokens drawn from
    the 5,000 most common ones.  text: embeddings of `init_text`, repeated to the length.

    Source: Lester et al. 2021, arXiv:2104.08691, section 2.
    """

    title = "Prompt tuning"
    family = "additive"
    unmerged = "virtual tokens before the input are no weights of the model"
    unsharded = UNSHARDED

    kind: Literal["prompt"] = "prompt"
    length: int = Field(default=20, ge=1)
    init: Literal["random", "vocabulary", "text"] = "vocabulary"
    init_text: str = ""
    version: int = 1

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """Prompt tuning through peft, with the start set here."""
        from peft import PromptTuningConfig, PromptTuningInit, get_peft_model

        config = PromptTuningConfig(
            num_virtual_tokens=self.length, prompt_tuning_init=PromptTuningInit.RANDOM, task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(model, config)
        table: Any = model.get_input_embeddings()
        virtual_tokens(tuned).data.copy_(self.start(table.weight.detach(), seed, tokenizer))
        return tuned

    def start(self, table: Tensor, seed: int, tokenizer: Any) -> Tensor:
        """The first values, (length, d). table: the embeddings, (V, d)."""
        import torch

        if self.init == "random":
            return torch.rand((self.length, table.shape[1]), generator=torch.Generator().manual_seed(seed)) - 0.5
        if self.init == "vocabulary":
            return table[common_tokens(tokenizer, len(table), self.length, seed)]
        ids = tokenizer.encode(self.init_text, add_special_tokens=False)
        if not ids:
            raise InputError("Prompt tuning with init = 'text' needs a non-empty init_text.")
        repeats = -(-self.length // len(ids))
        return table[torch.tensor((ids * repeats)[: self.length])]

    def parameters(self, shape: DecoderShape) -> int:
        return self.length * shape.hidden

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        return {"method": "prompt", "length": self.length}

    def sized(self, **sizes: int) -> Self:
        return self.changed(length=sizes.get("prompt_length") or self.length)


def common_tokens(tokenizer: Any, vocabulary: int, count: int, seed: int) -> Tensor:
    """`count` ids drawn from the 5,000 lowest ones that are not control tokens, (count,).

    The lowest ids of a byte-pair vocabulary are its most common tokens.
    """
    import torch

    special = set(tokenizer.all_special_ids)
    common = [token for token in range(min(COMMON_TOKENS + len(special), vocabulary)) if token not in special]
    chosen = torch.randint(len(common), (count,), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(common)[chosen]


def virtual_tokens(model: Any) -> Tensor:
    """The trained tensor of prompt or prefix tuning, one row for each virtual token."""
    return model.prompt_encoder["default"].embedding.weight


PRESETS = (
    Preset(
        "prompt", PromptTuning(), "Some virtual tokens before the question are trained: the smallest file of all.",
        swept="methods.prompt", rate=0.3, place=5,
        look=Look("Prompt", "^", (0, (5, 1.2, 1, 1.2)), "#00765a", "#4fd1a8"),
    ),
)  # fmt: skip
