"""The texts of the small Llama: those that it was trained on, and those that were held out from its training.

The embedded SmolLM2 comes from a 4-bit file, so its weights already lie on a grid. Those of the small Llama, which
`tests/tools/small_llama_build.py` trained from scratch in float32 on the book's own texts, do not.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from peftbook.tasks import get_task, prose
from peftbook.training.encode import Encoded, encode_plain

LENGTH = 256
PROSE = {
    "validation": ("sotu-1964", "moby-dick-110"),
    "test": ("sotu-1986", "sotu-2002", "moby-dick-036", "moby-dick-093", "moby-dick-132"),
}


def documents(split: str) -> list[str]:
    """The texts of a split: Python functions, first sentences of docstrings (apart from their functions), prose.

    Functions and sentences follow the split of the docstrings task, whose packages are disjoint; whole prose texts
    are held out.
    """
    examples = get_task("docstrings").splits[split]
    held = {name for names in PROSE.values() for name in names}
    chosen = [
        example.target
        for example in prose.load()
        if (example.id in PROSE[split] if split in PROSE else example.id not in held)
    ]
    return [example.input for example in examples] + [example.target for example in examples] + chosen


def encode_document(tokenizer, text: str) -> list[int]:
    """Start token, text, end token."""
    return [tokenizer.bos_token_id, *encode_plain(tokenizer, text), tokenizer.eos_token_id]


def held_out(tokenizer, split: str = "test", limit: int = 0) -> tuple[list[Encoded], list[str]]:
    """Held-out texts as documents of at most LENGTH tokens, and each one's kind; long prose gives several pieces.

    The functions and sentences of the first `limit` examples are kept (0: of all), and all of the prose.
    """
    examples = get_task("docstrings").splits[split][: limit or None]
    kinds = {"function": [example.input for example in examples], "sentence": [example.target for example in examples]}
    kinds["prose"] = [example.target for example in prose.load() if example.id in PROSE[split]]
    data, names = [], []
    for kind, texts in kinds.items():
        for text in texts:
            ids = encode_document(tokenizer, text)
            pieces = [ids[at : at + LENGTH] for at in range(0, len(ids), LENGTH)] if kind == "prose" else [ids[:LENGTH]]
            kept = [Encoded(tuple(piece), 1, len(ids) > LENGTH) for piece in pieces if len(piece) > 1]
            data += kept
            names += [kind] * len(kept)
    return data, names


def known_pieces(tokenizer, tokens: int, length: int, seed: int) -> list[Encoded]:
    """At least `tokens` tokens of the texts that it was trained on, in pieces of at most `length` ids.

    A text is drawn as often as it is long, and the piece lies anywhere in it. Every token after a piece's first is a
    label. seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    texts = documents("train")
    sizes = np.array([len(text) for text in texts], dtype=float)
    pieces: list[Encoded] = []
    while sum(len(piece.ids) for piece in pieces) < tokens:
        ids = encode_document(tokenizer, texts[rng.choice(len(texts), p=sizes / sizes.sum())])
        at = int(rng.integers(max(1, len(ids) - length + 1)))
        pieces.append(Encoded(tuple(ids[at : at + length]), 1, False))
    return pieces


def unknown_pieces(tokenizer, each: int, length: int) -> tuple[list[Encoded], list[str]]:
    """Pieces of `length` ids from the start of all texts held out from its training, and the source of each.

    `each` successive ones of every prose text, and of every package of functions the first functions, so many of them.
    """
    pieces: list[Encoded] = []
    sources: list[str] = []
    for split in ("validation", "test"):
        counts: Counter[str] = Counter()
        for example in get_task("docstrings").splits[split]:
            counts[example.group] += 1
            if counts[example.group] <= each:
                ids = encode_document(tokenizer, example.input)
                pieces.append(Encoded(tuple(ids[:length]), 1, len(ids) > length))
                sources.append(example.group)
        for text in prose.load():
            if text.id in PROSE[split]:
                ids = encode_document(tokenizer, text.target)[: each * length]
                pieces += [Encoded(tuple(ids[at : at + length]), 1, True) for at in range(0, len(ids), length)]
                sources += [text.id] * -(-len(ids) // length)
    return pieces, sources
