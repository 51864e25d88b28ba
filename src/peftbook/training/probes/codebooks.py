"""Error of 4-bit codebooks: of weights, and of what a model with such weights computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.scratch.codebooks import codebook, linear_layers, round_trip
from peftbook.scratch.double_quant import double_quantize
from peftbook.scratch.nf4 import pack, quantize_blocks
from peftbook.tasks import file_sha256, get_task
from peftbook.training.encode import Encoded, encode_example
from peftbook.training.loop import losses
from peftbook.training.models import load_model
from peftbook.training.probes import Findings
from peftbook.training.probes.curves import prose_pieces
from peftbook.training.scoring import embedded_folder

DRAWS = 1 << 21  # values of one draw from N(0, 1)
AFFINE_BLOCK = 32
DETAIL_BLOCK = 64  # at this block size the error of every single matrix is kept


def codebook_error(probe: specs.Probe) -> Findings:
    """Weight error and use of the codes, for every codebook and block size of the settings.

    settings: source ("normal", "minilm", "small", "smollm2"), codebooks, blocks.
    Each matrix is divided by its root mean square and errors are pooled over all weights. In `curve`, by block size:
    mean squared and mean absolute error, entropy of the codes in bits, and the count of the fullest code over that
    of the emptiest. In `per_example`: the error of every matrix at block 64. Affine Q4_1, block 32, is a control.
    """
    weights = [w / w.square().mean().sqrt() for w in source_weights(probe)]
    names, blocks = names_and_blocks(probe)
    total = sum(w.numel() for w in weights)
    curve: dict[str, list[float]] = {"block": [float(block) for block in blocks]}
    per_example: dict[str, list[float]] = {}
    for name in names:
        statistics = [code_statistics(weights, name, block) for block in blocks]
        for block, (squared, absolute, counts) in zip(blocks, statistics, strict=True):
            share = counts / counts.sum()
            row = {
                "mse": math.fsum(squared) / total,
                "mae": math.fsum(absolute) / total,
                "entropy_bits": float(-(share[share > 0] * share[share > 0].log2()).sum()),
                "fullest_over_emptiest": float(counts.max() / counts.min().clamp(min=1)),
            }
            for measure, value in row.items():
                curve.setdefault(f"{name}_{measure}", []).append(significant(value))
            if block == DETAIL_BLOCK and len(weights) > 1:
                sizes = [w.numel() for w in weights]
                for measure, sums in (("mse", squared), ("mae", absolute)):
                    per_example[f"{name}_{measure}"] = [
                        significant(value / n) for value, n in zip(sums, sizes, strict=True)
                    ]
    control = [w - round_trip(w, "q4_1", AFFINE_BLOCK) for w in weights]
    return Findings(
        measurements={
            "values": total,
            "matrices": len(weights),
            "q4_1_mse": significant(math.fsum(float(e.double().square().sum()) for e in control) / total),
            "q4_1_mae": significant(math.fsum(float(e.double().abs().sum()) for e in control) / total),
        },
        curve=curve,
        per_example=per_example,
    )


def code_statistics(weights: list[Tensor], name: str, block: int) -> tuple[list[float], list[float], Tensor]:
    """Sums of squared and of absolute errors of each matrix, and how often each code is used, float64, (levels,)."""
    levels = codebook(name, block)
    squared, absolute, counts = [], [], torch.zeros(len(levels), dtype=torch.float64)
    for w in weights:
        codes, absmax = quantize_blocks(w, levels, block)
        stored = levels[codes.int()] * absmax.repeat_interleave(block)[: w.numel()]
        error = (w.flatten() - stored).double()
        squared.append(float(error.square().sum()))
        absolute.append(float(error.abs().sum()))
        counts += torch.bincount(codes.int(), minlength=len(levels))
    return squared, absolute, counts


def names_and_blocks(probe: specs.Probe) -> tuple[list[str], list[int]]:
    return list(probe.words("codebooks")), [int(block) for block in probe.numbers("blocks")]


def significant(value: float, digits: int = 7) -> float:
    return float(f"{value:.{digits}g}")


def source_weights(probe: specs.Probe) -> Iterator[Tensor]:
    """The weights of the source that the settings name, one matrix after another; N(0, 1) is one long vector."""
    source = probe.word("source")
    if source == "normal":
        yield torch.randn(DRAWS, generator=torch.Generator().manual_seed(probe.seed))
    elif source == "minilm":
        for name, value in load_file(encoder_file(probe)).items():
            if ".layer." in name and value.ndim == 2:
                yield value.float()
    elif source in ("small", "smollm2"):
        for part in linear_layers(load_model(probe.model).model).values():
            yield part.weight.detach()
    else:
        raise InputError(f"Unknown source {source!r}: choose normal, minilm, small or smollm2.")


def encoder_file(probe: specs.Probe):
    """The encoder's weights, checked against settings["encoder_sha256"]."""
    path = embedded_folder() / "model.safetensors"
    if (digest := file_sha256(path)) != probe.word("encoder_sha256"):
        raise InputError(
            f"{path.name} of the encoder has SHA-256 {digest[:12]}…, the probe names another: reinstall it."
        )
    return path


def quantised_loss(probe: specs.Probe) -> Findings:
    """Weight error and task error of a model for every codebook and block size: all its linears but the head.

    settings: source, codebooks, blocks, texts (how many examples).  seed: 0 is the model as it comes; any other is a
    copy of the small Llama that computes the same function with its units in another order (`permute_units`).
    In `per_example`: `full` and `<codebook>_<block>`, the summed nats of each text (for the encoder: the cosine
    distance of each text's embedding to that of the unquantised encoder, and no `full`), `label_tokens` and `kind`.
    In `measurements`: `<codebook>_<block>_mse` and `_mae` as in `codebook_error`. `q4_1_32` is the affine control.
    """
    model, texts, score = evaluated_model(probe)
    if probe.seed:
        if probe.word("source") != "small":
            raise InputError(
                f"Seed {probe.seed} names a copy of the small Llama: give source {probe.word('source')!r} seed 0."
            )
        permute_units(model, probe.seed)
    names, blocks = names_and_blocks(probe)
    layers = linear_layers(model)
    originals = {name: part.weight.detach().clone() for name, part in layers.items()}
    measurements: dict[str, float | int | None] = {"matrices": len(layers)}
    measurements["values"] = sum(w.numel() for w in originals.values())
    per_example: dict[str, list[float] | list[str]] = dict(texts)
    if (full := score()) is not None:
        per_example["full"] = full
    for name, block in [(name, block) for block in blocks for name in names] + [("q4_1", AFFINE_BLOCK)]:
        squared = absolute = 0.0
        with torch.no_grad():
            for layer, w in originals.items():
                stored = round_trip(w, name, block)
                error = (w - stored).double() / w.double().square().mean().sqrt()
                squared += float(error.square().sum())
                absolute += float(error.abs().sum())
                layers[layer].weight.copy_(stored)
        measurements[f"{name}_{block}_mse"] = significant(squared / int(measurements["values"] or 1))
        measurements[f"{name}_{block}_mae"] = significant(absolute / int(measurements["values"] or 1))
        per_example[f"{name}_{block}"] = score() or []
    return Findings(measurements=measurements, per_example=per_example)


@torch.no_grad()
def permute_units(model: Any, seed: int) -> None:
    """Put the units of a Llama's residual stream and of each MLP in another order: same function, other blocks.

    With permutation matrices P (one) and Q (one a layer): embedding E Pᵀ; matrices that read the stream W Pᵀ, those
    that write it P W; gains P g; gate and up Q W Pᵀ, down P W Qᵀ. Norm, products and activation commute with them, so
    the float function stays up to rounding, while a 4-bit code scales other weights together and rounds them otherwise.
    A head that is tied to the embedding follows it. In place.

    model: a LlamaForCausalLM with full-precision weights.  seed: of the permutations.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randperm(model.config.hidden_size, generator=generator)
    tables = {id(part): part for part in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    for table in tables.values():
        table.copy_(table[:, stream])
    for layer in model.model.layers:
        inner = torch.randperm(layer.mlp.down_proj.in_features, generator=generator)
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight.copy_(part.weight[inner][:, stream])
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[stream][:, inner])
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.weight.copy_(part.weight[:, stream])
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight[stream])
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.copy_(norm.weight[stream])
    model.model.norm.weight.copy_(model.model.norm.weight[stream])


Score = Callable[[], list[float] | None]


def evaluated_model(probe: specs.Probe) -> tuple[nn.Module, Mapping[str, list[float] | list[str]], Score]:
    """The model, what is known of its texts, and a function that gives each text's error with the model as it is."""
    if probe.word("source") == "minilm":
        return embedding_model(probe)
    loaded = load_model(probe.model)
    data, kinds = texts_of(probe, loaded.tokenizer)
    dtype = "fp32" if probe.word("source") == "small" else "bf16"

    def score() -> list[float]:
        nats, _ = losses(loaded.model, data, pad_id=loaded.tokenizer.pad_token_id, dtype=dtype)
        return [significant(value) for value in nats]

    known: dict[str, list[float] | list[str]] = {
        "label_tokens": [float(example.label_tokens) for example in data],
        "kind": kinds,
    }
    return loaded.model, known, score


def texts_of(probe: specs.Probe, tokenizer) -> tuple[list[Encoded], list[str]]:
    """Held-out texts: functions and prose for the small model, docstrings with their prompt and prose for SmolLM2.

    Of those of the small model a `stride` in the settings takes every so manieth.
    """
    count = probe.whole("texts")
    if probe.word("source") == "small":
        from peftbook.training.small_llama import held_out

        data, kinds = held_out(tokenizer, "test", count)
        kept = [at for at, kind in enumerate(kinds) if kind != "sentence"]
        kept = kept[:: probe.whole("stride") if "stride" in probe.settings else 1]
        return [data[at] for at in kept], [kinds[at] for at in kept]
    task = get_task("docstrings")
    pairs = [encode_example(tokenizer, task, example, 512) for example in task.splits["validation"][:count]]
    prose = prose_pieces(tokenizer)
    return pairs + prose, ["docstring"] * len(pairs) + ["prose"] * len(prose)


def embedding_model(probe: specs.Probe) -> tuple[nn.Module, Mapping[str, list[float] | list[str]], Score]:
    """The MiniLM encoder; the error of a text is 1 − cosine of its mean-pooled embedding and the unquantised one's."""
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_file(probe).parent
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = [example.target for example in get_task("docstrings").splits["test"][: probe.whole("texts")]]

    @torch.no_grad()
    def embed() -> Tensor:
        rows = []
        for at in range(0, len(texts), 50):
            batch = tokenizer(texts[at : at + 50], padding=True, return_tensors="pt")
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            rows.append((states * mask).sum(1) / mask.sum(1))
        return nn.functional.normalize(torch.cat(rows).double(), dim=1)

    start = embed()
    untouched = [True]

    def score() -> list[float] | None:
        if untouched:
            untouched.clear()
            return None
        return [significant(value) for value in (1 - (start * embed()).sum(1)).tolist()]

    return model.encoder, {"kind": ["sentence"] * len(texts)}, score


def double_quant_cost(probe: specs.Probe) -> Findings:
    """Stored bytes and loss with block constants in 32 bits (`none`) and in 8 bits (`dynamic8`), NF4.

    settings: source ("small" or "smollm2"), blocks, texts. Bytes are those of the arrays that are kept: packed codes,
    constants, constants of the constants, offset. In `per_example`: `full` and `<block>_<kind>`, nats of each text.
    """
    model, texts, score = evaluated_model(probe)
    layers = linear_layers(model)
    originals = {name: part.weight.detach().clone() for name, part in layers.items()}
    parameters = sum(w.numel() for w in originals.values())
    measurements: dict[str, float | int | None] = {"parameters": parameters}
    per_example: dict[str, list[float] | list[str]] = {**texts, "full": score() or []}
    for block in map(int, probe.numbers("blocks")):
        for kind in ("none", "dynamic8"):
            stored_bytes, squared = 0, 0.0
            with torch.no_grad():
                for name, w in originals.items():
                    stored_bytes += sum(part.nbytes for part in kept_arrays(w, block, kind))
                    stored = round_trip(w, "nf4", block, kind == "dynamic8")
                    squared += float(((w - stored).double() / w.double().square().mean().sqrt()).square().sum())
                    layers[name].weight.copy_(stored)
            measurements[f"{block}_{kind}_bytes"] = stored_bytes
            measurements[f"{block}_{kind}_mse"] = significant(squared / parameters)
            per_example[f"{block}_{kind}"] = score() or []
    return Findings(measurements=measurements, per_example=per_example)


def kept_arrays(w: Tensor, block: int, kind: str) -> list[Tensor]:
    """The arrays that a matrix stored in NF4 consists of."""
    codes, absmax = quantize_blocks(w, codebook("nf4"), block)
    return [pack(codes), *(double_quantize(absmax) if kind == "dynamic8" else [absmax])]
