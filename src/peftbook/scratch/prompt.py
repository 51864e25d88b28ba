"""Prompt tuning: trainable vectors in front of the input embeddings of a frozen model."""

from typing import Any

import torch
from torch import Tensor, nn


class SoftPrompt(nn.Module):
    """A frozen causal language model that reads p trainable vectors before every text: logits(y | [P; E(x)]).

    init: (p, d), the starting vectors P, from one of the three functions below.
    model: as in transformers, called with `inputs_embeds`. Only P gets a gradient.
    Raises ValueError if init does not hold at least one vector of the model's width d.
    Source: Lester et al. 2021, arXiv:2104.08691, section 2.
    """

    def __init__(self, model: Any, init: Tensor):
        super().__init__()
        width = model.get_input_embeddings().weight.shape[1]
        if init.ndim != 2 or init.shape[0] < 1 or init.shape[1] != width:
            raise ValueError(f"init has shape {tuple(init.shape)}: give (length of 1 or more, {width}).")
        self.model = model.requires_grad_(False)
        self.prompt = nn.Parameter(init.detach().float().clone())

    @property
    def length(self) -> int:
        """How many virtual tokens stand before the text."""
        return self.prompt.shape[0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The logits at the text's own positions: (b, t, vocabulary).

        input_ids: (b, t).   attention_mask: (b, t), 0 where padded. Nothing masks the prompt.
        """
        tokens = self.model.get_input_embeddings()(input_ids)  # (b, t, d)
        prompt = self.prompt.to(tokens.dtype).expand(len(tokens), -1, -1)  # (b, p, d), one P for all
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask.new_ones(len(tokens), self.length), attention_mask], dim=1)
        inputs = torch.cat([prompt, tokens], dim=1)  # (b, p + t, d)
        output = self.model(inputs_embeds=inputs, attention_mask=attention_mask, use_cache=False)
        return output.logits[:, self.length :]


def random_init(length: int, width: int) -> Tensor:
    """Uniform in ±0.5: (length, width). Lester et al.'s random start; peft's is normal with standard deviation 1."""
    return torch.rand(length, width) - 0.5


def vocabulary_init(embedding: nn.Embedding, length: int) -> Tensor:
    """The embeddings of tokens drawn with replacement: (length, d). peft draws from the whole vocabulary too."""
    return embedding.weight[torch.randint(embedding.num_embeddings, (length,))]


def text_init(embedding: nn.Embedding, token_ids: list[int], length: int) -> Tensor:
    """The embeddings of a text, cut or repeated to `length`: (length, d). Raises ValueError for an empty text."""
    if not token_ids:
        raise ValueError("the text has no tokens: start from at least one.")
    return embedding.weight[[token_ids[i % len(token_ids)] for i in range(length)]]


def prompt_parameters(length: int, width: int) -> int:
    """Trainable numbers: p d, whatever the model's depth."""
    return length * width
