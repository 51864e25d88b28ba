"""Selective methods: what they choose, and what a model without biases leaves to choose."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama, trained_numbers
from torch import nn

from peftbook.scratch.selective import train_biases, train_gains


def small() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4, bias=False))


def trainable(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.requires_grad]


def test_biases_are_all_that_is_trained():
    """BitFit: the bias of the norm and of the one linear layer that has one."""
    model = small()
    assert train_biases(model) == trainable(model) == ["0.bias", "1.bias"]


def test_gains_are_all_that_is_trained():
    """The gain of the norm and not its bias; in a Llama two gains a layer and the last one."""
    model, llama = small(), tiny_llama()
    assert train_gains(model) == trainable(model) == ["0.weight"]
    assert train_gains(llama) == trainable(llama)
    assert trained_numbers(llama) == (2 * 2 + 1) * 64


def test_choosing_changes_nothing():
    """No part is added, so that the model computes what it did."""
    model, ids = tiny_llama(), torch.arange(3, 12)[None]
    before = model(ids).logits
    train_gains(model)
    assert torch.equal(model(ids).logits, before)


def test_a_llama_has_no_bias_to_train():
    """Said aloud, where a library would train nothing more and say nothing."""
    with pytest.raises(ValueError, match="LlamaForCausalLM has no biases"):
        train_biases(tiny_llama())


@pytest.mark.filterwarnings("ignore")
def test_pefts_bias_option_is_silent_in_a_llama():
    """Family-tree chapter: bias="all" of peft adds nothing where there is no bias."""
    none, everything = (
        get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], bias=bias)) for bias in ("none", "all")
    )
    assert trained_numbers(none) == trained_numbers(everything) > 0
