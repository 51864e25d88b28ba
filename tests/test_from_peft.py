"""Any method of peft through one spec: each that can be built is trained for real, each that cannot says why."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptLearningConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from tiny import NumberTokenizer, random_examples, tiny_llama

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.evidence.results import describe
from peftbook.memory import shape_from_config
from peftbook.methods import preset
from peftbook.methods.from_peft import PeftMethod, peft_configs
from peftbook.training.forward import apply_method, causal_model, hidden_states, trainable_state
from peftbook.training.loop import train

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own, of methods with settings that nobody tuned
TINY = shape_from_config(tiny_llama().config.to_dict())
BUDGET = specs.Budget(tokens=60, batch_size=4, learning_rate=1e-2, warmup=0)
# What a configuration cannot be made without, or what a model of width 64 cannot be given by default.
NEEDED: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 32},
    "ROAD": {"group_size": 32},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": (5, 6, 7)},
    "VBLORA": {"vector_length": 32},
    "WAVEFT": {"n_frequency": 64},
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
        assert name in why.upper() and why.endswith(".") and "\n" not in why
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
    assert len(trained) >= 0.8 * len(peft_configs())


def stepped(method: PeftMethod, rate: float = 1e-2) -> Any:
    """A tiny model after some steps."""
    model = apply_method(tiny_llama(), method, 0, NumberTokenizer())
    train(model, random_examples(12), BUDGET.model_copy(update={"learning_rate": rate}), seed=0, pad_id=2, dtype="fp32")
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return causal_model(model).lm_head(hidden_states(model, torch.tensor([list(range(5, 17))])))


@pytest.mark.parametrize("name", ["LOHA", "MISS"])
def test_an_update_of_low_rank_is_converted_to_lora_without_loss(name):
    """LoHa's update has a rank of at most r² = 4, MiSS's of r = 4: LoRA's 16 holds it, to rounding."""
    rank = {"LOHA": 2, "MISS": 4}[name]
    targets = ("q_proj", "o_proj") if name == "MISS" else ("q_proj", "v_proj")
    method = PeftMethod(name=name, arguments={"r": rank, "target_modules": targets})
    model = stepped(method)
    wanted = logits(model)
    assert (wanted - logits(tiny_llama())).abs().max() > 1e-3
    converted = method.as_lora(model)
    assert converted.active_peft_config.peft_type.value == "LORA"
    torch.testing.assert_close(logits(converted), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["LORA", "IA3", "P_TUNING"])
def test_what_is_lora_or_can_be_none_is_not_converted(name):
    """A record then has no loss of a conversion."""
    method = method_of(name)
    assert method.as_lora(apply_method(tiny_llama(), method, 0, NumberTokenizer())) is None


@pytest.mark.parametrize("name", ["BOFT", "VERA", "LOHA", "IA3", "PROMPT_TUNING", "LN_TUNING"])
def test_what_is_counted_for_a_shape_is_what_is_trained(name):
    """Without a model at hand, by peft's own application to one without storage."""
    method = method_of(name)
    trained = trainable_state(apply_method(tiny_llama(), method, 0, NumberTokenizer()))
    assert method.parameters(TINY) == sum(value.numel() for value in trained.values())


def test_virtual_tokens_are_those_of_pefts_own_forward_pass():
    """P-tuning's encoder stands between what is trained and the tokens before the text."""
    model: Any = stepped(PeftMethod(name="P_TUNING", arguments={"num_virtual_tokens": 3, "encoder_hidden_size": 8}))
    ids = torch.tensor([list(range(5, 17))])
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 3:]
    torch.testing.assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("peft:BOFF", ("'BOFF'", "BOFT", "VERA")),
        ("peft:BOFT:block=4", ("BOFTConfig", "'block'", "boft_block_size")),
        ("peft:BOFT:boft_block_size=3:boft_block_num=2", ("BOFTConfig", "boft_block_size", "boft_block_num")),
        ("peft:BOFT:boft_block_size", ("'boft_block_size'", "name=value")),
    ],
)
def test_a_wrong_name_or_argument_is_told_with_the_right_ones(name, said):
    """By peft's own configuration, before a model is loaded."""
    with pytest.raises(InputError) as caught:
        preset(name)
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value)


def test_targets_that_the_model_lacks_are_told():
    """What only a model can tell is told when the method is applied, in one sentence too."""
    method = PeftMethod(name="BOFT", arguments={"target_modules": ["query"]})
    with pytest.raises(InputError, match=r"^peft cannot apply BOFT .*query"):
        apply_method(tiny_llama(), method, 0, NumberTokenizer())


def test_the_order_of_arguments_makes_no_other_run():
    """They are sorted; lists and tuples are alike."""
    one = PeftMethod(name="boft", arguments={"target_modules": ["q_proj"], "bias": "none"})
    other = PeftMethod(name="BOFT", arguments={"bias": "none", "target_modules": ("q_proj",)})
    assert one == other and hash(one) == hash(other) and one.model_dump_json() == other.model_dump_json()


def test_a_run_is_described_by_its_method_and_its_arguments():
    """After peft was asked, too: what it answered is no field."""
    run = specs.Run(task=specs.Task(name="t", data_sha256=""), method=preset("peft:LOHA:r=4").method, budget=BUDGET)
    assert describe(run).startswith("peft:LOHA on t, arguments ('r', 4)")
    assert {name for name, _ in run.method} == set(PeftMethod.model_fields)


def lora_fa(*, disabled: bool, bound: float = math.inf, every: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A layer after three clipped steps of LoRA-FA, its first A and its last B.

    disabled: the adapter is disabled, and enabled again, after the first step.  every: by AdamW over all parameters, A
    frozen by hand.
    """
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["0"], r=4, lora_alpha=8)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), config)
    layer = model.base_model.model[0]
    first, x = layer.lora_A["default"].weight.detach().clone(), torch.randn(5, 8)
    optimizer: Any = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-2)
    if every:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        if disabled and step == 1:
            with model.disable_adapter():
                model(x)
        optimizer.zero_grad()
        model(x).pow(2).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
        optimizer.step()
    return layer, first, layer.lora_B["default"].weight.detach()


def test_peft_gives_the_frozen_a_of_lora_fa_its_gradient_back():
    """Leaving `disable_adapter` thaws A: its gradient is computed, and counts where gradients are clipped.

    LoRA-FA's own optimiser does not move it for that, an optimiser over all parameters does. On the day that peft mends
    it this fails: then the section "For upstream" of *LoRA in practice* can go.
    """
    for disabled in (False, True):
        layer, first, _ = lora_fa(disabled=disabled)
        A = layer.lora_A["default"].weight
        assert A.requires_grad is disabled and (A.grad is not None) is disabled and torch.equal(A, first)
        layer, first, _ = lora_fa(disabled=disabled, every=True)
        assert torch.equal(layer.lora_A["default"].weight, first) is not disabled
    for bound in (math.inf, 0.1):
        ends = [lora_fa(disabled=disabled, bound=bound)[2] for disabled in (False, True)]
        assert torch.equal(*ends) is math.isinf(bound)


def test_peft_could_keep_the_a_of_lora_fa_frozen_by_its_own_list():
    """What is proposed in "For upstream": `set_adapter` obeys the names that a layer lists as frozen."""
    layer, _, _ = lora_fa(disabled=False)
    layer.frozen_peft_weight_names = {"default": ("lora_A",)}
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert not layer.lora_A["default"].weight.requires_grad and layer.lora_B["default"].weight.requires_grad
