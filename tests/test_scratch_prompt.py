"""Prompt tuning from scratch: what is trained, where the logits sit, and peft as the oracle."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PromptTuningConfig, get_peft_model
from tiny import tiny_llama, tokens
from torch import nn

from peftbook.scratch.prompt import SoftPrompt, prompt_parameters, random_init, text_init, vocabulary_init

few = settings(max_examples=10, deadline=None)


@few
@given(st.integers(1, 12), st.integers(1, 10), st.booleans())
def test_logits_and_gradient_equal_peft(length, text_length, padded):
    """peft is the oracle: same vectors, same logits at the text, same gradient of the vectors."""
    base = tiny_llama()
    ids = tokens(length=text_length)
    mask = torch.ones_like(ids)
    if padded and text_length > 1:
        mask[1, -1] = 0  # right padding
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    theirs = get_peft_model(copy.deepcopy(base), config)
    vectors = theirs.prompt_encoder["default"].embedding.weight
    ours = SoftPrompt(base, vectors)
    mine, peft = ours(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits[:, length:]
    torch.testing.assert_close(mine, peft, atol=1e-6, rtol=0)
    mine[mask == 1].square().sum().backward()
    peft[mask == 1].square().sum().backward()
    torch.testing.assert_close(ours.prompt.grad, vectors.grad, atol=1e-5, rtol=1e-4)


def test_a_prompt_of_token_embeddings_is_those_tokens():
    """Hard prompts are a special case of soft ones: the model cannot tell a vector from the token it came from."""
    model = tiny_llama()
    front, ids = [5, 17, 90], tokens()
    soft = SoftPrompt(model, text_init(model.get_input_embeddings(), front, 3))
    hard = torch.cat([torch.tensor(front).expand(2, -1), ids], dim=1)
    torch.testing.assert_close(soft(ids), model(hard).logits[:, 3:], atol=1e-6, rtol=0)


def test_the_prompt_is_all_that_is_trained():
    """p d trainable numbers, a gradient for them and none for the model."""
    soft = SoftPrompt(tiny_llama(), random_init(5, 64))
    trainable = [name for name, parameter in soft.named_parameters() if parameter.requires_grad]
    assert trainable == ["prompt"]
    assert soft.prompt.numel() == prompt_parameters(5, 64) == 320
    soft(tokens()).sum().backward()
    assert soft.prompt.grad.abs().max() > 0
    assert all(p.grad is None for p in soft.model.parameters())


def test_no_mask_means_nothing_is_masked():
    """A mask of ones and no mask are the same question."""
    soft = SoftPrompt(tiny_llama(), random_init(4, 64))
    ids = tokens()
    torch.testing.assert_close(soft(ids), soft(ids, torch.ones_like(ids)), atol=1e-6, rtol=0)


def test_right_padding_changes_no_logit_before_it():
    """Causal attention: a text gives the same logits alone and padded in a batch, in float64."""
    soft = SoftPrompt(tiny_llama(), random_init(4, 64)).double()
    ids = tokens(length=6)
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(2, 6), torch.zeros(2, 3)], dim=1).long()
    torch.testing.assert_close(soft(padded, mask)[:, :6], soft(ids), atol=1e-6, rtol=0)


def test_the_start_is_copied_not_shared():
    """Training the prompt must not move the embedding it was taken from."""
    model = tiny_llama()
    before = model.get_input_embeddings().weight.clone()
    soft = SoftPrompt(model, model.get_input_embeddings().weight[:6])  # a view
    start = soft.prompt.detach().clone()
    soft(tokens()).square().sum().backward()
    torch.optim.SGD([soft.prompt], lr=1.0).step()
    assert not torch.equal(soft.prompt, start)
    assert torch.equal(model.get_input_embeddings().weight, before)


@few
@given(st.integers(1, 40), st.integers(1, 40))
def test_random_start_is_uniform_in_half(length, width):
    """Lester et al.: U[-0.5, 0.5]."""
    assert random_init(length, width).abs().max() <= 0.5
    assert random_init(length, width).shape == (length, width)


def test_random_start_is_narrower_than_pefts():
    """peft's RANDOM leaves torch's default for an embedding, N(0, 1): standard deviation 1 against 1/√12."""
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=60, prompt_tuning_init="RANDOM")
    theirs = get_peft_model(tiny_llama(), config).prompt_encoder["default"].embedding.weight
    assert abs(theirs.std() - 1) < 0.05
    assert abs(random_init(60, 32).std() - 12**-0.5) < 0.02


def test_vocabulary_start_holds_rows_of_the_embedding():
    """Each vector is some token's embedding."""
    embedding = tiny_llama().get_input_embeddings()
    rows = vocabulary_init(embedding, 7)
    assert ((rows[:, None] == embedding.weight[None]).all(dim=2).any(dim=1)).all()


@few
@given(st.lists(st.integers(0, 127), min_size=1, max_size=6), st.integers(1, 15))
def test_text_start_is_cut_or_repeated(ids, length):
    """The rule of peft's TEXT init: repeat the text until it fills the prompt, then cut."""
    embedding = nn.Embedding(128, 4)
    expected = embedding(torch.tensor((ids * 15)[:length]))
    assert torch.equal(text_init(embedding, ids, length), expected)


def test_bad_starts_are_refused():
    """The message names the shape that was given and the width that is needed."""
    model = tiny_llama()
    for shape in [(0, 64), (3, 31), (64,)]:
        with pytest.raises(ValueError, match="give \\(length of 1 or more, 64\\)"):
            SoftPrompt(model, torch.zeros(shape))
    with pytest.raises(ValueError, match="no tokens"):
        text_init(model.get_input_embeddings(), [], 3)
