"""Any method of peft through one spec: each that can be built is trained for real, each that cannot says why."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from peft import PromptLearningConfig
from tiny import NumberTokenizer, random_examples, tiny_llama

from peftbook import specs
from peftbook.errors import InputError
from peftbook.memory import shape_from_config
from peftbook.methods.from_peft import PeftMethod, peft_configs
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own, of methods with settings that nobody tuned
TINY = shape_from_config(tiny_llama().config.to_dict())
BUDGET = specs.Budget(tokens=60, batch_size=4, learning_rate=1e-2, warmup=0)
# What a configuration cannot be made without, or what a model of width 64 cannot be given by default.
NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
}


def method_of(name: str) -> PeftMethod:
    virtual = {"num_virtual_tokens": 4} if issubclass(peft_configs()[name], PromptLearningConfig) else {}
    return PeftMethod(name=name, arguments=virtual | NEEDED.get(name, {}))


@functools.cache
def refusal(name: str) -> str:
    """Why a method cannot be applied to the tiny model; empty where it can."""
    try:
        apply_method(tiny_llama(), method_of(name), 0, NumberTokenizer())
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", sorted(peft_configs()))
def test_a_step_of_each_tuner_changes_its_own_parameters_alone(name):
    """Those that the loop cannot train as peft means it are refused in a sentence with their name."""
    if why := refusal(name):
        assert name in why and why.endswith(".") and "\n" not in why
        return
    model: Any = apply_method(tiny_llama(), method_of(name), 0, NumberTokenizer())
    own = set(trainable_state(model))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trained = train(model, random_examples(12), BUDGET, seed=0, pad_id=2, dtype="fp32")
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert changed and changed <= own and all(map(torch.isfinite, map(torch.tensor, trained.losses)))


def test_most_of_what_peft_has_is_trained():
    """Else the law above would be about refusals."""
    trained = [name for name in peft_configs() if not refusal(name)]
    assert len(trained) >= 0.75 * len(peft_configs())
