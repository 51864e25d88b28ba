"""DPO and GRPO in the byte model: against the steps of TRL's own trainers on a CPU, and what `fit --stage` says."""

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
from tiny import watched_steps

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.memory import SHAPES, Configuration, DecoderShape, Setup
from peftbook.memory import loss as losses
from peftbook.memory.fit import as_text, conclusion
from peftbook.memory.question import Question, answered, assumptions_text, option
from peftbook.memory.shapes import FAMILIES
from peftbook.memory.stacks import setup_in
from peftbook.memory.step import structure
from peftbook.memory.walk import walked
from peftbook.training import random_model
from peftbook.training.probes import memory as probes

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # calls of TRL

LLAMA = DecoderShape(layers=4, hidden=256, ffn=768, heads=4, kv_heads=2, vocab=4096, tied=True)
QWEN = DecoderShape(4, 256, 768, 4, 2, 4096, family="qwen2", **FAMILIES["qwen2"])
CPU = {"rank": 8, "batch": 2, "seq": 128, "device": "cpu"}


@pytest.fixture
def kernels(monkeypatch):
    """TRL's kernels, and products of bfloat16 that are summed in float32, which a CPU does not have, are taken to need
    nothing beside the tile that they are given: every log-probability is 0."""
    pytest.importorskip("trl")
    from trl.kernels import chunked_logprob

    def forward(tile, stride, targets, largest, total, *given, **more):
        largest.zero_()
        total.fill_(1)

    monkeypatch.setattr(chunked_logprob, "_forward_tile", forward)
    for name in ("_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(chunked_logprob, name, lambda *given, **more: None)
    monkeypatch.setattr(losses, "TILE_COPIES", 0.0)
    caches = (structure, walked)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def predicted(shape: DecoderShape, setup: Setup) -> float:
    """Bytes at the peak beyond those of the state."""
    step = Configuration(shape, setup).step
    return step.peak().total - sum(step.numbers(step.state).values())


def trained_by(trainer: type, config: type, shape: DecoderShape, setup: Setup, folder, rows, **given):
    """A trainer of TRL over a random model, and the traces of memory that its two steps fill."""
    import peft
    from datasets import Dataset
    from transformers import AutoTokenizer

    model = random_model.random_model(shape, setup, 0)
    model.requires_grad_(setup.method == "full")
    adapter = peft.LoraConfig(r=setup.rank, target_modules=list(setup.targets), task_type="CAUSAL_LM")
    watch, traces = watched_steps()
    settings = {name: given.pop(name) for name in list(given) if name in config.__dataclass_fields__}
    made = trainer(
        model=model,
        args=config(
            output_dir=str(folder), use_cpu=True, per_device_train_batch_size=setup.batch, max_steps=2,
            gradient_checkpointing=setup.checkpointing, report_to="none", disable_tqdm=True, save_strategy="no",
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=None if setup.method == "full" else adapter,
        processing_class=AutoTokenizer.from_pretrained(DATA / "small_llama"),
        callbacks=[watch],
        **({"ref_model": copy.deepcopy(model)} if setup.method == "full" and setup.reference else {}),
        **given,
    )  # fmt: skip
    return made, traces


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        (LLAMA, {}),
        (LLAMA, {"checkpointing": False}),
        (LLAMA, {"method": "full"}),
        (QWEN, {"checkpointing": False}),
        (QWEN, {"quantised": "nf4"}),
    ],
    ids=["llama", "llama-plain", "llama-full", "qwen2-plain", "qwen2-nf4"],
)
def test_trls_own_dpo_step_needs_what_is_predicted(shape, fields, kernels, tmp_path):
    """The second step of DPOTrainer on pairs of full length, with the reference's pass beside the policy's graph."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    setup = replace(setup_in("trl", stage="dpo", **CPU, **fields)[0], padding=False)
    text = {"prompt": "a", "chosen": "b", "rejected": "c"}
    trainer, traces = trained_by(DPOTrainer, DPOConfig, shape, setup, tmp_path, [text])
    rows = random_model.random_ids(shape, replace(setup, stage="sft", batch=6 * setup.batch), 0).tolist()
    half = setup.seq // 2
    pairs = zip(rows[::2], rows[1::2], strict=True)
    tokens = [{"prompt_ids": a[:half], "chosen_ids": a[half:], "rejected_ids": b[half:]} for a, b in pairs]
    trainer.train_dataset = Dataset.from_list(tokens)
    trainer.train()
    assert probes.peak_of(traces[1]) / predicted(shape, setup) == pytest.approx(1, abs=0.02)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "at", "fields"),
    [
        (LLAMA, "backward", {"batch": 8, "completion": 24}),
        (
            LLAMA,
            "prefill",
            {"batch": 1, "rollouts": 128, "seq": 36, "completion": 4, "method": "full", "optimiser": "sgd"},
        ),
        (QWEN, "decode", {"batch": 1, "rollouts": 64, "seq": 32, "completion": 24}),
    ],
    ids=["llama-loss", "llama-full-prompts", "qwen2-answers"],
)
def test_trls_own_grpo_step_needs_what_is_predicted(shape, at, fields, kernels, tmp_path):
    """A step of GRPOTrainer that generates, by transformers, as many answers as `rollouts` says: the largest phase."""
    from trl import GRPOConfig, GRPOTrainer

    setup = replace(setup_in("trl", stage="grpo", **CPU | fields)[0], padding=False)
    trainer, traces = trained_by(
        GRPOTrainer, GRPOConfig, shape, setup, tmp_path, [{"prompt": str(n)} for n in range(64)],
        steps_per_generation=setup.rollouts // setup.batch, max_completion_length=setup.completion,
        optim="sgd" if setup.optimiser == "sgd" else "adamw_torch_fused",
        reward_funcs=lambda completions, **more: [float(n % 2) for n in range(len(completions))],
    )  # fmt: skip
    prompt = [7] * (setup.seq - setup.completion)
    with patch.object(trainer, "_tokenize_prompts", lambda prompts: ([prompt] * len(prompts), None, {})):
        trainer.train()
    assert Configuration(shape, setup).step.peak().at.startswith(at)
    generates = traces[1] if setup.rollouts == setup.batch else traces[0]
    assert probes.peak_of(generates) / predicted(shape, setup) == pytest.approx(1, abs=0.02)


# --- laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full"])
def test_pairs_are_two_rows_and_the_reference_comes_on_top(method):
    """Without a reference a step of pairs is one of twice the rows; a copy of the model is there in full alone."""
    shape, fields = SHAPES["llama-3.1-8b"], {"method": method, "seq": 512, "autocast": True, "dtype": "fp32"}
    rows = Configuration(shape, Setup(batch=6, **fields)).step
    plain, whole = (
        Configuration(shape, Setup(batch=3, stage="dpo", reference=known, **fields)).step for known in (False, True)
    )
    assert plain.peak() == rows.peak()
    assert whole.peak().total >= plain.peak().total
    assert whole.flops["forward"] != plain.flops["forward"] and whole.flops["backward"] == plain.flops["backward"]
    copied = whole.numbers(whole.state).get("reference", 0)
    assert copied == (4 * shape.parameters if method == "full" else 0)


def test_generation_caches_keys_and_values_of_all_rows():
    """Two numbers for each row, token, layer and width of the key heads; what a batch of the loss needs stays."""
    shape = SHAPES["llama-3.1-8b"]
    fields = {"batch": 4, "seq": 2048, "logits": "tiled", "checkpointing": True, "labels": 4 * 1024}
    setup = Setup(stage="grpo", completion=1024, rollouts=64, **fields)
    step, loss = (Configuration(shape, one).step for one in (setup, Setup(**fields)))
    prompts, last = (phase.peak() for phase in step.phases)
    assert last.at.startswith("decode") and prompts.at.startswith("prefill")
    assert last.terms["cache"] == 2 * 2 * 64 * 2047 * shape.layers * shape.kv_heads * shape.head_dim
    assert step.peak().total == max(prompts.total, last.total, loss.peak().total)


def test_a_stage_assumes_what_trls_settings_make():
    """A batch of pairs, and rows that are generated at once."""
    trl = pytest.importorskip("trl")
    for batch, steps in ((8, 1), (4, 2), (16, 1)):
        args = trl.GRPOConfig(
            use_cpu=True, report_to="none", per_device_train_batch_size=batch, gradient_accumulation_steps=steps
        )
        setup, assumed = setup_in("trl", stage="grpo", batch=batch)
        assert args.generation_batch_size == setup.rollouts
        assert setup.labels == batch * args.max_completion_length and setup.reference == (args.beta != 0)
    assert any(one.field == "completion" for one in assumed)
    args = trl.DPOConfig(use_cpu=True, report_to="none")
    assert setup_in("trl", stage="dpo")[0].reference != args.precompute_ref_log_probs


# --- the command ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", {shape.family: name for name, shape in SHAPES.items()}.values())
def test_every_family_has_an_answer_to_both_stages(name):
    """Neither needs less than supervised fine-tuning on as many rows."""
    asked = {"model": name, "memory": "80GB", "method": "qlora", "batch": 1, "seq": 768}
    sft, dpo, grpo = (answered(Question(**asked, stage=stage)).fit for stage in ("sft", "dpo", "grpo"))
    assert dpo.peak.total > sft.peak.total and grpo.peak.total > 0.95 * sft.peak.total
    assert dpo.fits == (dpo.largest_batch >= 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stage": "gpo"}, "nearest name is 'grpo'"),
        ({"stage": "dpo", "stack": "unsloth"}, "dpo is counted as TRL's own trainer has it, not for Unsloth"),
        ({"stage": "dpo", "method": "prompt"}, "dpo is counted for full fine-tuning, LoRA"),
        ({"stage": "grpo", "devices": 2}, "grpo is counted for full fine-tuning and LoRA on one device"),
        ({"stage": "grpo", "completion": -1}, "completion is -1"),
    ],
    ids=str,
)
def test_a_stage_that_is_not_counted_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        answered(Question("llama-3.1-8b", "24GB", **fields))


def test_an_answer_says_pairs_and_what_trl_does_without():
    """Full fine-tuning on pairs may go without the copy; GRPO's checkpoints do not move to the host."""
    asked = Question("llama-3.2-1b", "32GB", method="full", stage="dpo", batch=2, seq=512)
    answer = answered(asked)
    assert "2 pairs × 512 tokens" in as_text(answer.fit, "llama-3.2-1b")
    assert any("--no-reference" in line for line in conclusion(answer.fit, option))
    asked = replace(asked, stage="grpo", method="lora", memory="8GB")
    grpo = answered(asked)
    assert not any("offloaded" in change.fields for change in grpo.fit.changes)
    assert any("vllm_gpu_memory_utilization" in line for line in assumptions_text(asked, grpo.assumed))


def test_seconds_are_those_of_supervised_fine_tuning_alone(capsys):
    assert cli.main(["fit", "--model", "smollm2-135m", "--memory", "24GB", "--stage", "dpo", "--time"]) == 2
    assert "not dpo: leave one of the two out" in capsys.readouterr().err
