"""The family tree's counts: the formulas that the figures draw against models that are prepared for training."""

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from tiny import NumberTokenizer, tiny_llama, trained_numbers

from peftbook.memory import SHAPES, shape_from_config
from peftbook.methods.adapter import Adapter
from peftbook.methods.from_peft import PeftMethod
from peftbook.methods.full import Full
from peftbook.methods.ia3 import IA3
from peftbook.methods.lora import LoRA
from peftbook.methods.norm import NormTuning
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.vera import VeRA
from peftbook.training.forward import apply_method
from peftbook.views.figures.family import MEMBERS, trained_parameters, work_per_token
from peftbook.views.figures.newer import newer_counts, newer_state

SHAPE = shape_from_config(tiny_llama().config.to_dict())
PREPARED = {
    "full": Full(),
    "lora": LoRA(rank=3),
    "dora": LoRA(rank=3, dora=True),
    "adapter": Adapter(width=5),
    "vera": VeRA(rank=7),
    "prefix": Prefix(length=4),
    "ia3": IA3(),
    "norm": NormTuning(),
    "prompt": PromptTuning(length=6, init="random"),
}
COUNTS = trained_parameters(SHAPE, rank=3, width=5, length=6, prefix=4, random_rank=7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PREPARED)
def test_counts_are_those_of_models_prepared_for_training(name):
    """A formula of the chapter counts what a run of this method trains."""
    assert (
        trained_numbers(apply_method(tiny_llama(), PREPARED[name], seed=0, tokenizer=NumberTokenizer())) == COUNTS[name]
    )


@pytest.mark.filterwarnings("ignore")
def test_the_count_of_adalora_is_that_of_peft():
    """Three factors a matrix, before anything is pruned."""
    config = AdaLoraConfig(init_r=3, target_r=3, target_modules=list(LoRA().targets), total_step=10)
    assert trained_numbers(get_peft_model(tiny_llama(), config)) == COUNTS["adalora"]


def test_every_member_has_a_count():
    """No method of the drawing is missing from the figure of counts."""
    for shape in SHAPES.values():
        if shape.experts:  # which LoRA's count leaves out
            continue
        assert set(trained_parameters(shape)) == set(MEMBERS)


def test_llamas_have_no_bias_and_qwen2_has_three_a_layer():
    """What BitFit finds: nothing in most decoders of the table, queries, keys and values in a Qwen2."""
    assert trained_parameters(SHAPES["llama-2-7b"])["bias"] == 0
    qwen = SHAPES["qwen2.5-0.5b"]
    assert trained_parameters(qwen)["bias"] == qwen.layers * (qwen.hidden + 2 * qwen.kv_width)


def test_a_cached_virtual_token_costs_what_its_key_and_value_are_multiplied_with():
    """Counted by hand: scores and mixture of one query over p more keys, for every head of every layer."""
    heads, width, virtual = SHAPE.heads, SHAPE.head_dim, 4
    query, keys, values = torch.ones(heads, width), torch.ones(heads, virtual, width), torch.ones(heads, virtual, width)
    products = (query[:, None] * keys).numel() + (torch.ones(heads, virtual, 1) * values).numel()
    assert work_per_token(SHAPE, prefix=virtual)["prefix"] == SHAPE.layers * products


# ---- the newer family

NEWER = {
    "lora": LoRA(rank=4),
    "dora": LoRA(rank=4, dora=True),
    "hira": PeftMethod(name="HIRA", arguments=(("r", 4), ("target_modules", "all-linear"))),
    "oft": PeftMethod(name="OFT", arguments=(("oft_block_size", 8), ("target_modules", "all-linear"))),
    "miss": PeftMethod(name="MISS", arguments=(("r", 6), ("target_modules", "all-linear"))),
    "randlora": PeftMethod(name="RANDLORA", arguments=(("r", 5), ("target_modules", "all-linear"))),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEWER)
def test_the_newer_methods_train_what_their_formulas_say(name):
    """The table of the chapter counts what peft trains."""
    counts = newer_counts(SHAPE, rank=4, block=8, shard=6, bases=5)
    assert set(counts) == set(NEWER)
    assert trained_numbers(apply_method(tiny_llama(), NEWER[name], seed=0, tokenizer=NumberTokenizer())) == counts[name]


def test_a_projected_gradient_has_the_moments_that_are_counted():
    """GaLore keeps P and two moments of the projected gradient, APOLLO the moments alone; LISA two layers' moments."""
    kept = {"galore": 0, "apollo": 0}
    for d_in, d_out in SHAPE.linears.values():
        G = torch.randn(d_out, d_in)
        U, _, Vh = torch.linalg.svd(G, full_matrices=False)
        P, projected = (Vh[:3], G @ Vh[:3].T) if d_out >= d_in else (U[:, :3], U[:, :3].T @ G)
        kept["apollo"] += 2 * projected.numel() * SHAPE.layers
        kept["galore"] += (2 * projected.numel() + P.numel()) * SHAPE.layers
    state = newer_state(SHAPE, rank=3, layers=1)
    assert {name: state[name] for name in kept} == kept
    assert state["lisa"] * SHAPE.layers == state["full"] == 2 * SHAPE.linear_parameters
