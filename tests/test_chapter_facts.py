"""What the chapters say about other people's code, checked against the installed versions.

When one of these fails, the library has changed: reread the sentence in the chapter.
"""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tiny import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns that it drops position ids; the tests show what follows
NEW = 6


@pytest.fixture
def tuned() -> PeftModel:
    """A tiny Llama behind four virtual tokens, with weights so wide that every position matters."""
    model = tiny_llama()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()


IDS = torch.tensor([[5, 17, 40, 8, 23]])


def generate(model: PeftModel, padding: int = 0, **options) -> list[torch.Tensor]:
    """The logits of every new token by peft's own `generate`, the text left-padded and masked."""
    empty = torch.zeros(1, padding, dtype=torch.long)
    output = model.generate(
        input_ids=torch.cat([empty, IDS], dim=1), attention_mask=torch.cat([empty, torch.ones_like(IDS)], dim=1),
        max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return list(output.logits)


@torch.no_grad()
def by_hand(model: PeftModel) -> list[torch.Tensor]:
    """The same by definition: prompt, then text, the whole sequence again for every token."""
    base, ids, logits = model.get_base_model(), IDS, []
    prompt = model.prompt_encoder["default"].embedding.weight[None]
    for _ in range(NEW):
        embeds = torch.cat([prompt, base.get_input_embeddings()(ids)], dim=1)
        logits.append(base(inputs_embeds=embeds, use_cache=False).logits[:, -1])
        ids = torch.cat([ids, logits[-1].argmax(-1, keepdim=True)], dim=1)
    return logits


def test_pefts_generate_moves_the_prompt_away_from_a_padded_text(tuned):
    """Prompt-tuning chapter: without padding the first token's logits are right, with padding they are not."""
    right = by_hand(tuned)[0]
    torch.testing.assert_close(generate(tuned)[0], right, atol=1e-4, rtol=0)
    assert (generate(tuned, padding=7)[0] - right).abs().max() > 0.1


def test_pefts_generate_inserts_the_prompt_again_at_every_step(tuned):
    """Prompt-tuning chapter: one call for each new token, and logits that drift; without a cache they are right."""
    right, calls, get_prompt = by_hand(tuned), [], tuned.get_prompt

    def counted(*args, **options):
        calls.append(1)
        return get_prompt(*args, **options)

    tuned.get_prompt = counted
    cached = generate(tuned)
    assert len(calls) == NEW
    assert (cached[1] - right[1]).abs().max() > 0.1
    for ours, theirs in zip(generate(tuned, use_cache=False), right, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
