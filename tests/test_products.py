"""Products of half-width matrices in float32: the numbers of native instructions, up to the order of sums."""

from __future__ import annotations

import gc
import os
import threading

import pytest
import torch
from tiny import random_examples, tiny_llama
from torch.nn import functional

from peftbook.core import specs
from peftbook.core.records import Record, Store, default_store
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.runtime.verify import TOLERANCES
from peftbook.studies import get_study
from peftbook.studies import half_products as study
from peftbook.training import loop, products
from peftbook.training.forward import apply_method
from peftbook.training.generate import decode_batch
from peftbook.training.loop import losses, train
from peftbook.training.models import keep_linear4bit_layout
from peftbook.training.probes import EnoughError
from peftbook.training.probes.products import losses_of
from peftbook.training.products import HALF, TORCH_DTYPES, half_products, widened_products

EXACT = 0.998  # share of elements that equal the exact sum, rounded once; float16 has the finer grid

pytestmark = [
    pytest.mark.plain,
]


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers of a type."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_rounded_once(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Nearly all elements are the exact ones rounded, and none is further than the next number."""
    wanted = exact.to(found.dtype)
    assert (found == wanted).double().mean() > EXACT
    spacing = torch.finfo(found.dtype).eps * exact.abs().clamp(min=torch.finfo(found.dtype).tiny)
    # Where terms cancel, a sum in float32 is off by what its largest partial sums round to.
    assert ((found.double() - exact).abs() <= spacing + 1e-5 * exact.abs().max()).all()


SHAPES = {
    "mm": ((37, 96), (96, 53)),
    "bmm": ((5, 37, 96), (5, 96, 53)),
}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_widened_product_is_the_exact_one_rounded_once(name, transposed, dtype):
    """However the factors lie in memory. The exact product is taken in float64."""
    a, b = (
        drawn(*shape, dtype=dtype, seed=seed).mT.contiguous().mT if other else drawn(*shape, dtype=dtype, seed=seed)
        for seed, (shape, other) in enumerate(zip(SHAPES[name], transposed, strict=True))
    )
    with widened_products():
        found = getattr(torch, name)(a, b)
    assert found.dtype == dtype and found.is_contiguous()
    assert_rounded_once(found, a.double() @ b.double())


@pytest.mark.parametrize(("name", "shape"), [("addmm", SHAPES["mm"]), ("baddbmm", SHAPES["bmm"])])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, 2), (1, 0)])
def test_a_sum_with_a_product_is_rounded_once(name, shape, alpha, beta):
    """beta C + alpha A B, with C spread over the rows as a bias is."""
    a, b = (drawn(*one, dtype=torch.bfloat16, seed=seed) for seed, one in enumerate(shape))
    c = drawn(shape[1][-1], dtype=torch.bfloat16, seed=2)
    with widened_products():
        found = getattr(torch, name)(c, a, b, alpha=alpha, beta=beta)
    assert_rounded_once(found, beta * c.double() + alpha * (a.double() @ b.double()))


def test_a_layer_and_its_gradients_are_rounded_once():
    """Forward, gradient of the input and gradient of the weights, for rows in a batch and with a bias."""
    x, w, g = (drawn(*s, dtype=torch.bfloat16, seed=n) for n, s in enumerate(((3, 20, 64), (48, 64), (3, 20, 48))))
    bias = drawn(48, dtype=torch.bfloat16, seed=3)
    x.requires_grad_(), w.requires_grad_()
    with widened_products():
        y = functional.linear(x, w, bias)
        y.backward(g)
    X, W, G = x.detach().double(), w.detach().double(), g.double()
    assert_rounded_once(y.detach(), X @ W.T + bias.double())
    assert_rounded_once(x.grad, G @ W)
    assert_rounded_once(w.grad, G.flatten(0, 1).T @ X.flatten(0, 1))


def test_fused_attention_is_that_of_float32_on_rounded_factors():
    """Forward and backward; each result is rounded to the type of the factors."""
    q, k, v, g = (drawn(2, 3, 40, 16, dtype=torch.bfloat16, seed=n) for n in range(4))
    with widened_products():
        halves = [one.clone().requires_grad_() for one in (q, k, v)]
        found = functional.scaled_dot_product_attention(*halves, is_causal=True)
        found.backward(g)
    wide = [one.float().requires_grad_() for one in (q, k, v)]
    wanted = functional.scaled_dot_product_attention(*wide, is_causal=True)
    wanted.backward(g.float())
    assert torch.equal(found, wanted.bfloat16())
    for one, other in zip(halves, wide, strict=True):  # the backward pass starts from the rounded output
        torch.testing.assert_close(one.grad, other.grad.bfloat16(), rtol=0.02, atol=0.02)


def test_other_types_are_torchs_own_bit_by_bit():
    """Inside the context and after it."""
    a, b = drawn(33, 65, dtype=torch.float32), drawn(65, 17, dtype=torch.float32, seed=1)
    own = a @ b
    with widened_products():
        assert torch.equal(a @ b, own)
        assert torch.equal(a.double() @ b.double(), a.double() @ b.double())
    assert torch.equal(a @ b, own)


def test_results_do_not_share_memory():
    """The next product writes into the same scratch memory, never into a result."""
    a, b = drawn(8, 8, dtype=torch.bfloat16), drawn(8, 8, dtype=torch.bfloat16, seed=1)
    with widened_products():
        first = a @ b
        kept = first.clone()
        assert torch.equal(b @ a, (b.float() @ a.float()).bfloat16())
        assert torch.equal(first, kept)
        assert (torch.empty(0, 8, dtype=torch.bfloat16) @ b).shape == (0, 8)


def test_contexts_may_be_nested_and_the_last_one_restores_torch(monkeypatch):
    """The inner one's end changes nothing; after the outer one nothing is widened, and no memory is held."""
    calls: list[int] = []
    own = products.widened
    monkeypatch.setattr(products, "widened", lambda *given: calls.append(1) or own(*given))
    a = drawn(4, 4, dtype=torch.bfloat16)
    with widened_products():
        with widened_products():
            a @ a
        a @ a
        assert len(calls) == 2 and products.SCRATCH.kept
    a @ a
    assert len(calls) == 2 and not products.SCRATCH.kept


def test_threads_do_not_write_into_each_others_scratch():
    """Two threads multiply at the same time, again and again."""
    a = [drawn(64, 64, dtype=torch.bfloat16, seed=n) for n in range(2)]
    wrong: list[int] = []

    def multiply(one: torch.Tensor) -> None:
        wanted = (one.float() @ one.float()).bfloat16()
        wrong.extend(1 for _ in range(200) if not torch.equal(one @ one, wanted))

    with widened_products():
        threads = [threading.Thread(target=multiply, args=(one,)) for one in a]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not wrong


METHODS = {
    "full": Full(),
    "lora": LoRA(rank=4),
    "qlora": QLoRA(rank=4),
    "prompt": PromptTuning(length=3, init="random"),
    "ia3": IA3(),
}


def trained(method: Method, folder) -> list[float]:
    """The losses of a few steps of a tiny model in bfloat16, and those of other examples afterwards."""
    model = tiny_llama()
    if isinstance(method, QLoRA):
        model.save_pretrained(folder)
        config = method.quantization(torch.bfloat16)
        model = type(model).from_pretrained(folder, dtype=torch.float32, quantization_config=config)
        keep_linear4bit_layout(model)
    model = apply_method(model, method, seed=0)
    budget = specs.Budget(tokens=400, batch_size=4, learning_rate=3e-3)
    curve = train(model, random_examples(20), budget, seed=0, pad_id=2).losses
    nats, counts = losses(model, random_examples(8, seed=1), pad_id=2)
    return [*curve, sum(nats) / sum(counts)]


@pytest.mark.parametrize("name", METHODS)
def test_a_training_goes_as_with_native_products(name, monkeypatch, tmp_path):
    """The curves agree far better with each other than with float32's, as the rounding is the same."""
    monkeypatch.setattr("peftbook.training.loop.half_products", lambda platform: widened_products())
    widened = trained(METHODS[name], tmp_path / "model")
    monkeypatch.setattr("peftbook.training.loop.half_products", lambda platform: products.contextlib.nullcontext())
    native = trained(METHODS[name], tmp_path / "model")
    assert widened == pytest.approx(native, abs=0.01)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="once is enough: the products are widened everywhere")
def test_the_first_steps_of_a_shipped_run_are_repeated(monkeypatch):
    """Within what `peftbook verify` allows, whatever processor made the record; more steps, and all methods, in the
    study, and those of the short run in `test_verify`. It ends once the second loss is known, before its gradients.
    """
    own, found = loop.gathered, []

    def noted(*given):
        nats, counts = own(*given)
        found.append(nats.mean().item())
        if len(found) == 2:
            raise EnoughError
        return nats, counts

    monkeypatch.setattr(loop, "gathered", noted)
    store = default_store()
    finals = [one for one in get_study("methods").records(store) if one.spec.method.kind == "lora" and one.spec.budget]
    record = max(finals, key=lambda one: one.spec.seed)
    losses_of(record.spec, 2, widened_products)
    assert found == pytest.approx(record.curve["train_loss_nats"][:2], abs=TOLERANCES["loss_nats"])


def test_the_study_takes_the_largest_difference_of_each_way(tmp_path):
    """From invented curves, of which one is off by a known amount."""
    store, off = Store(tmp_path), {"native": 0.0, "widened": 0.001, "float32": 0.03}
    for name in study.METHODS:
        probe = study.probe(name)
        curve = {way: [3.0, 2.0 + each, *[1.0] * (study.STEPS - 2)] for way, each in off.items()}
        store.save(Record(key=probe.key, spec=probe, curve=curve, provenance={"cpu": "One"}))
    found = study.quantities(store)
    for name in study.METHODS:
        assert found[f"{name}_widened"].value == pytest.approx(0.001)
        assert found[f"{name}_float32"].value == pytest.approx(0.03)
    assert found["largest_float32"].value == pytest.approx(0.03)
    assert get_study("half_products").verdict(store).outcome == "not yet run"  # no record of another processor


def test_no_product_of_a_4_bit_layer_escapes(monkeypatch, tmp_path):
    """Forward, backward and, without autocast, decoding: a QLoRA layer multiplies in bfloat16 by itself."""
    calls: list[str] = []
    own = products.widened
    monkeypatch.setattr(products, "widened", lambda *given: calls.append("") or own(*given))
    monkeypatch.setattr(products, "products_here", lambda: type("Slow", (), {"native": False})())
    trained(METHODS["qlora"], tmp_path / "model")
    assert len(calls) > 2 * 7 * 2 * 5  # layers × matrices × directions × steps
    model = tiny_llama().__class__.from_pretrained(
        tmp_path / "model", dtype=torch.float32,
        quantization_config=METHODS["qlora"].quantization(torch.bfloat16),
    )  # fmt: skip
    keep_linear4bit_layout(model)
    calls.clear()
    with torch.no_grad(), half_products("cpu"):
        decode_batch(model, type("T", (), {"pad_token_id": 0, "eos_token_id": 2})(), [[5, 6, 7]], 1)
    assert len(calls) == 2 * 7


def test_a_gpu_multiplies_by_itself(monkeypatch):
    """Nothing is asked of the processor and nothing is replaced."""
    monkeypatch.setattr(products, "products_here", lambda: pytest.fail("asked for the CPU's products"))
    with half_products("cuda"):
        assert products.REPLACEMENT.library is None


def test_memory_kept_for_the_backward_pass_is_that_of_native_products():
    """What is saved stays in half width: widening is for the time of a product."""

    def saved_bytes() -> int:
        total: list[int] = []
        x, w = drawn(32, 64, dtype=torch.float32).requires_grad_(), drawn(48, 64, dtype=torch.float32).requires_grad_()
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.nbytes) or t, lambda t: t),
            torch.autocast("cpu", torch.bfloat16),
        ):
            functional.linear(functional.linear(x, w), w.T)
        return sum(total)

    native = saved_bytes()
    with widened_products():
        assert saved_bytes() == native
    gc.collect()


def test_the_types_have_one_name_each():
    """Specs name types as the table of torch's does."""
    for model, field in ((specs.Run, "dtype"), (specs.Evaluation, "generation_dtype")):
        assert set(model.model_fields[field].annotation.__args__) == set(TORCH_DTYPES)
