"""Without padding float32 losses and gradients are the same, and half width is no farther from them than autocast."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from test_queue import a_run
from tiny import NumberTokenizer, random_examples, randomize_adapters, tiny_llama
from transformers import (
    AutoModelForCausalLM,
    DogeConfig,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from peftbook import methods
from peftbook.core import specs
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.training import packed
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method, checkpointed_layers, trainable_state
from peftbook.training.loop import arithmetic, label_losses, losses, order_of, reordered, train
from peftbook.training.packed import is_packed, packed_rows

BUDGET = specs.Budget(tokens=30, batch_size=2, learning_rate=1e-2)
METHODS = {
    "full": methods.read({"kind": "full"}),
    "lora": LoRA(rank=2),
    "lora on two": LoRA(rank=2, targets=("q_proj", "v_proj")),
    "rslora": LoRA(rank=3, scaling="rank_stabilized"),
    "lora_fa": LoRA(rank=2, freeze_a=True),
    "dora": LoRA(rank=2, dora=True),
    "pissa": LoRA(rank=2, init="pissa"),
    "ia3": methods.read({"kind": "ia3"}),
    "prompt": PromptTuning(length=3, init="random"),
    "prefix": Prefix(length=3),
}
SIZES = {
    "vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def a_model(name: str, base: torch.nn.Module | None = None) -> torch.nn.Module:
    model = apply_method(base or tiny_llama(), METHODS[name], seed=1, tokenizer=NumberTokenizer())
    randomize_adapters(model)
    return model.train()


def shared_start(count: int, length: int = 5) -> list[Encoded]:
    """Examples of different lengths that share their first ids."""
    start = tuple(range(3, 3 + length))
    return [Encoded(start + one.ids, length + one.start, one.truncated) for one in random_examples(count)]


def result(model: torch.nn.Module, batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats of all label tokens and all gradients."""
    nats, _ = label_losses(model, batch, pad_id=2)
    nats.mean().backward()
    flat = torch.cat([value.grad.flatten() for value in trainable_state(model).values()])
    model.zero_grad(set_to_none=True)
    return nats.detach(), flat


def own_run(name: str) -> specs.Run:
    """A run on a reader's rows in bfloat16."""
    own = specs.Task(name=specs.OWN_ROWS, data_sha256="0" * 64)
    return a_run(0, method=METHODS[name], dtype="bf16", task=own)


def agree(model: torch.nn.Module, batch: list[Encoded]) -> None:
    """The same losses and gradients as in the order of the plain pass."""
    nats, gradient = result(model, batch)
    with reordered(model, "fp32"):
        same_nats, same_gradient = result(model, batch)
    torch.testing.assert_close(same_nats, nats, rtol=1e-5, atol=1e-5)
    assert (same_gradient - gradient).norm() < 2e-5 * gradient.norm()


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_the_same(name):
    agree(a_model(name), shared_start(6))


@pytest.mark.parametrize("batch", [random_examples(1), random_examples(7), shared_start(1), shared_start(3, 40)])
def test_whatever_the_rows_share(batch):
    agree(a_model("lora"), batch)


def test_long_rows_take_the_fused_attention(monkeypatch):
    monkeypatch.setattr(packed, "FUSED_TOKENS", 8)
    fused = mock.Mock(wraps=torch.nn.functional.scaled_dot_product_attention)
    model, batch = a_model("lora"), shared_start(4)
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", fused):
        agree(model, batch)
    assert any("enable_gqa" in call.kwargs for call in fused.mock_calls)


@pytest.mark.parametrize("name", ["lora", "lora on two"])
def test_biases_are_added(name):
    base = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    for part in base.modules():
        if isinstance(part, torch.nn.Linear) and part.bias is not None:
            torch.nn.init.normal_(part.bias)
    agree(a_model(name, base), shared_start(5))


def test_a_window_of_attention_keeps_the_padding():
    """A model that does not look at all that stands before is computed as it was."""
    model = a_model("lora", MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)).eval())
    with packed_rows(model):
        assert not is_packed(model)
    agree(model, shared_start(4))


def test_an_architecture_that_attends_in_its_own_way_keeps_the_padding():
    """One whose layers drop what they are not told of, and one whose attention adds something: neither fails nor
    differs, and each is left in the modes that its modules had."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    for config in (NemotronConfig(**sizes), DogeConfig(**sizes)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).train()
        model.model.layers[0].eval()
        before = {name: module.training for name, module in model.named_modules()}
        with packed.packed_rows(model):
            assert not packed.is_packed(model)
        assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "prefix"])
def test_on_a_readers_rows_half_width_is_no_farther_from_float32(name, checkpointed):
    """Less is rounded there than autocast rounds, so that losses and gradients are off by no more, but for luck."""
    model, batch, run = a_model(name), shared_start(6), own_run(name)
    exact = result(model, batch)
    off = {}
    for way in ("autocast", "own"):
        order = order_of(run, model) if way == "own" else contextlib.nullcontext()
        layers = checkpointed_layers(model) if checkpointed else contextlib.nullcontext()
        with order, layers, arithmetic(model, "bf16", "cpu"):
            found = result(model, batch)
        off[way] = [float((one - its).norm() / its.norm()) for one, its in zip(found, exact, strict=True)]
    for own, autocast in zip(off["own"], off["autocast"], strict=True):
        assert 0 < own < 1.25 * autocast


def test_long_rows_of_a_reader_are_no_farther_from_float32(monkeypatch):
    """They take the fused attention in half width too."""
    monkeypatch.setattr(packed, "FUSED_TOKENS", 8)
    test_on_a_readers_rows_half_width_is_no_farther_from_float32("lora", False)


def test_what_is_changed_in_place_is_seen():
    """Between two losses without gradients, and by an optimiser, whose fused step counts no version."""
    model, data = a_model("lora"), shared_start(5)
    for dtype in ("fp32", "bf16"):
        with reordered(model, dtype):
            before, _ = losses(model, data, pad_id=2, dtype=dtype)
            with torch.no_grad():
                for name, value in trainable_state(model).items():
                    if "lora_B" in name:
                        value.mul_(2)
            now, _ = losses(model, data, pad_id=2, dtype=dtype)
            train(model, data, BUDGET, seed=0, pad_id=2, dtype=dtype)
            train(model, data, BUDGET, seed=1, pad_id=2, dtype=dtype)
            trained, _ = losses(model, data, pad_id=2, dtype=dtype)
        with reordered(model, dtype):
            anew, _ = losses(model, data, pad_id=2, dtype=dtype)
        assert before != now != trained == anew


def test_in_half_width_the_order_is_a_readers_alone():
    """Published runs are computed as they were, bit for bit; on a reader's rows losses agree to the last places of the
    type."""
    model, batch = a_model("lora"), shared_start(4)
    published, own = a_run(0, method=METHODS["lora"], dtype="bf16"), own_run("lora")
    found = {}
    for name, run in (("plain", None), ("published", published), ("own", own)):
        with order_of(run, model) if run else contextlib.nullcontext():
            assert is_packed(model) == (name == "own")
            with arithmetic(model, "bf16", "cpu"):
                found[name] = result(model, batch)
    assert all(map(torch.equal, found["plain"], found["published"]))
    torch.testing.assert_close(found["own"][0], found["plain"][0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("other", [{"platform": "cuda"}, {"weights": "bf16"}])
def test_only_dense_float32_weights_on_a_processor_are_packed(other):
    run = own_run("lora")
    assert run.packed and not run.model_copy(update=other).packed


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_all_is_as_it_was_afterwards(dtype):
    """Weights, each in its own memory, forwards and attention come back bit by bit, also when something goes wrong."""
    model = a_model("lora on two")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kind = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), reordered(model, dtype):
        assert is_packed(model)
        with arithmetic(model, dtype, "cpu"):
            result(model, shared_start(3))
        raise ZeroDivisionError
    assert model.config._attn_implementation == kind
    assert all(torch.equal(value, before[name]) and value.is_contiguous() for name, value in model.state_dict().items())
    places = {value.untyped_storage().data_ptr() for value in model.parameters()}
    assert len(places) == len(list(model.parameters()))
    assert not any("forward" in vars(part) for part in model.modules())


def test_a_step_is_seen_by_the_next():
    """Three steps are three plain steps."""
    data, budget = shared_start(24), specs.Budget(tokens=10**6, batch_size=8, learning_rate=1e-2)
    budget = budget.model_copy(update={"tokens": sum(len(one.ids) for one in data)})
    plain, quick = a_model("lora"), a_model("lora")
    curve = train(plain, data, budget, seed=0, pad_id=2, dtype="fp32").losses
    with reordered(quick, "fp32"):
        assert train(quick, data, budget, seed=0, pad_id=2, dtype="fp32").losses == pytest.approx(curve, rel=1e-4)
    for name, value in trainable_state(plain).items():
        torch.testing.assert_close(trainable_state(quick)[name], value, rtol=1e-2, atol=1e-4)


def test_losses_of_a_split_are_each_examples_own():
    model, data = a_model("lora"), shared_start(9)
    nats, counts = losses(model, data, pad_id=2, batch_size=4, dtype="fp32")
    with reordered(model, "fp32"):
        same, same_counts = losses(model, data, pad_id=2, batch_size=4, dtype="fp32")
    assert same == pytest.approx(nats, rel=1e-5) and same_counts == counts
