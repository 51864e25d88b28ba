"""Formats of a frozen base: the bytes they store, and their error of weights, of outputs and of the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.scratch.awq import awq, search_scale
from peftbook.scratch.codebooks import codebook, linear_layers, round_trip
from peftbook.scratch.gptq import gptq, output_error
from peftbook.scratch.groups import round_to_nearest
from peftbook.scratch.hqq import hqq
from peftbook.scratch.microscaling import quantize_fp8, quantize_mxfp4, quantize_nvfp4
from peftbook.scratch.nf4 import dequantize_blocks, pack, quantize_blocks
from peftbook.training.encode import Encoded
from peftbook.training.models import load_model
from peftbook.training.probes import EnoughError, Findings
from peftbook.training.probes.codebooks import evaluated_model, kept_arrays, permute_units, significant, texts_of
from peftbook.training.small_llama import known_pieces

HALF_BLOCK = 32  # of codebooks whose constants are float16: 4.5 bits
PIECE = 256  # tokens of a calibration text
SHARED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # who reads the inputs of whom


class InputMoments(NamedTuple):
    """What a layer's inputs are like: H = mean of x xᵀ, (d_in, d_in), and the mean |x|, (d_in,)."""

    H: Tensor
    magnitude: Tensor


class Quantised(NamedTuple):
    """A matrix after rounding: the weights as they are computed with, and the arrays that are stored."""

    weight: Tensor
    arrays: tuple[Tensor, ...]


def of(stored) -> Quantised:
    """A matrix in one of the formats that know their weights and arrays."""
    return Quantised(stored.weight, stored.arrays)


def nf4(w: Tensor, block: int, kind: str) -> Quantised:
    """NF4 as bitsandbytes stores it, with block constants in 32 or in 8 bits."""
    return Quantised(round_trip(w, "nf4", block, kind == "dynamic8"), tuple(kept_arrays(w, block, kind)))


def halved(w: Tensor, name: str) -> Quantised:
    """A codebook of sixteen levels in blocks of 32 with constants in float16.

    A weight that lies as near to the middle of two levels as that rounding may get either.
    """
    levels = codebook(name)
    absmax = w.reshape(-1, HALF_BLOCK).abs().amax(dim=1).half()
    scaled = w.reshape(-1, HALF_BLOCK) / absmax.float()[:, None].clamp(min=1e-7)
    codes, _ = quantize_blocks(torch.cat([scaled, torch.ones(len(scaled), 1)], dim=1), levels, HALF_BLOCK + 1)
    codes = codes.view(-1, HALF_BLOCK + 1)[:, :-1].flatten()
    weight = dequantize_blocks(codes, absmax.float(), levels, HALF_BLOCK).view_as(w)
    return Quantised(weight, (pack(codes), absmax))


def two_bits(w: Tensor) -> Quantised:
    """NF2 in blocks of 64 with float32 constants: four codes a byte."""
    codes, absmax = quantize_blocks(w, codebook("nf2"), 64)
    return Quantised(round_trip(w, "nf2", 64), (pack(pack(codes) % 16), absmax))


FORMATS: Mapping[str, Callable[[Tensor], Quantised]] = {  # without data; `<way>_<bits>` are added below
    "fp8": lambda w: of(quantize_fp8(w)),
    "mxfp4": lambda w: of(quantize_mxfp4(w)),
    "nvfp4": lambda w: of(quantize_nvfp4(w)),
    "nf4": lambda w: nf4(w, 64, "none"),
    "nf4_double": lambda w: nf4(w, 64, "dynamic8"),
    "nf4_half": lambda w: halved(w, "nf4"),
    "e2m1_half": lambda w: halved(w, "e2m1"),
    "int4_half": lambda w: halved(w, "int4"),
    "nf2": two_bits,
}


def format_errors(probe: specs.Probe) -> Findings:
    """Bytes, weight error, output error and loss of the small Llama in each format: all its linears but the head.

    settings: source ("small"), formats, scored (those whose loss is taken), group (of integer formats), texts
    (functions among the test texts), stride (of all test texts every so manieth), calibration_tokens.
    formats: names of FORMATS, or `rtn_B`, `hqq_B`, `awq_B` and `gptq_B` with B bits.  seed: 0 is the model as it comes;
    any other is a copy with its units in another order (`permute_units`). It also draws the calibration texts, from
    the model's training.
    In `per_example`: `label_tokens`, `kind`, `full` and each scored format, the summed nats of each text, and for each
    matrix `<format>_output`, tr(E H Eᵀ) / tr(W H Wᵀ) with the inputs that the unquantised model has on the test texts.
    In `measurements`: `parameters`, and `<format>_bytes`, `_mse` (as in `codebook_error`) and `_output`, the mean over
    matrices.
    """
    if probe.word("source") != "small":
        raise InputError(f"Formats are measured on the small Llama, not on {probe.word('source')!r}.")
    model, texts, score = evaluated_model(probe)
    if probe.seed:
        permute_units(model, probe.seed)
    tokenizer = load_model(probe.model).tokenizer
    layers = linear_layers(model)
    originals = {name: part.weight.detach().clone() for name, part in layers.items()}
    parameters = sum(w.numel() for w in originals.values())
    inputs = input_moments(model, texts_of(probe, tokenizer)[0], layers)
    calibration = known_pieces(tokenizer, probe.whole("calibration_tokens"), PIECE, probe.seed)
    known = input_moments(model, calibration, layers)
    measurements: dict[str, float | int | None] = {"parameters": parameters, "matrices": len(layers)}
    measurements["calibration_tokens"] = sum(len(piece.ids) for piece in calibration)
    per_example: dict[str, list[float] | list[str]] = {**texts, "full": score() or []}
    scales = {name: float(output_error(w, inputs[name].H)) for name, w in originals.items()}
    for name in probe.words("formats"):
        restore(layers, originals)
        found = quantised_layers(name, model, known, calibration, probe.whole("group"))
        squared, stored, outputs = 0.0, 0, []
        for layer, w in originals.items():
            error = found[layer].weight - w
            squared += float((error.double() / w.double().square().mean().sqrt()).square().sum())
            stored += sum(part.nbytes for part in found[layer].arrays)
            outputs.append(significant(output_error(error, inputs[layer].H) / scales[layer]))
        measurements |= {f"{name}_bytes": stored, f"{name}_mse": significant(squared / parameters)}
        measurements[f"{name}_output"] = significant(math.fsum(outputs) / len(outputs))
        per_example[f"{name}_output"] = outputs
        if name in probe.words("scored"):
            restore(layers, {layer: one.weight for layer, one in found.items()})
            per_example[name] = score() or []
    return Findings(measurements=measurements, per_example=per_example)


@torch.no_grad()
def restore(layers: Mapping[str, nn.Linear], weights: Mapping[str, Tensor]) -> None:
    """Put these weights into the layers of the same names."""
    for name, w in weights.items():
        layers[name].weight.copy_(w)


@torch.no_grad()
def input_moments(
    model: nn.Module, pieces: Iterable[Encoded], layers: Mapping[str, nn.Linear], last: nn.Module | None = None
) -> dict[str, InputMoments]:
    """What the inputs of these layers are like, over every token of the pieces; those who share inputs share an entry.

    last: the part of the model after which nothing more has to be computed.
    """
    sums: dict[str, InputMoments] = {}
    first = {name: reader(name) for name in layers}
    count = 0

    def watch(name: str):
        def add(_module, arguments) -> None:
            x = arguments[0].detach().flatten(0, -2)
            old = sums.get(name)
            H, magnitude = x.T @ x, x.abs().sum(dim=0)
            sums[name] = (
                InputMoments(H, magnitude) if old is None else InputMoments(old.H + H, old.magnitude + magnitude)
            )

        return add

    with ExitStack() as stack:
        for name in dict.fromkeys(first.values()):
            stack.callback(layers[name].register_forward_pre_hook(watch(name)).remove)
        if last is not None:
            stack.callback(last.register_forward_hook(enough).remove)
        for piece in pieces:
            with suppress(EnoughError):
                model(input_ids=torch.tensor([piece.ids]), use_cache=False)
            count += len(piece.ids)
    return {name: InputMoments(*(part / count for part in sums[one])) for name, one in first.items()}


def enough(*_arguments) -> None:
    """End a forward pass."""
    raise EnoughError


def reader(name: str) -> str:
    """The layer by whose inputs a layer's are known: k and v read what q reads, up what gate reads."""
    parent, _, part = name.rpartition(".")
    return f"{parent}.{SHARED.get(part, part)}"


def quantised_layers(
    name: str, model: nn.Module, known: Mapping[str, InputMoments], calibration: Sequence[Encoded], group: int
) -> dict[str, Quantised]:
    """Every linear layer of an unquantised model in a format; GPTQ writes them into the model on its way."""
    weights = {layer: part.weight.detach().clone() for layer, part in linear_layers(model).items()}
    if name in FORMATS:
        return {layer: FORMATS[name](w) for layer, w in weights.items()}
    way, _, bits = name.partition("_")
    if way == "rtn":
        return {layer: of(round_to_nearest(w, int(bits), group)) for layer, w in weights.items()}
    if way == "hqq":
        return {layer: of(hqq(w, int(bits), group)) for layer, w in weights.items()}
    if way == "awq":
        return scaled_layers(weights, known, int(bits), group)
    if way == "gptq":
        return corrected_layers(model, weights, calibration, int(bits), group)
    raise InputError(f"Unknown format {name!r}: choose one of {', '.join(FORMATS)}, rtn_B, hqq_B, awq_B or gptq_B.")


def scaled_layers(
    weights: Mapping[str, Tensor], known: Mapping[str, InputMoments], bits: int, group: int
) -> dict[str, Quantised]:
    """AWQ, one scale for the matrices that read the same inputs.

    The attention's output matrix is left to round-to-nearest: with fewer heads of keys and values than of queries no
    row before it is its input, as in the authors' code.
    """
    together: dict[str, list[str]] = {}
    for name in weights:
        together.setdefault(reader(name), []).append(name)
    out = {}
    for first, names in together.items():
        H, magnitude = known[first]
        if first.endswith("o_proj"):
            scale = torch.ones_like(magnitude)
        else:
            scale = search_scale([weights[name] for name in names], H, magnitude, bits, group).scale
        for name in names:
            stored = awq(weights[name], scale, bits, group)
            out[name] = Quantised(stored.weight / scale, stored.arrays)
    return out


def corrected_layers(
    model: nn.Module, weights: Mapping[str, Tensor], calibration: Sequence[Encoded], bits: int, group: int
) -> dict[str, Quantised]:
    """GPTQ, decoder layer by decoder layer: each sees the inputs that the quantised layers before it make."""
    layers, out = linear_layers(model), {}
    blocks: dict[str, list[str]] = {}
    for name in weights:
        blocks.setdefault(".".join(name.split(".")[:3]), []).append(name)  # model.layers.<index>
    for names in blocks.values():
        block = model.get_submodule(names[0].rsplit(".", 2)[0])
        seen = input_moments(model, calibration, {name: layers[name] for name in names}, last=block)
        for name in names:
            out[name] = of(gptq(weights[name], seen[name].H, bits, group))
        restore(layers, {name: out[name].weight for name in names})
    return out
