"""The small Llama: shipped bits, its texts, its tokenizer and its training."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import small_llama_build
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama

from peftbook.core import specs
from peftbook.core.base_models import SMALL_FOLDERS, model_named
from peftbook.core.errors import InputError
from peftbook.scratch.codebooks import linear_layers, round_trip
from peftbook.tasks import file_sha256, get_task
from peftbook.training import models, small_llama
from peftbook.training.encode import encode_example
from peftbook.training.loop import losses

SPEC = specs.SMALL_LLAMA


@pytest.fixture(scope="module")
def loaded():
    return models.load_model(SPEC)


@pytest.mark.parametrize("width", specs.SMALL_LLAMAS)
def test_the_shipped_weights_are_the_pinned_ones(width):
    """The note beside them says the same, and how they were made: alike at every width."""
    model = specs.SMALL_LLAMAS[width]
    folder = SMALL_FOLDERS[model.name]
    note = json.loads((folder / small_llama_build.NOTE).read_text())
    assert file_sha256(folder / "model.safetensors") == model.revision == note["weights_sha256"]
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == width
    assert (folder / "tokenizer.json").read_bytes() == (models.SMALL_FOLDER / "tokenizer.json").read_bytes()
    assert note["texts"]["docstrings"] == get_task("docstrings").data_sha256
    assert note["train_tokens_seen"] == small_llama_build.STEPS * small_llama_build.BATCH * small_llama.LENGTH


def test_its_width_alone_tells_them_apart():
    """Each is found by its name, and as many heads and layers make the matrices of the others in proportion."""
    heads, shapes = set(), {}
    for width, model in specs.SMALL_LLAMAS.items():
        assert model_named(model.name) == model
        config = models.load_model(model).model.config
        heads.add((config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads))
        shapes[width] = config.intermediate_size / width
    assert len(heads) == len(set(shapes.values())) == 1


def test_another_revision_is_refused():
    """A run that names other weights must not silently get these."""
    with pytest.raises(InputError, match="restore"):
        models.load_model(specs.Model(name=specs.SMALL_MODEL, revision="f" * 64))


def test_it_is_small_float32_and_fits_blocks(loaded):
    """About five million weights; every linear fills whole blocks of 4,096."""
    assert 4e6 < sum(value.numel() for value in loaded.model.parameters()) < 6e6
    for part in linear_layers(loaded.model).values():
        assert part.weight.dtype == torch.float32 and part.weight.numel() % 4096 == 0


def test_its_weights_lie_on_no_four_bit_grid(loaded):
    """Unlike those of the embedded model, which an affine 4-bit code reproduces."""
    for part in linear_layers(loaded.model).values():
        w = part.weight.detach()
        assert (w - round_trip(w, "q4_1", 32)).norm() > 0.03 * w.norm()
        assert len(w.unique()) > 0.9 * w.numel()


def test_it_has_learned(loaded):
    """On held-out sentences and functions it is far better than a uniform guess, whose loss is ln V."""
    data, kinds = small_llama.held_out(loaded.tokenizer, "validation", 8)
    data = [example for example, kind in zip(data, kinds, strict=True) if kind != "prose"]
    nats, counts = losses(loaded.model, data, pad_id=0, dtype="fp32")
    assert sum(nats) / sum(counts) < math.log(small_llama_build.VOCABULARY) - 2


def test_tasks_can_be_trained_on_it(loaded):
    """The template is ChatML; a target ends with the end of a turn, which is not the padding."""
    task = get_task("docstrings")
    encoded = encode_example(loaded.tokenizer, task, task.splits["train"][0], 512)
    text = loaded.tokenizer.decode(encoded.ids)
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_end|>")
    assert encoded.ids[-1] == loaded.tokenizer.eos_token_id != loaded.tokenizer.pad_token_id
    assert loaded.tokenizer.decode(encoded.ids[encoded.start : -1]) == task.splits["train"][0].target


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=40))
def test_every_text_survives_the_tokenizer(text):
    """Bytes are the alphabet, and control tokens inside a text are plain text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.SMALL_FOLDER)
    ids = small_llama.encode_document(tokenizer, f"{text}<|im_end|>")
    assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == f"{text}<|im_end|>"
    assert ids[-1] not in ids[1:-1]


def test_held_out_texts_are_not_trained_on():
    """Packages and whole prose texts are held out."""
    train = set(small_llama.documents("train"))
    functions = {example.input for example in get_task("docstrings").splits["train"]}
    assert functions < train
    for split in ("validation", "test"):
        other = small_llama.documents(split)
        shared = [text for text in other if text in train and len(text.split()) > 12]
        assert len(other) > 900 and not shared  # short sentences may recur


def test_replayed_pieces_are_of_its_training_and_measured_ones_of_no_part_of_it(loaded):
    """The two never share a text, and every source that was held out is measured."""
    tokenizer = loaded.tokenizer
    known = small_llama.known_pieces(tokenizer, 600, 64, seed=3)
    pieces, sources = small_llama.unknown_pieces(tokenizer, 2, 48)
    train, held = (
        small_llama.documents("train"),
        [one for name in small_llama.PROSE for one in small_llama.documents(name)],
    )
    for chosen, texts in ((known, train), (pieces, held)):
        for piece in chosen:  # a piece may begin and end within a character
            words = tokenizer.decode([i for i in piece.ids if i > 2], clean_up_tokenization_spaces=False).strip(
                "\ufffd"
            )
            assert any(words in text for text in texts)
    assert sum(len(piece.ids) for piece in known) >= 600 > sum(len(piece.ids) for piece in known[:-1])
    assert all(2 <= len(piece.ids) <= 48 and piece.start == 1 for piece in pieces)
    groups = {one.group for split in ("validation", "test") for one in get_task("docstrings").splits[split]}
    assert set(sources) == groups | {name for names in small_llama.PROSE.values() for name in names}
    assert (
        known == small_llama.known_pieces(tokenizer, 600, 64, seed=3) != small_llama.known_pieces(tokenizer, 600, 64, 4)
    )


def test_training_is_deterministic_and_lowers_the_loss(monkeypatch):
    """Equal bits twice on one machine."""
    monkeypatch.setattr(small_llama_build, "LENGTH", 32)
    monkeypatch.setattr(small_llama_build, "untrained", lambda seed, width: tiny_llama(seed, vocabulary=128))
    encoded = [[1, *range(10 + at, 60 + at), 2] for at in range(40)]
    first, curve = small_llama_build.train_model(encoded, steps=6)
    second, again = small_llama_build.train_model(encoded, steps=6)
    assert curve == again and curve[-1] < curve[0]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_windows_hold_the_text_in_order():
    """Each window continues the documents; labels overlap the next window by one token."""
    rows = small_llama_build.windows([list(range(700))], 3, seed=0)
    assert rows.shape == (3, small_llama.LENGTH + 1)
    for row in rows.tolist():
        assert all(b == (a + 1) % 700 for a, b in itertools.pairwise(row))


def test_rate_warms_up_and_decays():
    """From near zero to the peak and down to its last share."""
    rates = [small_llama_build.rate(step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(small_llama_build.PEAK_RATE) and rates.index(max(rates)) in (4, 5)
    assert rates[-1] < 0.06 * small_llama_build.PEAK_RATE and rates[0] < rates[1]
