"""What a config.json says of a decoder's shape: with what its class leaves out, and refused where it says nonsense."""

from dataclasses import replace

import pytest
import torch

from peftbook.core.errors import InputError
from peftbook.memory import shape_from_config
from peftbook.memory.architecture import FAMILIES
from peftbook.memory.defaults import OMITTED, defaults_of


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_installed_class(family):
    """What is read from the source of a configuration class is what the class has when it is made."""
    from transformers import AutoConfig

    made = AutoConfig.for_model(family)
    known = defaults_of(family)
    assert known["model_type"] == family and known["num_attention_heads"] == made.num_attention_heads
    for key in OMITTED:
        if known.get(key) is not None and key != "sliding_window":  # which use_sliding_window may switch off
            assert known[key] == getattr(made, key), key


WRITTEN = {  # as google/gemma-3-4b-pt and gemma-3-27b-pt have it, each beside a vision model
    "4b": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024},
    "27b": {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "sliding_window": 1024,
        "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_a_published_gemma_3_leaves_out_what_is_its_default(name):
    """As the text part of a model that sees, and alone: the shape that transformers builds from the same settings."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = WRITTEN[name]
    shape = shape_from_config({"model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}})
    assert shape == shape_from_config(text | {"model_type": "gemma3_text"})
    config = AutoConfig.for_model("gemma3_text", **text)
    assert replace(shape_from_config(config.to_dict()), context=0) == shape
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(value.numel() for value in model.parameters())


MIXED = {"model_type": "qwen3_moe", "hidden_size": 96, "intermediate_size": 176, "num_hidden_layers": 2}
PHI = {"model_type": "phi3", "hidden_size": 96, "intermediate_size": 176, "num_hidden_layers": 2}
GEMMA = {"model_type": "gemma3_text", **WRITTEN["4b"]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shape_from_config(GEMMA | {"tie_word_embeddings": "false"}), "tie_word_embeddings as 'false'"),
        (lambda: shape_from_config(GEMMA | {"attention_bias": 1}), "attention_bias as 1"),
        (lambda: shape_from_config(GEMMA | {"head_dim": "256"}), "head_dim as '256'"),
        (lambda: shape_from_config(MIXED | {"mlp_only_layers": [0]}), "layers have no experts"),
        (lambda: shape_from_config(MIXED | {"num_experts": None}), "gives no num_experts"),
        (lambda: shape_from_config(PHI | {"partial_rotary_factor": 2}), "partial_rotary_factor as 2"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
