"""Greedy generation in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from peftbook.training.encode import sorted_batches
from peftbook.training.methods import causal_model, soft_prompt

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 40,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The greedy continuation of every prompt, up to the end-of-turn token, in the order given.

    Prompts are left-padded in batches of similar length, with a mask; a soft prompt stands between padding and text,
    where it stood in training. The compute type is that of the weights.
    """
    model.eval()
    base = causal_model(model)
    device = base.get_input_embeddings().weight.device
    soft = soft_prompt(model)
    texts = [""] * len(prompts)
    for batch in sorted_batches([len(prompt) for prompt in prompts], batch_size):
        width = max(len(prompts[index]) for index in batch)
        rows = [[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in batch]
        ids = torch.tensor(rows, device=device)
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch], device=device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if soft is not None:
            inputs = with_soft_prompt(base.get_input_embeddings()(ids), mask, soft)
        output = base.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new = output if soft is not None else output[:, width:]
        for index, row in zip(batch, new.tolist(), strict=True):
            texts[index] = decode(tokenizer, row)
        if on_batch:
            on_batch(len(batch))
    return texts


def decode(tokenizer, ids: list[int]) -> str:
    """The text before the first end-of-turn token, without control tokens and outer white space."""
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def with_soft_prompt(tokens: torch.Tensor, mask: torch.Tensor, soft: torch.Tensor) -> dict[str, torch.Tensor]:
    """Rows [padding, soft prompt, text] and their mask. tokens: (batch, width, d); soft: (length, d)."""
    length = len(soft)
    embeds = torch.cat([tokens.new_zeros(len(tokens), length, tokens.shape[2]), tokens], dim=1)
    wide = torch.cat([mask.new_zeros(len(mask), length), mask], dim=1)
    for row, padding in enumerate((mask == 0).sum(dim=1).tolist()):
        embeds[row, padding : padding + length] = soft
        wide[row, padding : padding + length] = 1
    return {"inputs_embeds": embeds, "attention_mask": wide}
