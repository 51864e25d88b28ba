"""A base in bfloat16 and checkpointed layers: the same training in less memory, and the forecasts know of both."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_queue import a_run
from test_time_model import rates
from tiny import NumberTokenizer, random_examples, randomize_adapters, tiny_llama, tiny_task
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from peftbook import methods
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.evidence.results import describe
from peftbook.memory import DecoderShape, shape_from_config, training_step
from peftbook.memory.shapes import as_config
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.runtime.resources import training_setup
from peftbook.studio.trained_model import load_trained, merge
from peftbook.training import estimate, execute
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method, checkpointed_layers, is_checkpointed, trainable_state
from peftbook.training.loop import arithmetic, label_losses, reordered, train
from peftbook.training.models import load_model
from peftbook.training.preflight import training_step_setup
from peftbook.training.probes.memory import allocated_peak, storage_bytes
from peftbook.training.products import half_products

METHODS = {
    "lora": LoRA(rank=2), "dropout": LoRA(rank=2, dropout=0.3), "full": Full(), "ia3": IA3(),
    "prompt": PromptTuning(length=3, init="random"),
}  # fmt: skip
BUDGET = specs.Budget(tokens=300, batch_size=4, learning_rate=1e-2)
START = tuple(range(5, 17))  # what all examples share


def a_model(name: str, base: LlamaForCausalLM | None = None) -> torch.nn.Module:
    model = apply_method(base or tiny_llama(), METHODS[name], seed=1, tokenizer=NumberTokenizer())
    randomize_adapters(model)
    return model


def shared_start(count: int) -> list[Encoded]:
    """Examples of different lengths that begin alike."""
    return [Encoded(START + one.ids, len(START) + one.start, False) for one in random_examples(count)]


def trained(name: str, dtype: str, checkpointing: bool, base: LlamaForCausalLM | None = None):
    """Losses, gradient norms and trained values of a short training, computed as runs are."""
    model = a_model(name, base)
    with reordered(model, dtype):
        result = train(model, shared_start(12), BUDGET, seed=0, pad_id=2, dtype=dtype, checkpointing=checkpointing)
    values = torch.cat([value.detach().flatten() for value in trainable_state(model).values()])
    assert not model.is_activation_checkpointing and not model.get_input_embeddings()._forward_hooks
    return result.losses, result.gradient_norms, values


@pytest.mark.parametrize("name", METHODS)
def test_checkpointing_changes_no_bit(name):
    """A layer is run again with the same inputs, weights and dropout; in float32 nothing else differs."""
    plain, checkpointed = (trained(name, "fp32", checkpointing) for checkpointing in (False, True))
    assert plain[:2] == checkpointed[:2] and torch.equal(plain[2], checkpointed[2])


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_in_half_width_checkpointing_changes_the_order_of_sums_alone(name):
    """Padded rows share nothing then, so that products have other rows: the first loss moves by bfloat16's rounding."""
    plain, checkpointed = (trained(name, "bf16", checkpointing) for checkpointing in (False, True))
    assert checkpointed[0][0] == pytest.approx(plain[0][0], rel=2**-8)
    assert checkpointed[1][0] == pytest.approx(plain[1][0], rel=2**-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["lora", "dropout", "ia3", "prompt"])
def test_a_base_in_bfloat16_trains(name, checkpointing):
    """It starts within bfloat16's rounding of the float32 base's loss, learns, and trains nothing but float32."""
    base, data = tiny_llama().bfloat16(), random_examples(8)
    model = a_model(name, base).train()
    budget = specs.Budget(tokens=2000, batch_size=8, learning_rate=2e-2)
    result = train(model, data, budget, seed=0, pad_id=2, dtype="bf16", checkpointing=checkpointing)
    first = budget.model_copy(update={"tokens": 100})
    wide = train(a_model(name), data, first, seed=0, pad_id=2, dtype="fp32")
    assert result.losses[0] == pytest.approx(wide.losses[0], rel=2**-7)
    assert sum(result.losses[-3:]) < 0.95 * sum(result.losses[:3])
    kinds = {value.requires_grad: value.dtype for value in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_a_base_in_bfloat16_is_not_autocast():
    """What `peftbook fit` counts for such a base: products in the types of their factors."""
    for dtype, wanted in ((torch.float32, True), (torch.bfloat16, False)):
        with arithmetic(tiny_llama().to(dtype), "bf16", "cpu"):
            assert torch.is_autocast_enabled("cpu") is wanted


def test_most_steps_of_full_fine_tuning_are_lost_in_bfloat16():
    """Why it is refused there: at the book's rate, Adam's first step leaves most weights as they were."""
    weights = LlamaForCausalLM(tiny_llama().config).bfloat16().model.layers[0].mlp.up_proj.weight
    rate = methods.preset("full").rate
    assert (weights - rate == weights).float().mean() > 0.5


@pytest.mark.parametrize("method", [Full(), methods.preset_method("norm")])
def test_nothing_is_trained_in_bfloat16(method):
    """Whoever loads such a base is told so as well as whoever plans a run."""
    with pytest.raises(InputError, match=r"trains values in bfloat16 .*: choose weights 'fp32'"):
        apply_method(tiny_llama().bfloat16(), method, seed=0)


def test_a_prefix_is_not_dropped_in_silence():
    """transformers would train it without ever using it."""
    model = apply_method(tiny_llama(), Prefix(length=3), seed=0, tokenizer=NumberTokenizer())
    with pytest.raises(InputError, match=r"drops a prefix .* choose no checkpointing"):
        train(model, random_examples(4), BUDGET, seed=0, pad_id=2, checkpointing=True)


SHAPE = DecoderShape(layers=4, hidden=256, ffn=768, heads=4, kv_heads=2, vocab=2048, tied=True)
WAYS = {"plain": {}, "checkpointed": {"checkpointing": True}, "halved": {"weights": "bf16"},
        "both": {"weights": "bf16", "checkpointing": True}}  # fmt: skip


@functools.cache
def predicted_and_measured(name: str, way: str) -> tuple[float, float]:
    """Bytes at the peak of the loop's own step: by the byte model; parameters and what torch's allocator hands out."""
    run = a_run(0, method=METHODS[name], budget=BUDGET, **WAYS[way])
    rows = [Encoded((start, *range(3, 202)), 190, False) for start in range(3, 7)]
    torch.manual_seed(0)
    base = LlamaForCausalLM(as_config(SHAPE)).to(torch.bfloat16 if run.weights == "bf16" else torch.float32)
    model = apply_method(base, run.method, 0, NumberTokenizer())
    setup = training_step_setup(run, rows, SHAPE)
    step = training_step(SHAPE, replace(setup, padding=False))

    def one_step() -> None:
        train(model, rows, BUDGET.model_copy(update={"tokens": 800}), seed=0, pad_id=2, checkpointing=run.checkpointing)

    with half_products():  # whose scratch memory stays
        one_step()
        measured = allocated_peak(one_step)
    return step.peak().total, storage_bytes(model.parameters()) + measured


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_the_peak_falls_as_the_byte_model_says(name, way):
    """Asked about the very step that the loop runs, on rows that share nothing.

    Over a base in bfloat16 peft's adapters copy their inputs to float32, which autocast does not: at this size LoRA's
    step gains by it less than that costs, and the model says so.
    """
    predicted, measured = predicted_and_measured(name, way)
    cached = name == "prompt" and "checkpointing" not in WAYS[way]  # what stands before all rows runs once
    assert measured / predicted == pytest.approx(1.0, abs=0.08 if cached else 0.02)
    plain = predicted_and_measured(name, "plain")
    assert (measured < plain[1]) is (predicted < plain[0])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["lora", "prompt"])
@pytest.mark.parametrize(("dtype", "weights"), [("bf16", "bf16"), ("bf16", "fp32"), ("fp32", "fp32")])
def test_operations_of_a_checkpointed_step_are_those_that_torch_counts(name, shared, dtype, weights):
    """The layers' forward pass counts twice, a shared start in every row of padded ones, a soft prompt too."""
    batch = shared_start(8) if shared else random_examples(8)
    base = tiny_llama().bfloat16() if weights == "bf16" else tiny_llama()
    model = a_model(name, base).train()
    shape = shape_from_config(base.config.to_dict())
    run = a_run(0, method=METHODS[name], budget=BUDGET, dtype=dtype, weights=weights, checkpointing=True)
    order = reordered(model, dtype) if dtype == "fp32" else contextlib.nullcontext()
    with half_products(), order, checkpointed_layers(model), FlopCounterMode(display=False) as counted:
        with arithmetic(model, dtype, "cpu"):
            nats, _ = label_losses(model, batch, 2)
        nats.sum().backward()
    found = estimate.training_seconds(shape, training_setup(run, shape), rates(each_flop=1.0), [batch])
    assert found == pytest.approx(counted.get_total_flops(), rel=0.12)


def tiny_opt() -> OPTForCausalLM:
    """A model whose layers are not where a Llama's are."""
    sides = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(vocab_size=32, num_hidden_layers=2, max_position_embeddings=16, **sides))


@pytest.mark.parametrize("model", [tiny_llama, tiny_opt])
def test_whether_layers_are_checkpointed_is_what_transformers_says(model):
    """Before, within and after; never where no gradient is asked for."""
    base = model().train()
    found, said = [is_checkpointed(base)], [base.is_activation_checkpointing]
    with checkpointed_layers(base):
        found, said = [*found, is_checkpointed(base)], [*said, base.is_activation_checkpointing]
        with torch.no_grad():
            assert not is_checkpointed(base)
    assert [*found, is_checkpointed(base)] == [*said, base.is_activation_checkpointing] == [False, True, False]


@pytest.mark.parametrize("method", [LoRA(rank=2), QLoRA(rank=2), PromptTuning(length=3)], ids=lambda one: one.kind)
def test_a_run_over_a_base_in_bfloat16_is_recorded_as_that(method, folder, monkeypatch, tmp_path):
    """Training, loss and generation in one type; the record and its line say how, and the run can be read back."""
    task = tiny_task(metrics=("exact_match",))
    monkeypatch.setattr(execute, "get_task", lambda name: task)
    run = specs.Run(
        model=specs.Model(name=str(folder), revision="0" * 64), task=task.spec,
        method=method, budget=specs.Budget(tokens=300, batch_size=4, learning_rate=1e-3), weights="bf16",
        checkpointing=True,
        evaluation=specs.Evaluation(split="test", n_loss=5, n_generate=3, max_new_tokens=4, generation_dtype="bf16"),
    )  # fmt: skip
    store = Store(tmp_path / "records")
    record = execute.execute(run, store, quiet=True)
    assert record.measurements["generated_examples"] == 3 and not record.failure
    assert store.get(run).spec == run and (run.weights, run.checkpointing) == ("bf16", True)
    assert "weights in bfloat16, checkpointing" in describe(run)
    again = execute.execute(run, Store(tmp_path / "again"), quiet=True)
    assert again.curve == record.curve and again.per_example == record.per_example


@pytest.mark.parametrize("method", [LoRA(rank=2), QLoRA(rank=2)], ids=lambda one: one.kind)
def test_a_merged_model_is_not_rounded_to_its_base(method, folder, tmp_path):
    """It is a dense float32 one, which computes what base and adapter do in float32."""
    run = a_run(
        0, model=specs.Model(name=str(folder), revision=""), method=method, weights="bf16", checkpointing=True,
    )  # fmt: skip
    loaded = load_model(run.model, method, weights="bf16")
    tuned = apply_method(loaded.model, method, run.seed)
    randomize_adapters(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    studio: Any = SimpleNamespace(adapter=lambda job: tmp_path / "adapter")
    job: Any = SimpleNamespace(run=run, state="done", id="a")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = [one.eval()(ids, use_cache=False).logits.float() for one in (merge(studio, job).model, tuned)]
        again = load_trained(studio, job).model(ids, use_cache=False).logits.float()
    assert {value.dtype for value in merge(studio, job).model.parameters()} == {torch.float32}
    assert torch.equal(again, logits[1])
    assert (logits[0] - logits[1]).norm() < 2**-6 * logits[1].norm()


def test_a_model_is_loaded_in_the_type_that_is_asked_for(folder):
    """Each value is the float32 one, rounded once; under QLoRA what is not in 4 bits."""
    model = specs.Model(name=str(folder))
    wide = load_model(model).model.state_dict()
    narrow = load_model(model, weights="bf16").model.state_dict()
    assert all(torch.equal(narrow[name], value.bfloat16()) for name, value in wide.items())
    packed = load_model(model, QLoRA(), weights="bf16").model
    assert packed.get_input_embeddings().weight.dtype == packed.model.norm.weight.dtype == torch.bfloat16
