"""Labels and their means: what is graded is the answer with its end, whatever the padding, and the mean is over it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling
from transformers.loss.loss_utils import ForCausalLMLoss

from peftbook.scratch.labels import IGNORE, answer_labels, mean_over_examples, mean_over_tokens, token_losses

few = settings(max_examples=25, deadline=None)
END = 2
rows = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)  # (prompt, answer)


def batch(shape, padding: int = END, seed: int = 0):
    """Random rows that end with END, padded on the right: ids, starts, ends."""
    generator = torch.Generator().manual_seed(seed)
    width = max(prompt + answer for prompt, answer in shape)
    ids = torch.full((len(shape), width), padding)
    for row, (prompt, answer) in enumerate(shape):
        ids[row, : prompt + answer] = torch.randint(3, 96, (prompt + answer,), generator=generator)
        ids[row, prompt + answer - 1] = END
    starts, ends = torch.tensor([[prompt, prompt + answer] for prompt, answer in shape]).T
    return ids, starts, ends


@few
@given(rows, st.sampled_from([0, END, 7]))
def test_the_masked_loss_is_the_loss_of_the_answers_alone(shape, padding):
    """Row by row, unpadded, the answer's log-likelihood: the mask must select exactly that, whatever the padding."""
    model = tiny_llama()
    ids, starts, ends = batch(shape, padding)
    with torch.no_grad():
        masked = mean_over_tokens(model(ids).logits, answer_labels(ids, starts, ends))
        nats = [
            functional.cross_entropy(
                model(row[None, :end]).logits[0, start - 1 : end - 1], row[start:end], reduction="sum"
            )
            for row, start, end in zip(ids, starts, ends, strict=True)
        ]
    torch.testing.assert_close(masked, sum(nats) / (ends - starts).sum(), atol=1e-5, rtol=1e-5)


@few
@given(rows)
def test_every_end_of_turn_is_graded_and_no_padding(shape):
    """One END a row is a label, although the padding is END too."""
    labels = answer_labels(*batch(shape))
    assert (labels == END).sum(dim=1).tolist() == [1] * len(shape)
    assert (labels != IGNORE).sum().item() == sum(answer for _, answer in shape)


@few
@given(rows)
def test_the_mean_over_tokens_is_transformers_own(shape):
    """transformers shifts and averages in the same way once it is given the labels."""
    ids, starts, ends = batch(shape)
    logits, labels = torch.randn(*ids.shape, 96), answer_labels(ids, starts, ends)
    torch.testing.assert_close(mean_over_tokens(logits, labels), ForCausalLMLoss(logits, labels, 96))


@few
@given(rows)
def test_the_two_means_differ_by_a_covariance(shape):
    """Per token minus per example is cov(labels, mean loss) over mean labels: chapter on data."""
    ids, starts, ends = batch(shape)
    logits, labels = torch.randn(*ids.shape, 96).double(), answer_labels(ids, starts, ends)
    nats, graded = token_losses(logits, labels)
    n = graded.sum(1).double()
    own = nats.double().sum(1) / n
    covariance = ((n - n.mean()) * (own - own.mean())).mean()
    difference = mean_over_tokens(logits, labels) - mean_over_examples(logits, labels)
    torch.testing.assert_close(difference.double(), covariance / n.mean(), atol=1e-5, rtol=1e-4)


@few
@given(rows, st.integers(1, 3))
def test_weighted_micro_batches_are_the_whole_batch(shape, size):
    """Σ N_k/N · mean_k is the mean of the batch however it is cut."""
    ids, starts, ends = batch(shape)
    logits, labels = torch.randn(*ids.shape, 96), answer_labels(ids, starts, ends)
    total = (labels != IGNORE).sum()
    parts = [
        (part != IGNORE).sum() / total * mean_over_tokens(share, part)
        for share, part in zip(logits.split(size), labels.split(size), strict=True)
    ]
    torch.testing.assert_close(sum(parts), mean_over_tokens(logits, labels))


def test_the_collator_of_transformers_leaves_out_every_end_of_turn():
    """Data chapter: it compares ids, so with one token for padding and end the stop is never a label."""
    from tiny import real_tokenizer

    tokenizer = real_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = [5, 6, tokenizer.eos_token_id]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": ids}])["labels"]
    assert labels.tolist() == [[5, 6, IGNORE]]


@pytest.mark.parametrize("padding", [0, END])
def test_right_padding_needs_no_attention_mask(padding):
    """A causal model's real tokens never see what stands behind them."""
    model, (ids, _, ends) = tiny_llama(), batch([(3, 2), (5, 4)], padding)
    with torch.no_grad():
        alone, padded = model(ids[:1, : ends[0]]).logits, model(ids).logits[:1, : ends[0]]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
