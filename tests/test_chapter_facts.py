"""What the chapters say about other people's code, checked against the installed versions.

When one of these fails, the library has changed: reread the sentence in the chapter.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from peft import BOFTConfig, LoraConfig, LoraGAConfig, PeftModel, PromptTuningConfig, RandLoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from tiny import tiny_llama
from torch import nn

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


class Experts(nn.Module):
    """Three experts of a layer in one stacked parameter, each token through the first."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.up[0]


def test_pefts_lora_has_a_pair_of_factors_for_every_stacked_expert():
    """Newer-family chapter: `target_parameters` trains r (d_in + d_out) numbers an expert."""
    model = nn.Sequential()
    model.add_module("experts", Experts())
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=[], target_parameters=["experts.up"]))
    assert sum(value.numel() for value in tuned.parameters() if value.requires_grad) == 3 * 2 * (8 + 6)


def test_trained_tokens_are_rows_of_the_embedding_and_of_a_tied_head():
    """Newer-family chapter: five tokens train five rows, and the logits of a tied head see them."""
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    width = model.config.hidden_size
    config = LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=[3, 5, 7, 11, 13], task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config).eval()
    rows = {name: value for name, value in tuned.named_parameters() if "token" in name and value.requires_grad}
    assert sum(value.numel() for value in rows.values()) == 5 * width
    with torch.no_grad():
        before = tuned(IDS[:, 2:3]).logits[0, -1]
        next(iter(rows.values())).add_(1.0)
        moved = (tuned(IDS[:, 2:3]).logits[0, -1] - before).abs() > 1e-6
    assert set(moved.nonzero().flatten().tolist()) == {3, 5, 7, 11, 13}


def test_pefts_boft_has_one_factor_where_its_extension_cannot_be_built(monkeypatch):
    """Newer-family chapter: whatever was asked for, what is left is OFT's block-diagonal form and a scale."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(nn.Linear(16, 3)), config).base_model.model[0]
    assert layer.boft_R["default"].shape == (1, 4, 4, 4) and layer.boft_s["default"].shape == (3, 1)


@pytest.mark.parametrize(("d_in", "d_out"), [(7, 10), (10, 7)])
def test_pefts_randlora_is_the_sum_of_the_chapter(d_in, d_out):
    """Newer-family chapter: γ Σ B_j Λ_j A Γ_j with one A for all terms; a wide matrix gets the transpose."""
    config = RandLoraConfig(r=3, randlora_alpha=6, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(nn.Linear(d_in, d_out)), config).base_model.model[0]
    scales, gains = layer.randlora_lambda["default"], layer.randlora_gamma["default"]
    A, B = layer.randlora_A["default"], layer.randlora_B["default"]
    terms = -(-min(d_in, d_out) // 3)
    assert scales.shape == (3, terms) and gains.shape == (terms, min(d_in, d_out)) and A.shape[1] == 1
    total = sum(
        B[: max(d_in, d_out), j] @ torch.diag(scales[:, j]) @ A[:, 0, : min(d_in, d_out)] @ torch.diag(gains[j])
        for j in range(terms)
    )
    torch.testing.assert_close(layer.get_delta_weight("default"), 2.0 * (total if d_in <= d_out else total.T))


def test_pefts_start_from_a_gradient_has_its_singular_vectors():
    """Newer-family chapter: LoRA-GA takes r columns of U for B and r other rows of Vᵀ for A, and W gives them back."""
    layer, rank = nn.Linear(12, 9), 2
    W, G = layer.weight.detach().clone(), torch.randn(9, 12)
    layer._peft_loraga_grad = G  # as `preprocess_loraga` leaves it
    config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    tuned = get_peft_model(nn.Sequential(layer), config).base_model.model[0]
    A, B = tuned.lora_A["default"].weight.detach(), tuned.lora_B["default"].weight.detach()
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    of_b = (U.T @ nn.functional.normalize(B, dim=0)).abs().max(dim=0)
    of_a = (Vh @ nn.functional.normalize(A, dim=1).T).abs().max(dim=0)
    torch.testing.assert_close(torch.cat([of_b.values, of_a.values]), torch.ones(2 * rank), atol=1e-3, rtol=0)
    assert set(of_a.indices.tolist()) | set(of_b.indices.tolist()) == set(range(2 * rank))
    torch.testing.assert_close(tuned.base_layer.weight + tuned.get_delta_weight("default"), W, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_pefts_start_from_a_covariance_keeps_the_weight(method):
    """Newer-family chapter: CorDA's B A is U_S Σ_S V_Sᵀ C⁻¹ of W C, the largest or the smallest directions."""
    layer, inputs, rank = nn.Linear(6, 9), torch.randn(200, 6), 2
    W, model = layer.weight.detach().clone(), nn.Sequential(layer)
    config = LoraConfig(
        r=rank, lora_alpha=3 * rank, target_modules=["0"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),
    )  # fmt: skip
    preprocess_corda(model, config, run_model=lambda: model(inputs))
    tuned = get_peft_model(model, config).base_model.model[0]
    C = inputs.T @ inputs
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    chosen = slice(rank) if method == "ipm" else slice(-rank, None)
    start = U[:, chosen] * S[chosen] @ Vh[chosen] @ torch.linalg.inv(C)
    torch.testing.assert_close(tuned.get_delta_weight("default"), start, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(tuned.base_layer.weight + start, W, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("option", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}])
def test_one_adapter_combined_with_weight_one_is_itself_only_without_options(option):
    """Combining chapter: a factor too large, and lengths and biases left out, in silence."""
    torch.manual_seed(0)
    tuned = get_peft_model(nn.Sequential(nn.Linear(12, 8)), LoraConfig(r=4, target_modules=["0"], **option))
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            value += 0.3 * torch.randn_like(value) * ("lora" in name)
    x = torch.randn(5, 12)
    alone = tuned(x)
    tuned.add_weighted_adapter(["default"], [1.0], "combined", combination_type="cat")
    tuned.set_adapter("combined")
    off = (tuned(x) - alone).norm() / alone.norm()
    assert off > 0.1 if option else off < 1e-5


def trl_source(module: str) -> str:
    """The text of one of TRL's trainers, which takes seconds to import."""
    trl = importlib.util.find_spec("trl")
    if trl is None or trl.origin is None:
        pytest.skip("trl is not installed")
    return (Path(trl.origin).parent / "trainer" / module).read_text(encoding="utf-8")


def test_trls_grpo_has_left_out_most_of_what_the_chapter_leaves_out():
    """Rewards chapter: no KL term, one update a batch, a mean over all tokens; the division has stayed."""
    source = trl_source("grpo_config.py")
    for name, value in (
        ("beta", "`0.0`"), ("num_iterations", "`1`"), ("loss_type", '`"dapo"`'), ("scale_rewards", '`"group"`')
    ):  # fmt: skip
        assert re.search(rf"^ +{name} \([^\n]*defaults to {re.escape(value)}\)", source, re.M), name


def test_trls_reference_is_the_base_only_for_a_new_adapter():
    """Rewards chapter: an adapter that came with the model is copied as "ref" and is the reference."""
    source = trl_source("dpo_trainer.py")
    assert "elif is_peft_model(model) and ref_model is None:" in source
    assert 'model.add_adapter("ref", default_config)' in source
    assert 'adapter_name="ref" if "ref" in unwrapped_model.peft_config else None' in source
