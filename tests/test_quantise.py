"""Dense quantised bases: bitsandbytes as the oracle, what corrected starts correct, and the studies built on them."""

from __future__ import annotations

import copy

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import small_llama_build
import torch
from tiny import random_examples, randomize_adapters, tiny_llama, tiny_task
from transformers import AutoModelForCausalLM

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.methods import Method
from peftbook.methods.qlora import QLoRA, init_corrected, top_singular
from peftbook.methods.untuned import Untuned
from peftbook.scratch.codebooks import linear_layers, quantise_dense, round_trip
from peftbook.studies import double_quant, get_study, weight_error
from peftbook.tasks import get_task
from peftbook.training import small_llama
from peftbook.training.encode import Encoded
from peftbook.training.execute import prepare
from peftbook.training.forward import apply_method, causal_model, trainable_state
from peftbook.training.loop import losses
from peftbook.training.models import keep_linear4bit_layout, load_model
from peftbook.training.probes import measure

QLORA = {"rank": 4, "alpha": 12.0}


def normal(shape: torch.Size) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(8))


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 43).view(2, 20)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(("quant", "double"), [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)])
def test_dense_base_computes_what_bitsandbytes_computes(folder, quant, double):
    """Same logits from dequantised weights as from Linear4bit in float32.

    bitsandbytes looks 8-bit constants up in a table and may miss the nearest level by a hair, hence the tolerance.
    """
    config = QLoRA(quant=quant, double_quant=double).quantization(torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    keep_linear4bit_layout(theirs)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = logits(plain)
    ours = logits(quantise_dense(plain, quant, double_quant=double))
    error = (ours - logits(theirs)).norm()
    assert error < (2e-3 if double else 1e-5) * ours.norm()
    assert error < 0.05 * (ours - before).norm()


def effective(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a peft model computes with: base plus γBA, by the name of the layer."""
    merged = copy.deepcopy(model).merge_and_unload()
    return {name: part.weight.detach() for name, part in linear_layers(merged).items()}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return sum(float((first[name] - second[name]).square().sum()) for name in second) ** 0.5


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: part.weight.detach().clone() for name, part in linear_layers(model).items()}


def original() -> dict[str, torch.Tensor]:
    return weights_of(tiny_llama())


def start(**fields) -> torch.nn.Module:
    return apply_method(tiny_llama(), QLoRA(**{**QLORA, "quant": "int4", **fields}), seed=0)


@pytest.mark.parametrize("quant", ["nf4", "int4", "fp4"])
def test_loftq_start_is_nearer_to_the_weights_than_plain_quantisation(quant):
    """‖W − Q − γBA‖ falls; and rank can only help."""
    plain = weights_of(quantise_dense(tiny_llama(), quant))
    small, large = (effective(start(quant=quant, init="loftq", rank=rank)) for rank in (4, 16))
    at_start = distance(plain, original())
    assert distance(large, original()) < distance(small, original()) < 0.97 * at_start


def test_pissa_start_is_the_weights_up_to_the_error_of_the_residual():
    """W − Q − γBA is exactly what quantising W − (top singular part) loses, and that is less than plain."""
    weights, found = original(), effective(start(init="pissa"))
    for name, w in weights.items():
        B, A = top_singular(w, 4)
        residual = w - B @ A
        expected = residual - round_trip(residual, "int4", 64, True)
        torch.testing.assert_close(w - found[name], expected, atol=1e-5, rtol=0)
    plain = {name: round_trip(w, "int4", 64, True) for name, w in weights.items()}
    assert distance(found, weights) < distance(plain, weights)


@pytest.mark.parametrize("init", ["loftq", "pissa"])
def test_an_unrounded_base_has_the_start_without_the_error(init):
    """W − γBA and γBA add up to W, with the factors of the rounded one; layers without a start stay as they are."""
    rounded, control = start(init=init), start(init=init, rounded=False)
    weights, found = original(), effective(control)
    for name, w in weights.items():
        torch.testing.assert_close(found[name], w, atol=1e-5, rtol=0)
    theirs = {name: value for name, value in rounded.named_parameters() if ".lora_" in name}
    for name, value in control.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(value, theirs[name], atol=0, rtol=0)
    torch.testing.assert_close(logits(control.eval()), logits(tiny_llama()), atol=1e-4, rtol=0)


def test_an_unrounded_base_without_a_start_is_refused():
    """It would be LoRA by another name."""
    with pytest.raises(ValueError, match="use lora"):
        QLoRA(rounded=False)


@pytest.mark.parametrize("init", ["loftq", "pissa"])
def test_corrected_start_does_not_depend_on_the_scaling(init):
    """γBA is set by the weights alone: α and the kind of scaling are divided out."""
    one = effective(start(init=init))
    for fields in ({"alpha": 64.0}, {"scaling": "rank_stabilized"}):
        other = effective(start(init=init, **fields))
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0)


def test_top_singular_part_is_the_best_of_its_rank():
    """What is left is the rest of the spectrum (Eckart and Young)."""
    w = normal(torch.Size([64, 128]))
    B, A = top_singular(w, 8)
    rest = torch.linalg.svdvals(w)[8:]
    torch.testing.assert_close((w - B @ A).norm(), rest.norm())
    assert torch.linalg.matrix_rank(B @ A) == 8
    torch.testing.assert_close(B.norm(dim=0), A.norm(dim=1))


@pytest.mark.parametrize("init", ["loftq", "pissa"])
@pytest.mark.parametrize("quant", ["nf4", "int4"])
def test_corrected_start_computes_more_nearly_what_the_model_computes(quant, init):
    """Before any training its logits are nearer to those of the full-precision model than plain rounding's."""
    full, plain = logits(tiny_llama()), logits(quantise_dense(tiny_llama(), quant))
    corrected = logits(start(quant=quant, init=init, rank=16).eval())
    assert (corrected - full).norm() < 0.9 * (plain - full).norm()


@pytest.mark.parametrize("init", ["kaiming", "loftq", "pissa"])
def test_merging_a_dense_quantised_base_changes_nothing(init):
    """W' = Q + γBA holds every value that the layers computed with; embeddings and head are as they were."""
    tuned = start(init=init).eval()
    randomize_adapters(tuned)
    before = logits(tuned)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(logits(merged), before, atol=1e-4, rtol=1e-4)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    assert torch.equal(merged.get_input_embeddings().weight, tiny_llama().get_input_embeddings().weight)


def test_head_and_embeddings_of_their_own_are_left_alone():
    """An untied head is a linear layer, yet none of the decoder's."""
    model = tiny_llama()
    model.lm_head.weight = torch.nn.Parameter(normal(model.lm_head.weight.shape))
    kept = {name: value.detach().clone() for name, value in model.named_parameters() if "proj" not in name}
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < set(kept)
    quantise_dense(model, "nf4")
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in kept.items())


def prepared(folder, method: Method) -> torch.nn.Module:
    """The model as a run of this method gets it, before training."""
    budget = None if isinstance(method, Untuned) else specs.Budget(tokens=100, learning_rate=1e-3)
    model = specs.Model(name=str(folder))
    return prepare(specs.Run(model=model, task=tiny_task().spec, method=method, budget=budget), tiny_task()).model


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int4"])
def test_untuned_run_on_four_bits_computes_with_the_base_that_qlora_starts_from(folder, quant):
    """The gap before tuning is that of the quantised base, to float32's rounding of its constants; nothing trains."""
    untuned, tuned = (prepared(folder, method) for method in (Untuned(quant=quant), QLoRA(quant=quant)))
    found, full = weights_of(untuned), weights_of(prepared(folder, Untuned()))
    assert not trainable_state(untuned)
    for name, part in causal_model(tuned).named_modules():
        if not hasattr(part, "lora_A"):
            continue
        weight = part.get_base_layer().weight
        if (state := getattr(weight, "quant_state", None)) is not None:
            weight = bnb.dequantize_4bit(weight.data, state)
        plain = (found[name] - full[name]).norm()
        assert (found[name] - weight).norm() < 0.05 * plain and plain > 0.03 * full[name].norm()
    assert torch.equal(untuned.get_input_embeddings().weight, causal_model(tuned).get_input_embeddings().weight)


def test_untuned_losses_show_the_cost_of_the_type(folder):
    """What the record of an untuned run holds differs from 16 bit by more than rounding."""
    nats = [
        losses(prepared(folder, Untuned(quant=quant)), random_examples(8), pad_id=2, dtype="fp32")[0]
        for quant in ("", "nf4", "int4")
    ]
    full, nf4, int4 = map(np.array, nats)
    assert np.abs(nf4 - full).min() > 1e-4 and np.abs(int4 - full).min() > 1e-4


def test_int4_base_lies_on_fifteen_levels_and_only_adapters_train(folder):
    """Through the doors that a run uses: load_model, then apply_method."""
    method = QLoRA(quant="int4", double_quant=False, **QLORA)
    loaded = load_model(specs.Model(name=str(folder)), method)
    tuned = apply_method(loaded.model, method, seed=0)
    assert all("lora_" in name for name in trainable_state(tuned))
    layer = tuned.get_base_model().model.layers[0].mlp.down_proj
    blocks = layer.base_layer.weight.detach().view(-1, 64)
    codes = 7 * blocks / blocks.abs().amax(1, keepdim=True)
    torch.testing.assert_close(codes, codes.round(), atol=1e-5, rtol=0)
    assert not layer.lora_B["default"].weight.any()


def test_only_what_bitsandbytes_lacks_is_held_dense():
    """NF4 and FP4 with a plain start stay in 4 bits."""
    assert QLoRA().packed and QLoRA(quant="fp4").packed
    assert not QLoRA(quant="int4").packed
    assert not QLoRA(init="loftq").packed


def test_layers_without_an_adapter_are_quantised_as_they_are():
    """A start is for the adapted layers and targets only; embeddings and norms stay."""
    model, weights = tiny_llama(), original()
    method = QLoRA(init="loftq", targets=("q_proj",), layers=(1,), **QLORA)
    starts = init_corrected(model, method)
    assert list(starts) == ["model.layers.1.self_attn.q_proj"]
    whole_name = method.model_copy(update={"targets": ("self_attn.q_proj",)})
    assert list(init_corrected(tiny_llama(), whole_name)) == list(starts)
    for name, part in linear_layers(model).items():
        plain = round_trip(weights[name], "nf4", 64, True)
        assert torch.equal(part.weight, plain) == (name not in starts)
    torch.testing.assert_close(model.get_input_embeddings().weight, tiny_llama().get_input_embeddings().weight)


def test_a_start_without_a_quantised_form_is_refused():
    """olora would be computed from the quantised weights and change nothing that it claims."""
    with pytest.raises(InputError, match="olora"):
        init_corrected(tiny_llama(), QLoRA(init="olora"))


def test_a_corrected_start_under_dora_is_refused():
    """DoRA's magnitudes are taken from the base alone, so the start would not be W."""
    with pytest.raises(InputError, match="dora = False"):
        init_corrected(tiny_llama(), QLoRA(init="loftq", dora=True))


def test_corrected_base_trains_as_any_other():
    """A step away from the start the loss is finite and the gradient reaches A and B."""
    tuned = start(init="loftq")
    nats, counts = losses(tuned, random_examples(4), pad_id=2, dtype="fp32")
    assert sum(counts) > 0 and np.isfinite(nats).all()
    tuned(input_ids=torch.arange(3, 23)[None], labels=torch.arange(3, 23)[None]).loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in trainable_state(tuned).values())


@pytest.fixture
def short_texts(monkeypatch):
    """Held-out texts of the small model cut to the starts of a few functions."""

    def cut(tokenizer, split="test", limit=0):
        texts = [one.input for one in get_task("docstrings").splits[split][:3]]
        starts = [small_llama.encode_document(tokenizer, text)[:64] for text in texts]
        return [Encoded(tuple(ids), 1, True) for ids in starts], ["function"] * len(starts)

    monkeypatch.setattr(small_llama, "held_out", cut)


def test_loss_probe_measures_each_copy_from_the_same_weights(short_texts):
    """Order does not matter: every copy is made from the original weights, and coarse codes cost more."""
    settings = weight_error.probe("small").settings
    changed = {"codebooks": ("e3m0", "nf4"), "blocks": (64.0,), "texts": 3}
    one = measure(weight_error.probe("small").model_copy(update={"settings": {**settings, **changed}}))
    reverse = {**changed, "codebooks": ("nf4", "e3m0")}
    two = measure(weight_error.probe("small").model_copy(update={"settings": {**settings, **reverse}}))
    assert one.per_example["nf4_64"] == two.per_example["nf4_64"] != one.per_example["full"]
    assert one.measurements == two.measurements
    assert one.measurements["nf4_64_mse"] < one.measurements["e3m0_64_mse"]
    assert sum(one.per_example["full"]) < sum(one.per_example["e3m0_64"])
    assert set(one.per_example) == {"full", "nf4_64", "e3m0_64", "q4_1_32", "label_tokens", "kind"}


def test_encoder_probe_gives_distances_from_the_unquantised_encoder():
    """No distance is negative beyond rounding, and a coarse code is further away."""
    probe = weight_error.probe("minilm")
    settings = {**probe.settings, "codebooks": ("e3m0", "nf4"), "blocks": (64.0,), "texts": 4}
    found = measure(probe.model_copy(update={"settings": settings})).per_example
    assert "full" not in found and min(found["nf4_64"]) > -1e-9
    assert sum(found["nf4_64"]) < sum(found["e3m0_64"]) and len(found["kind"]) == 4


def test_double_quant_probe_counts_the_arrays(short_texts):
    """Half a byte a weight, four bytes a block; then one byte a block, four for 256 blocks and one offset a matrix."""
    found = measure(double_quant.probe("small"))
    parameters = found.measurements["parameters"]
    matrices = len(linear_layers(small_llama_build.untrained()))
    for block in (64, 256):
        assert found.measurements[f"{block}_none_bytes"] == parameters // 2 + 4 * parameters // block
        less = parameters // 2 + parameters // block + 4 * parameters // (256 * block)
        over = found.measurements[f"{block}_dynamic8_bytes"] - less
        assert 4 * matrices <= over <= 8 * matrices  # the last block of constants may be short
        assert found.measurements[f"{block}_dynamic8_mse"] == pytest.approx(
            found.measurements[f"{block}_none_mse"], rel=0.02
        )
    assert found.per_example["64_none"] != found.per_example["64_dynamic8"]


@pytest.mark.parametrize(
    ("extra", "saved", "bits", "loss"),
    [
        (0.0, 0.373, "reproduced", "reproduced"),
        (0.05, 0.373, "reproduced", "refuted"),
        (0.0, 0.3, "refuted", "reproduced"),
    ],
)
def test_double_quant_verdicts_follow_bytes_and_losses(tmp_path, extra, saved, bits, loss):
    """Each claim has its own verdict."""
    store, probe = Store(tmp_path), double_quant.probe("small")
    rng = np.random.default_rng(2)
    text, count = rng.normal(3, 0.3, 60), 1 << 20
    per_example: dict = {"label_tokens": [10.0] * 60, "kind": ["prose"] * 60, "full": (10 * text).tolist()}
    measurements: dict = {"parameters": count}
    for block, less in ((64, saved), (256, 0.0933)):
        plain = 4 + 32 / block
        for kind, stored in (("none", plain), ("dynamic8", plain - less)):
            measurements |= {f"{block}_{kind}_bytes": int(count * stored / 8), f"{block}_{kind}_mse": 0.008}
            cost = 0.1 + (extra if kind == "dynamic8" else 0)
            per_example[f"{block}_{kind}"] = (10 * (text + cost + rng.normal(0, 1e-3, 60))).tolist()
    store.save(Record(key=probe.key, spec=probe, measurements=measurements, per_example=per_example))
    found = {name: get_study(name).verdict(store) for name in ("double_quant_bits", "double_quant_loss")}
    assert (found["double_quant_bits"].outcome, found["double_quant_loss"].outcome) == (bits, loss)
    quantities = double_quant.quantities(store)
    assert all(set(one.quantities) <= set(quantities) for one in found.values())
