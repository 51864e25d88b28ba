"""Greedy generation: a batch with padding, cache and mask equals a plain argmax loop without any of them."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from tiny import NumberTokenizer, randomize_adapters, tiny_llama

from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.untuned import Untuned
from peftbook.training import generate as module
from peftbook.training.encode import common_start
from peftbook.training.forward import apply_method, causal_model, prefix_cache, soft_prompt
from peftbook.training.generate import decode_batch, generate
from peftbook.training.loop import arithmetic, frozen_head_in, frozen_linears_in, reordered
from peftbook.training.packed import is_packed, packed_rows

NEW = 7
END = 2  # the end-of-turn id
NEVER = -1  # an end-of-turn id that no model writes
PROMPTS = [[(7 * length + at) % 93 + 3 for at in range(length)] for length in (5, 1, 12, 3, 8, 2, 5)]
METHODS = {
    "untuned": Untuned(),
    "lora": LoRA(rank=2),
    "prompt": PromptTuning(length=4, init="random"),
    "prefix": Prefix(length=3),
}


def a_model(name: str) -> torch.nn.Module:
    model = apply_method(tiny_llama(), METHODS[name], seed=1, tokenizer=NumberTokenizer()).eval()
    randomize_adapters(model)
    return model


@torch.no_grad()
def argmax_loop(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """The definition of greedy decoding: the whole sequence again for every token, soft prompt first."""
    base, soft, ids = causal_model(model), soft_prompt(model), list(prompt)
    for _ in range(count):
        embeds = base.get_input_embeddings()(torch.tensor([ids]))
        if soft is not None:
            embeds = torch.cat([soft[None], embeds], dim=1)
        ids.append(base(inputs_embeds=embeds, cache=prefix_cache(model)).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 40])
@pytest.mark.parametrize("name", list(METHODS))
def test_batches_write_what_an_argmax_loop_writes(name, batch_size):
    """Left padding, mask, positions, cache, soft prompt and prefix change no token in float32; order is kept."""
    model = a_model(name)
    texts = generate(model, NumberTokenizer(NEVER), PROMPTS, max_new_tokens=NEW, batch_size=batch_size)
    assert texts == [" ".join(map(str, argmax_loop(model, prompt, NEW))) for prompt in PROMPTS]


@pytest.mark.parametrize("common", [0, 6])
@pytest.mark.parametrize("name", list(METHODS))
def test_prompts_that_are_read_without_padding_are_answered_the_same(name, common):
    """Each batch anew, whatever they share; attention is as before afterwards."""
    model, prompts = a_model(name), [[*range(40, 40 + common), *prompt] for prompt in PROMPTS]
    padded = generate(model, NumberTokenizer(NEVER), prompts, max_new_tokens=NEW, batch_size=3)
    for order in (packed_rows(model), reordered(model, "fp32")):
        with order, mock.patch.object(module, "last_states", wraps=module.last_states) as read:
            packed = generate(model, NumberTokenizer(NEVER), prompts, max_new_tokens=NEW, batch_size=3)
            assert is_packed(model) and read.call_count == 3
        assert packed == padded and not is_packed(model)


@pytest.mark.parametrize("name", ["untuned", "lora"])
def test_a_half_width_copy_of_the_head_changes_no_logit(name):
    """It is made once and not for every new token."""
    logits = {}
    for dtype in ("fp32", "bf16"):
        seen = logits.setdefault(dtype, [])

        def pick(found, seen=seen):
            seen.append(found.clone())
            return found.argmax(dim=-1)

        model = a_model(name).requires_grad_(False)
        with torch.no_grad(), frozen_head_in(dtype, model), arithmetic(model, "bf16", "cpu"):
            decode_batch(model, NumberTokenizer(NEVER), PROMPTS, 6, pick)
    assert all(map(torch.equal, logits["fp32"], logits["bf16"]))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["untuned", "prefix"])
def test_room_for_what_comes_changes_no_logit(name, dtype, monkeypatch):
    """Token by token, while rows leave: the logits are those of transformers' own cache, bit for bit."""
    logits = {}
    for kind in ("roomy", "own"):
        with monkeypatch.context() as now:
            if kind == "own":
                now.setattr(module, "with_room", lambda cache, room: None)
            seen = logits.setdefault(kind, [])

            def pick(found, seen=seen):
                seen.append(found.clone())
                ended = torch.arange(len(found)) % 5 == len(seen) % 5  # every fifth row leaves
                return torch.where(ended, END, found.argmax(dim=-1))

            model = a_model(name).requires_grad_(False)
            with torch.no_grad(), frozen_linears_in(dtype, model), arithmetic(model, dtype, "cpu"):
                decode_batch(model, NumberTokenizer(END), PROMPTS, 12, pick)
    assert len(logits["own"]) > 3
    for roomy, own in zip(logits["roomy"], logits["own"], strict=True):
        assert torch.equal(roomy, own)


def test_the_adapters_matter():
    """Else the test above would show nothing: the models write different texts."""
    written = [generate(a_model(name), NumberTokenizer(NEVER), PROMPTS, max_new_tokens=NEW) for name in METHODS]
    assert len(set(map(tuple, written))) == len(METHODS)


@pytest.mark.parametrize("name", ["untuned", "prompt"])
def test_generation_stops_at_the_end_of_turn(name):
    """Each row at its own time; what follows in a longer row's batch is not part of the text."""
    model = a_model(name)
    loops = [argmax_loop(model, prompt, NEW) for prompt in PROMPTS]
    end = loops[0][3]  # some token that the first prompt reaches within the limit
    texts = generate(model, NumberTokenizer(end), PROMPTS, max_new_tokens=NEW, batch_size=40)
    for loop, text in zip(loops, texts, strict=True):
        assert text == " ".join(map(str, loop[: loop.index(end)] if end in loop else loop))
    assert len(set(map(len, texts))) > 1


def test_progress_counts_every_prompt_and_no_prompts_are_fine():
    """The bar reaches its end."""
    done: list[int] = []
    generate(a_model("untuned"), NumberTokenizer(), PROMPTS, max_new_tokens=1, batch_size=3, on_batch=done.append)
    assert sum(done) == len(PROMPTS) and max(done) == 3
    assert generate(a_model("untuned"), NumberTokenizer(), [], max_new_tokens=1) == []


def test_a_common_start_runs_once_and_changes_nothing():
    """Prompts that share a template: the shared part is computed for one row and every row attends to it."""
    prompts = [[5, 6, 7, 8, *prompt] for prompt in PROMPTS]
    assert common_start(prompts, min(map(len, prompts)) - 1) == 4
    assert common_start([[5, 6], [5, 6]], 1) == 1  # one token stays, whose state predicts the next
    for name in METHODS:
        model = a_model(name)
        together = generate(model, NumberTokenizer(NEVER), prompts, max_new_tokens=NEW)
        assert together == [" ".join(map(str, argmax_loop(model, prompt, NEW))) for prompt in prompts]
