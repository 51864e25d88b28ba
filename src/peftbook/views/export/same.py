"""Whether a model answers alike on several roads: base and adapter, merged folder, GGUF file, server; where it parts.

The first road is the reference. Token ids come first, then log-probabilities on the reference's ids, then greedy
answers. Roads of one model differ by rounding, and no further than the reference from itself when every weight is moved
by one rounding, W (1 ± u), signs at random:

    mean over positions of KL(p ‖ q)  ≤  the largest of DRAWS such means of the reference against itself.

u is the unit roundoff of the coarser type of the two, at least √k 2⁻²⁴ for products of length k in float32, whose error
grows as √k (Higham and Mary 2019, SIAM J. Sci. Comput. 41(5)). A rounding is spread evenly up to half a unit, so that
its variance is a third of that of the signs, or less.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor

from peftbook.training.generate import decode_batch
from peftbook.training.models import Loaded
from peftbook.training.products import TORCH_DTYPES
from peftbook.views.export.gguf_model import TYPES

DRAWS, ANSWER, BLOCK, LEVELS = 3, 16, 32, 16  # 4 bits have so many values in a block
NAMES = {name: dtype for dtype, name in TYPES.items()}
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "no_repeat_ngram_size")
TEXTS = (
    "Name three rivers.", "2 + 2 =", "  Two spaces,\n\na blank line\tand a tab", "def f(x):\n    return x ** 2",
    "Où est la gare, déjà?", "東京は日本の首都です。", "<b>bold</b> & 100 % of $3.50", "Thanks!",
)  # fmt: skip
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
CHATS[-1] = [*CHATS[0], {"role": "assistant", "content": "Rhine, Nile, Po."}, *CHATS[-1]]


@dataclass(frozen=True)
class Parting:
    """Where two roads part. stage: the first of template, logits, answers that differs, or empty; words: how.

    nats, bound: KL a position, and what rounding accounts for.
    """

    stage: str
    words: str
    nats: float = math.nan
    bound: float = math.nan


@dataclass
class Road:
    """A model on a road, and what is asked of it once. sequences: ids of each chat, with the greedy answer."""

    name: str
    loaded: Loaded
    prompts: list[list[int]] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompts = [template_ids(self.loaded.tokenizer, chat) for chat in CHATS]
        model, tokenizer = self.loaded.model.eval(), self.loaded.tokenizer
        with torch.no_grad():
            self.sequences = [one + decode_batch(model, tokenizer, [one], ANSWER)[0] for one in self.prompts]

    @functools.cached_property
    def dense(self) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
        """Its weights with the adapter merged, and the base's where it was; None where that cannot be."""
        model = self.loaded.model
        if any(not value.is_floating_point() for value in model.parameters()):
            return None
        if not hasattr(model, "peft_config"):
            return {name: value.float() for name, value in model.state_dict().items()}, {}
        if not hasattr(model, "merge_and_unload"):
            return None
        merged = copy.deepcopy(model)
        layers = {name: part for name, part in merged.get_base_model().named_modules() if hasattr(part, "base_layer")}
        base = {f"{name}.weight": part.base_layer.weight.detach().clone() for name, part in layers.items()}
        return merged.merge_and_unload().state_dict(), base

    @property
    def stored(self) -> str:
        """The type of the weights in its files; fp32 for a model that is put together from several."""
        path = Path(self.name).expanduser()
        if not path.exists():
            name, _, revision = self.name.partition("@")
            cached = try_to_load_from_cache(name, "config.json", revision=revision or None)
            path = Path(cached).parent if isinstance(cached, str) else path
        if path.suffix == ".gguf":
            from gguf import GGUFReader

            found = {one.tensor_type.name for one in GGUFReader(path).tensors if len(one.shape) > 1}
            return NAMES.get(" ".join(found), "quantised")
        for file in sorted(path.glob("model*.safetensors"))[:1]:
            with safe_open(file, framework="pt") as tensors:
                name = next(name for name in tensors.keys() if "proj" in name)  # noqa: SIM118 — no mapping
                return NAMES.get(tensors.get_slice(name).get_dtype(), "quantised")
        return "fp32"


def template_ids(tokenizer: Any, chat: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat by the template; without one, of its last text."""
    if not tokenizer.chat_template:
        return tokenizer.encode(chat[-1]["content"])
    return tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)


@torch.no_grad()
def log_probabilities(model: Any, sequences: Sequence[list[int]]) -> Tensor:
    """Of every next token at every position of the sequences, (positions, V), float64."""
    rows = []
    for ids in sequences:
        asked = torch.tensor([ids])
        logits = model(input_ids=asked, attention_mask=torch.ones_like(asked)).logits[0, -len(ids) :]
        rows.append(logits.double().log_softmax(dim=-1))
    return torch.cat(rows)


def divergence(first: Tensor, second: Tensor) -> float:
    """Mean of KL(first ‖ second) over positions, nats, over the tokens that both have."""
    width = min(first.shape[-1], second.shape[-1])
    first, second = first[:, :width], second[:, :width]
    return (first.exp() * (first - second)).sum(dim=-1).mean().item()


@torch.no_grad()
def rounded_otherwise(road: Road, dtype: str, compute: torch.dtype = torch.float32) -> Iterator[Tensor]:
    """The reference's log-probabilities with every weight moved by one rounding to a type, once for each draw.

    compute: what the moved model is run in.
    """
    parameters = [value for value in road.loaded.model.parameters() if value.is_floating_point()]
    kept = [value.data for value in parameters]
    info = torch.finfo(TORCH_DTYPES[dtype])
    products = math.sqrt(max(value.shape[-1] for value in parameters)) * 2**-24
    unit, least = max(info.eps / 2, products), info.tiny * info.eps / 2
    for seed in range(DRAWS):
        generator = torch.Generator().manual_seed(seed)
        for value, plain in zip(parameters, kept, strict=True):
            signs = torch.randint(0, 2, plain.shape, generator=generator).to(plain.device) * 2 - 1
            value.data = (plain + signs * (unit * plain.abs()).clamp(min=least)).to(compute)
        yield log_probabilities(road.loaded.model, road.sequences)
    for value, plain in zip(parameters, kept, strict=True):
        value.data = plain


def compare_roads(first: Road, other: Road, own: Tensor | None = None) -> Parting:
    """Where another road parts from the reference, if anywhere. own: the reference's log-probabilities, if at hand."""
    own = log_probabilities(first.loaded.model, first.sequences) if own is None else own
    theirs = log_probabilities(other.loaded.model, first.sequences)
    types = {first.stored, other.stored} - {"quantised"}
    dtype = next(name for name in ("bf16", "fp16", "fp32") if name in types or name == "fp32")
    nats, bound = divergence(own, theirs), max(divergence(own, one) for one in rounded_otherwise(first, dtype))
    if words := template_parting(first, other):
        return Parting("template", words, nats, bound)
    if not nats <= bound:
        return Parting("logits", weights_parting(first, other), nats, bound)
    if words := sampling_parting(first, other):
        return Parting("answers", words, nats, bound)
    equal = sum(a == b for a, b in zip(first.sequences, other.sequences, strict=True))
    ties = "" if equal == len(CHATS) else ", the others part where two tokens are equally likely but for rounding"
    return Parting("", f"{equal} of {len(CHATS)} greedy answers equal{ties}; as near as {dtype} rounds", nats, bound)


def template_parting(first: Road, other: Road) -> str:
    """How the token ids differ; empty where they do not."""
    one, two = first.loaded.tokenizer, other.loaded.tokenizer
    pairs = [(a, b) for a, b in zip(first.prompts, other.prompts, strict=True) if a != b]
    pairs += [(a, b) for text in TEXTS if (a := one.encode(text)) != (b := two.encode(text))]
    if not pairs:
        return "" if one.eos_token_id == two.eos_token_id else f"the end is {two.eos_token!r}, not {one.eos_token!r}"
    start = one.bos_token_id
    if start is not None and all(a in ([start, *b], b[1:]) for a, b in pairs):
        how = "missing" if len(pairs[0][0]) > len(pairs[0][1]) else "added, or twice"
        return f"{one.bos_token!r} at the start is {how}"
    if one.get_added_vocab() != two.get_added_vocab():
        names = sorted(set(one.get_added_vocab().items()) ^ set(two.get_added_vocab().items()))
        return f"added tokens differ: {', '.join(f'{name!r} ({at})' for name, at in names[:4])}"
    return f"{len(pairs)} of {len(CHATS) + len(TEXTS)} texts get other ids: another chat template or tokenizer"


def sampling_parting(first: Road, other: Road) -> str:
    """Settings by which servers draw from the same log-probabilities otherwise; a GGUF file has none."""
    ours, theirs = (road.loaded.model.generation_config for road in (first, other))
    differ = [name for name in SAMPLING if getattr(ours, name, None) != getattr(theirs, name, None)]
    known = differ and not other.name.endswith(".gguf")
    return f"sampling: generation_config.json has other {', '.join(differ)}" if known else ""


# --- which weights differ --------------------------------------------------------------------------------------------


@torch.no_grad()
def weights_parting(first: Road, other: Road) -> str:
    """What was done to the weights of a road, by those of the reference and its base. Adapters are merged by that.

    c is the share of the reference's update that a matrix of the other road has: <W' − W₀, D> / <D, D>.
    """
    if first.dense is None or other.dense is None:
        return "logits differ; what was trained is no part of the weights, or lies in 4 bits"
    (ours, base), (theirs, touched) = first.dense, other.dense
    common = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    projections = [name for name in common if name.endswith("_proj.weight")]
    if any(levels(theirs[name]) <= LEVELS < levels(ours[name]) for name in projections):
        return "quantisation: the matrices have few values in a block"
    others = [name for name in common if name not in base | touched and apart(ours[name], theirs[name]) > 2**-8]
    if others and base:
        return f"another base: {others[0]} and {len(others) - 1} more differ, which the adapter does not touch"
    if base and other.stored != "quantised":
        updates = {
            name: (theirs[name] - old, ours[name] - old) for name, old in (touched | base).items() if name in common
        }
        own = [name for name, (moved, update) in updates.items() if moves_otherwise(moved, update, theirs[name])]
        if own:
            return f"another training: {own[0]} and {len(own) - 1} more have an update of their own"
    shares = {name: share(theirs[name] - old, ours[name] - old) for name, old in base.items() if name in common}
    if shares:
        mean = sum(shares.values()) / len(shares)
        lost = [name for name, value in shares.items() if value < 0.5 * max(shares.values())]
        if max(shares.values()) < 0.1:
            return "adapter missing: the weights are the base's"
        if 0 < len(lost) < len(shares):
            return f"targets missed: {lost[0]} and {len(lost) - 1} more have no update"
        if abs(mean - 1) > 0.02:
            how = "merged twice" if abs(mean - 2) < 0.02 else "alpha lost, or another"
            return f"{how}: the update is there {mean:.3g} times"
    for dtype in ("bf16", "fp16"):
        names = [
            name for name in projections if torch.equal(theirs[name], theirs[name].to(TORCH_DTYPES[dtype]).float())
        ]
        if names and not all(torch.equal(ours[name], theirs[name]) for name in names):
            return f"merge rounding: {len(names)} matrices were rounded to {dtype} before they were saved"
    worst = max(common, key=lambda name: apart(ours[name], theirs[name]), default="")
    return f"other weights: {worst} differs most, by {apart(ours[worst], theirs[worst]):.2g} of its size"


def apart(one: Tensor, two: Tensor) -> float:
    """‖two − one‖ / ‖one‖."""
    return ((two - one).norm() / one.norm().clamp(min=1e-30)).item()


def share(moved: Tensor, update: Tensor) -> float:
    return ((moved * update).sum() / update.square().sum().clamp(min=1e-30)).item()


def moves_otherwise(moved: Tensor, update: Tensor, stored: Tensor) -> bool:
    """Whether ‖W' − W₀ − c D‖ > ‖D‖ / 20 + ε ‖W'‖, ε of the type of W': a part across the update, beyond rounding."""
    types = (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(stored, stored.to(dtype).float()))
    rounding = torch.finfo(next(types, torch.float32)).eps * stored.norm()
    return bool((moved - share(moved, update) * update).norm() > update.norm() / 20 + rounding)


def levels(matrix: Tensor) -> int:
    """The most different values in a block of a matrix, among the first blocks."""
    blocks = matrix.flatten()[: 64 * BLOCK].reshape(-1, BLOCK)
    return max(len(block.unique()) for block in blocks)
