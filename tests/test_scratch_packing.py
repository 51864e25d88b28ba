"""Packing: every text once, no row too long, and no text that sees its neighbour."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from peftbook.scratch.packing import block_mask, bucketed, pack, packed_row, padding_share

few = settings(max_examples=15, deadline=None)
lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def tiny_gpt2() -> GPT2LMHeadModel:
    """As `tiny_llama`, but positions are learned vectors that are added to the embedding."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=128, initializer_range=0.1,
        attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def texts(sizes=(9, 5, 12)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 96, (size,), generator=generator) for size in sizes]


@torch.no_grad()
def leak(model, rows: list[torch.Tensor], *, walls: bool, reset: bool) -> float:
    """The largest change of a logit against the texts run alone."""
    alone = torch.cat([model(text[None]).logits[0] for text in rows])
    ids, positions, numbers = packed_row(rows)
    options = {"attention_mask": block_mask(numbers)[None, None]} if walls else {}
    where = positions if reset else torch.arange(len(ids))
    return (model(ids[None], position_ids=where[None], **options).logits[0] - alone).abs().max().item()


@few
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_packed_is_unpacked_with_walls_and_reset_positions(sizes):
    """Whatever the lengths, and for both ways in which a model knows positions."""
    for model in (tiny_llama(), tiny_gpt2()):
        assert leak(model, texts(sizes), walls=True, reset=True) < 1e-4


def test_without_walls_every_later_text_sees_its_neighbours():
    """Reset positions alone are no wall."""
    for model in (tiny_llama(), tiny_gpt2()):
        for reset in (True, False):
            assert leak(model, texts(), walls=False, reset=reset) > 0.5


def test_rotary_models_need_only_walls_and_learned_positions_need_both():
    """Rotary attention depends on distances; a learned position is an absolute one."""
    assert leak(tiny_llama(), texts(), walls=True, reset=False) < 1e-4
    assert leak(tiny_gpt2(), texts(), walls=True, reset=False) > 0.5


@torch.no_grad()
@pytest.mark.parametrize(("options", "walled"), [({"use_cache": False}, True), ({}, False)])
def test_transformers_reads_walls_from_positions_only_without_a_cache(options, walled):
    """Data chapter: the same call with and without `use_cache=False` is packed training or leaking training."""
    model, rows = tiny_llama(), texts()
    ids, positions, _ = packed_row(rows)
    alone = torch.cat([model(text[None]).logits[0] for text in rows])
    packed = model(ids[None], position_ids=positions[None], **options).logits[0]
    assert ((packed - alone).abs().max() < 1e-4) == walled


@given(lengths)
def test_packing_keeps_every_text_once_in_rows_that_hold_it(lengths):
    """First fit leaves at most one row half empty."""
    rows = pack(lengths, 30)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert max(filled) <= 30 and sum(size <= 15 for size in filled) <= 1
    assert padding_share(rows, lengths, 30) == pytest.approx(1 - sum(lengths) / (30 * len(rows)))


def test_a_text_longer_than_a_row_gets_a_sentence():
    """It would have to be cut, and that is not the packer's to decide."""
    with pytest.raises(ValueError, match="text 1 has 9 tokens and a row 8"):
        pack([3, 9], 8)


@given(lengths, st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
def test_buckets_hold_every_text_once(lengths, batch_size, pool, seed):
    """Sorting changes who stands together, never who is there."""
    batches = bucketed(lengths, batch_size, pool, seed)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size
    assert 0 <= padding_share(batches, lengths) < 1


def test_a_full_sort_pads_least_of_all_batchings():
    """Neighbours in length are the best company; pools come close."""
    sizes = [5 + (37 * at) % 90 for at in range(256)]
    plain, pooled, whole = (padding_share(bucketed(sizes, 8, pool), sizes) for pool in (1, 16, 256))
    assert whole < pooled < 0.5 * plain
