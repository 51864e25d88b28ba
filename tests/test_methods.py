"""Methods: exactly the method's parameters train, and evaluating a 4-bit model does not ruin its gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    SEVEN,
    NumberTokenizer,
    random_examples,
    randomize_adapters,
    real_tokenizer,
    tiny_llama,
)
from torch import nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.methods import Method, presets, usual
from peftbook.methods.adapter import Adapter
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.norm import NormTuning
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning, common_tokens, virtual_tokens
from peftbook.methods.qlora import QLoRA
from peftbook.methods.vera import VeRA
from peftbook.training.forward import (
    apply_method,
    causal_model,
    hidden_states,
    trainable_state,
)
from peftbook.training.generate import generate
from peftbook.training.loop import label_losses, losses
from peftbook.training.models import load_model

IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(1))


def applied(method: Method, seed: int = 0, model: nn.Module | None = None) -> nn.Module:
    return apply_method(model or tiny_llama(), method, seed, NumberTokenizer())


def logits(model: nn.Module) -> torch.Tensor:
    """At the text's own positions, as the loop computes them."""
    with torch.no_grad():
        return causal_model(model).lm_head(hidden_states(model.eval(), IDS))


@pytest.mark.parametrize("rank", [1, 5, 16])
@pytest.mark.parametrize("targets", [SEVEN, ("q_proj", "v_proj"), ("down_proj",), ("self_attn.o_proj",)])
def test_lora_trains_r_times_the_sum_of_the_sides(rank, targets):
    """Σ r(d_in + d_out) over the named layers, all of it in A and B."""
    expected = sum(
        rank * (part.in_features + part.out_features)
        for name, part in tiny_llama().named_modules()
        if isinstance(part, nn.Linear) and name.endswith(targets)
    )
    state = trainable_state(applied(LoRA(rank=rank, targets=targets)))
    assert sum(value.numel() for value in state.values()) == expected > 0
    assert all("lora_A" in name or "lora_B" in name for name in state)
    assert {value.dtype for value in state.values()} == {torch.float32}


IDENTITIES = [given for given in presets() if given.method.trains and given.method.kind not in ("prompt", "prefix")]


@pytest.mark.parametrize("given", IDENTITIES, ids=lambda given: given.name)
def test_every_method_but_the_prompts_starts_as_the_model_itself(given):
    """To float32's rounding, as PiSSA and OLoRA move a part of W into BA; with B = 0 bit by bit."""
    found, wanted = logits(applied(given.method)), logits(tiny_llama())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert given.name != "lora" or torch.equal(found, wanted)


def count(method: Method) -> int:
    return sum(value.numel() for value in trainable_state(applied(method)).values())


def test_trained_values_are_what_the_formulas_say():
    """d = 64 hidden, 32 key and value, 128 inner, two layers; two adapters a layer, two gains a layer and one more."""
    d, kv, inner, layers, seven = 64, 32, 128, 2, SEVEN
    assert count(Adapter(width=4)) == layers * 2 * (2 * 4 * d + 4 + d)
    assert count(IA3()) == layers * (2 * kv + inner)
    assert count(NormTuning()) == (2 * layers + 1) * d
    assert count(Prefix(length=5)) == 5 * layers * 2 * kv
    outputs = {"q_proj": d, "k_proj": kv, "v_proj": kv, "o_proj": d, "gate_proj": inner, "up_proj": inner}
    assert count(VeRA(rank=8)) == layers * sum(8 + outputs.get(name, d) for name in seven)
    assert count(LoRA(rank=4, freeze_a=True)) < count(LoRA(rank=4)) < count(LoRA(rank=4, dora=True))
    assert 2 * count(LoRA(rank=4, layers=(1,))) == count(LoRA(rank=4))


def test_rank_stabilised_scaling_is_alpha_over_the_root():
    """At equal A and B the update is √r times that of α/r."""
    plain, stable = (applied(LoRA(rank=4, scaling=name)) for name in ("standard", "rank_stabilized"))
    for model in (plain, stable):
        randomize_adapters(model)
    name = "model.layers.1.mlp.down_proj"
    one, two = (causal_model(model).get_submodule(name).get_delta_weight("default") for model in (plain, stable))
    torch.testing.assert_close(two, one * 4**0.5)


def test_pissa_holds_the_leading_singular_directions():
    """γBA is the best rank-r approximation of W (Eckart and Young), and W − γBA is frozen."""
    model = applied(LoRA(rank=4, init="pissa"))
    name = "model.layers.0.self_attn.q_proj"
    layer, W = causal_model(model).get_submodule(name), tiny_llama().get_submodule(name).weight.detach()
    left, values, right = torch.linalg.svd(W)
    best = left[:, :4] * values[:4] @ right[:4]
    torch.testing.assert_close(layer.get_delta_weight("default").detach(), best, rtol=1e-3, atol=1e-4)
    assert not layer.base_layer.weight.requires_grad


@torch.no_grad()
def test_a_prefix_starts_as_the_keys_and_values_of_its_tokens():
    """So at the start, prefix tuning computes what the model computes with those tokens in front."""
    model = applied(Prefix(length=3), seed=7)
    front = common_tokens(NumberTokenizer(), 96, 3, seed=7)
    together = torch.cat([front.expand(2, -1), IDS], dim=1)
    expected = tiny_llama()(input_ids=together).logits[:, 3:]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # peft uses the old name
def test_the_prefix_equals_pefts_own_forward():
    """peft builds the same cache from its embedding of virtual tokens."""
    model = applied(Prefix(length=3))
    with torch.no_grad():
        virtual_tokens(model).normal_(generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(IDS)
        theirs = model(input_ids=IDS, attention_mask=mask).logits
    torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)


def test_lora_adds_alpha_over_r_times_b_a():
    """h = Wx + (α/r) BAx, layer by layer against the matrices, to float32's rounding."""
    model = applied(LoRA(rank=4, alpha=6))
    randomize_adapters(model)
    layer = causal_model(model).model.layers[1].mlp.down_proj
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    W, A, B = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), x @ (W + 6 / 4 * B @ A).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [one for one in usual().values() if one.trains], ids=lambda method: method.kind)
def test_frozen_weights_get_no_gradient(method):
    """Neither memory nor time is spent on them; every trained parameter gets one."""
    model = applied(method).train()
    for value in trainable_state(model).values():
        if not value.any():  # behind a factor of zero no gradient is seen
            value.data.normal_(std=0.1, generator=torch.Generator().manual_seed(5))
    nats, _ = label_losses(model, random_examples(3), pad_id=2)
    nats.sum().backward()
    trained = trainable_state(model)
    assert all((value.grad is not None) == (name in trained) for name, value in model.named_parameters())
    assert all(value.grad.abs().sum() > 0 for value in trained.values())


@pytest.mark.parametrize("method", [LoRA(), PromptTuning(), PromptTuning(init="random")])
def test_the_seed_fixes_the_initial_values(method):
    """Same seed, same bits, whatever ran before; another seed, other values."""
    one = trainable_state(applied(method, seed=1))
    torch.rand(7)
    same, other = trainable_state(applied(method, seed=1)), trainable_state(applied(method, seed=2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


# ---- bad input


@pytest.mark.parametrize("targets", [("query",), ("q_proj", "vproj"), (), ("norm",), ("proj",)])
def test_targets_that_match_no_linear_layer_are_refused(targets):
    """peft would skip an unknown name beside a known one, and the record would claim layers that were not adapted."""
    with pytest.raises(InputError, match=r"match no linear layer of this model: choose from .*q_proj") as caught:
        applied(LoRA(targets=targets))
    assert all(name in str(caught.value) for name in targets if name != "q_proj")


def test_a_rank_above_the_width_runs_and_warns():
    """BA cannot have a higher rank than the layer's smaller side, 32 here; the reader is told."""
    with pytest.warns(UserWarning, match=r"rank 40 is above the smallest adapted width 32: the effective rank .* 32"):
        model = applied(LoRA(rank=40, targets=("k_proj",)))
    randomize_adapters(model, std=1.0)
    layer = causal_model(model).model.layers[0].self_attn.k_proj
    assert torch.linalg.matrix_rank(layer.lora_B["default"].weight @ layer.lora_A["default"].weight) == 32
    applied(LoRA(rank=32, targets=("k_proj",)))  # no warning: warnings are errors


def test_an_empty_initial_text_is_refused():
    """There would be no embedding to start from."""
    with pytest.raises(InputError, match="init = 'text' needs a non-empty init_text"):
        applied(PromptTuning(init="text"))


# ---- prompt tuning


def prompt_of(method: PromptTuning, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The initial soft prompt (length, d) and the embedding table (V, d)."""
    model = applied(method, seed)
    ((_, prompt),) = trainable_state(model).items()
    return prompt.detach(), causal_model(model).get_input_embeddings().weight.detach()


def test_random_prompts_are_uniform_on_half():
    """U(−0.5, 0.5): Lester et al. 2021, section 3.2."""
    prompt, _ = prompt_of(PromptTuning(length=100, init="random"))
    assert prompt.abs().max() <= 0.5
    assert prompt.std().item() == pytest.approx(12**-0.5, rel=0.05) and abs(prompt.mean().item()) < 0.02


def test_vocabulary_prompts_are_embeddings_of_ordinary_tokens():
    """Rows of the table, control tokens left out."""
    prompt, table = prompt_of(PromptTuning(length=60, init="vocabulary"))
    rows = [(table == one).all(dim=1).nonzero().flatten().tolist() for one in prompt]
    assert all(len(found) == 1 for found in rows)
    assert not {found[0] for found in rows} & set(NumberTokenizer.all_special_ids)


@pytest.mark.parametrize("length", [2, 3, 8])
def test_text_prompts_repeat_the_texts_embeddings(length):
    """Repeated or cut to the length."""
    prompt, table = prompt_of(PromptTuning(length=length, init="text", init_text="11 12 13"))
    assert torch.equal(prompt, table[torch.tensor(([11, 12, 13] * 3)[:length])])


def test_a_text_prompt_equals_the_text_in_front():
    """Before training, virtual tokens initialised from a text are that text: same logits at the real tokens."""
    model = applied(PromptTuning(length=3, init="text", init_text="11 12 13"))
    base = tiny_llama()
    front = torch.cat([torch.tensor([[11, 12, 13]]).expand(2, -1), IDS], dim=1)
    with torch.no_grad():
        expected = base(front).logits[:, 3:]
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


# ---- saving


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(length=3, init="random")])
def test_peft_reads_what_is_saved(method, tmp_path):
    """A reader can use the adapter without this package; the folder holds safetensors, JSON and a card."""
    from peft import PeftModel

    model = applied(method)
    randomize_adapters(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}


# ---- the bitsandbytes trap (AVX512-BF16 processors)

quiet = pytest.mark.filterwarnings("ignore:.*(gemv_4bit|gemm_4bit|Merge lora module to 4-bit).*:UserWarning")


def four_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    import bitsandbytes

    return {name: part for name, part in model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)}


def dequantised(layer: nn.Module) -> torch.Tensor:
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()


def qlora_and_dense_twin(folder, method: QLoRA) -> tuple[nn.Module, nn.Module]:
    """A QLoRA model as the package loads it, and a dense LoRA model whose base holds the same dequantised weights.

    The 4-bit layers compute in float32 here, so that the two differ by rounding alone.
    """
    spec = specs.Model(name=str(folder), revision="0" * 64)
    quantised, dense = load_model(spec, method).model, load_model(spec).model
    with torch.no_grad():
        for name, layer in four_bit_layers(quantised).items():
            layer.compute_dtype = torch.float32
            dense.get_submodule(name).weight.copy_(dequantised(layer))
    twin = apply_method(dense, LoRA(rank=method.rank), seed=0)
    model = apply_method(quantised, method, seed=0)
    for one in (model, twin):
        randomize_adapters(one)
    return model, twin


def evaluate_both_ways(model: nn.Module) -> None:
    """What the book does between training and the next step: label loss and greedy texts, eval mode, no gradient."""
    losses(model, random_examples(4), pad_id=2, dtype="fp32")
    losses(model, random_examples(4), pad_id=2, dtype="bf16")
    generate(model, real_tokenizer(), [[5, 6, 7]], max_new_tokens=3)


def lora_gradient(model: nn.Module) -> torch.Tensor:
    model.train()
    nats, _ = label_losses(model, random_examples(6), pad_id=2)
    nats.mean().backward()
    flat = torch.cat([value.grad.flatten() for value in trainable_state(model).values()])
    model.zero_grad(set_to_none=True)
    return flat


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@quiet
@pytest.mark.parametrize("method", [QLoRA(rank=2), QLoRA(rank=2, quant="fp4", double_quant=False)])
def test_an_evaluation_leaves_qlora_gradients_those_of_a_dense_model(folder, method):
    """The law that bitsandbytes breaks by itself on some CPUs: see the next test."""
    model, twin = qlora_and_dense_twin(folder, method)
    assert list(trainable_state(model)) == list(trainable_state(twin))
    expected = lora_gradient(twin)
    assert relative(lora_gradient(model), expected) < 1e-4
    evaluate_both_ways(model)
    assert relative(lora_gradient(model), expected) < 1e-4


@quiet
def test_without_the_guard_the_trap_exists_where_the_processor_has_it(folder):
    """On AVX512-BF16 one evaluation repacks the weights and the gradients are wrong; elsewhere nothing is repacked.

    If this fails after an upgrade, bitsandbytes has changed: the guard may no longer be needed.
    """
    from bitsandbytes.functional import has_avx512bf16

    model, twin = qlora_and_dense_twin(folder, QLoRA(rank=2))
    layers = four_bit_layers(model).values()
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = has_avx512bf16()
    evaluate_both_ways(model)
    error = relative(lora_gradient(model), lora_gradient(twin))
    repacked = [bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False)) for layer in layers]
    if has_avx512bf16():
        assert all(repacked) and error > 0.3
    else:
        assert not any(repacked) and error < 1e-4


@quiet
def test_merging_after_an_evaluation_equals_merging_before(folder):
    """Merged weights are requantised: the same 4-bit weights come out, and they are near the dense merge."""
    evaluated, twin = qlora_and_dense_twin(folder, QLoRA(rank=2))
    fresh, _ = qlora_and_dense_twin(folder, QLoRA(rank=2))
    evaluate_both_ways(evaluated)
    one, two = (four_bit_layers(model.merge_and_unload()) for model in (evaluated, fresh))
    dense = twin.merge_and_unload()
    assert one.keys() == two.keys() and len(one) == 14
    for name in one:
        assert torch.equal(dequantised(one[name]), dequantised(two[name]))
        assert relative(dequantised(one[name]), dense.get_submodule(name).weight) < 0.15


@quiet
def test_qlora_trains_what_lora_trains(folder):
    """The same A and B, in float32; the base is packed and frozen."""
    model, twin = qlora_and_dense_twin(folder, QLoRA(rank=2))
    ours, theirs = trainable_state(model), trainable_state(twin)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(layer.weight.requires_grad for layer in four_bit_layers(model).values())
