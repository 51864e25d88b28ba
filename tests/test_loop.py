"""The training loop: its loss and gradient are the textbook's, its order is the seed's, and kill -9 changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import (
    INTERRUPTED,
    INTERRUPTED_BUDGET,
    NumberTokenizer,
    random_examples,
    randomize_adapters,
    tiny_llama,
    train_interrupted,
)

from peftbook.core import specs
from peftbook.core.errors import Diverged
from peftbook.methods.adapter import Adapter
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning
from peftbook.training import loop
from peftbook.training.encode import Encoded, batch_plan
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.loop import label_losses, learning_rate, losses, train

METHODS = {
    "full": Full(),
    "lora": LoRA(rank=2),
    "prompt": PromptTuning(length=3, init="random"),
    "prefix": Prefix(length=3),
    "adapter": Adapter(width=4),
}
BUDGET = specs.Budget(tokens=300, batch_size=4, learning_rate=1e-2)


def a_model(name: str = "full") -> torch.nn.Module:
    model = apply_method(tiny_llama(), METHODS[name], seed=1, tokenizer=NumberTokenizer())
    randomize_adapters(model)
    return model


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All gradients of the trained parameters in one vector, cleared for the next use."""
    flat = torch.cat([value.grad.flatten() for value in trainable_state(model).values()])
    model.zero_grad(set_to_none=True)
    return flat


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def labelled(examples) -> dict[str, torch.Tensor]:
    """The batch as transformers wants it: right-padded, masked, −100 where there is no label."""
    width = max(len(one.ids) for one in examples)
    ids = torch.full((len(examples), width), 2)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, one in enumerate(examples):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
        labels[row, one.start : len(one.ids)] = torch.tensor(one.ids[one.start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("name", ["full", "lora", "prompt"])
def test_loss_and_gradient_equal_transformers_own(name):
    """Logits at labels only, no mask: the same mean over label tokens and the same gradient as the full computation.

    peft prepends a soft prompt and pads the labels itself; positions and mask agree with ours under right padding.
    """
    model, batch = a_model(name).train(), random_examples(8)
    nats, counts = label_losses(model, batch, pad_id=2)
    assert counts == [one.label_tokens for one in batch] and len(nats) == sum(counts)
    nats.mean().backward()
    ours = gradients(model)
    theirs = model(**labelled(batch)).loss
    theirs.backward()
    assert nats.mean().item() == pytest.approx(theirs.item(), rel=1e-6)
    assert relative(ours, gradients(model)) < 1e-5


@pytest.mark.parametrize("name", list(METHODS))
def test_micro_batches_give_the_same_gradient(name, monkeypatch):
    """The loss is the mean over the batch's label tokens, not a mean of micro-batch means of unequal size."""
    taken: list[torch.Tensor] = []
    clip = loop.nn.utils.clip_grad_norm_

    def take(parameters, bound):
        parameters = list(parameters)
        taken.append(torch.cat([value.grad.flatten() for value in parameters]))
        return clip(parameters, bound)

    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", take)
    budget = specs.Budget(tokens=1, batch_size=8, learning_rate=1e-3)
    seen = []
    for micro_batch in (None, 8, 3, 2, 1):
        result = train(
            a_model(name), random_examples(8), budget, seed=0, pad_id=2, dtype="fp32", micro_batch=micro_batch
        )
        seen.append(result)
    assert len(taken) == 5
    for result, gradient in zip(seen[1:], taken[1:], strict=True):
        assert relative(gradient, taken[0]) < 1e-5
        assert result.losses[0] == pytest.approx(seen[0].losses[0], rel=1e-6)
        assert result.gradient_norms[0] == pytest.approx(seen[0].gradient_norms[0], rel=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_shared_start_changes_neither_loss_nor_gradient(name, monkeypatch):
    """Examples that begin alike run their common part once; the sums and gradients are those of whole rows."""
    start = tuple(range(5, 11))
    batch = [Encoded(start + one.ids, len(start) + one.start, False) for one in random_examples(8)]
    model, found = a_model(name).train(), []
    assert loop.shared_prefix(batch) >= len(start)
    for _ in range(2):
        nats, _ = label_losses(model, batch, 2)
        nats.sum().backward()
        found.append((nats.detach(), gradients(model)))
        monkeypatch.setattr(loop, "shared_prefix", lambda examples: 0)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert relative(found[0][1], found[1][1]) < 1e-4


def test_a_shared_start_never_swallows_a_label():
    """Identical examples, and examples that differ at once."""
    one = Encoded((3, 4, 5, 6), 2, False)
    assert loop.shared_prefix([one, one]) == 1  # the state that predicts the first label stays in the rows
    assert loop.shared_prefix([one, Encoded((9, 4, 5), 1, False)]) == 0


@pytest.mark.parametrize("name", ["lora", "prompt"])
def test_frozen_weights_as_bf16_copies_change_no_bit(name):
    """Autocast would make the same copies in every forward pass; the float32 weights are back afterwards."""
    model, batch = a_model(name).train(), random_examples(6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = []
    for dtype in ("fp32", "bf16"):
        with loop.frozen_linears_in(dtype, model), loop.autocast("bf16", "cpu"):
            kinds = {p.dtype for p in model.parameters() if not p.requires_grad and p.dim() == 2}
            nats, _ = label_losses(model, batch, 2)
        nats.sum().backward()
        found.append((nats.detach(), gradients(model), kinds))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][2] != found[1][2]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["lora", "prompt", "full"])
def test_a_half_width_copy_of_the_head_changes_no_bit(name):
    """It is made once and not for every batch; an embedding that is tied to the head, and a head that is trained, stay
    in float32."""
    model, batch = a_model(name).train(), random_examples(6)
    head = loop.causal_model(model).lm_head
    assert head.weight is loop.causal_model(model).get_input_embeddings().weight
    found = []
    for dtype in ("fp32", "bf16"):
        with loop.frozen_head_in(dtype, model), loop.autocast("bf16", "cpu"):
            with loop.frozen_head_in(dtype, model):  # as where a loss is taken in the midst of a training
                pass
            assert ("forward" in vars(head)) == (dtype == "bf16" and name != "full")
            nats, _ = label_losses(model, batch, 2)
        nats.sum().backward()
        found.append((nats.detach(), gradients(model)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert head.weight.dtype == torch.float32 and "forward" not in vars(head)


@pytest.mark.plain
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_width_trains_as_float32_does(dtype):
    """Losses and unclipped gradient norms, to what rounding leaves: an fp16 loss is scaled, its gradients are not."""
    curves = {}
    for each in ("fp32", dtype):
        result = train(a_model(), random_examples(20), BUDGET.model_copy(update={"learning_rate": 1e-3}), seed=0,
                       pad_id=2, dtype=each)  # fmt: skip
        curves[each] = result.losses, result.gradient_norms
    assert curves[dtype][0] == pytest.approx(curves["fp32"][0], rel=2e-3)
    assert curves[dtype][1] == pytest.approx(curves["fp32"][1], rel=1e-2)


def test_a_step_whose_gradients_overflow_is_left_out():
    """It moves nothing and lowers the scale; training goes on from there."""
    seen = []
    model = apply_method(tiny_llama(), LoRA(rank=2), seed=3)

    def note(progress) -> None:
        seen.append(torch.cat([value.detach().flatten() for value in trainable_state(model).values()]))

    start = torch.cat([value.detach().flatten() for value in trainable_state(model).values()])
    result = train(model, random_examples(20), INTERRUPTED_BUDGET, seed=3, pad_id=2, dtype="fp16", on_step=note)
    left_out = [norm == 0.0 for norm in result.gradient_norms]
    assert left_out[0] and not all(left_out)  # at the first scale, 2 to the 16th, this model's gradients overflow
    for before, after, skipped in zip([start, *seen], seen, left_out, strict=False):
        assert torch.equal(before, after) is skipped


def test_an_fp16_training_that_diverges_says_so(monkeypatch):
    """Gradients that overflow although nothing scales them up are no reason to go on."""
    monkeypatch.setattr(loop, "LEAST_SCALE", 1e9)
    with pytest.raises(Diverged, match="diverged at step 1"):
        train_interrupted("lora-fp16")


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_lora_plus_multiplies_the_rate_of_b(ratio):
    """The first Adam step moves every element by the rate, whatever the gradient: B's is ratio times A's."""
    method = LoRA(rank=2, b_rate_ratio=ratio)
    model = apply_method(tiny_llama(), method, seed=1)
    randomize_adapters(model)
    before = {key: value.detach().clone() for key, value in trainable_state(model).items()}
    budget = specs.Budget(tokens=20, batch_size=4, learning_rate=1e-3)
    trained = train(model, random_examples(4), budget, seed=0, pad_id=2, dtype="fp32",
                    rate_factor=method.rate_factor)  # fmt: skip
    assert len(trained.losses) == 1
    moved = {key: (value - before[key]).abs().median().item() for key, value in trainable_state(model).items()}
    for key, value in moved.items():
        assert value == pytest.approx(1e-3 * (ratio if ".lora_B." in key else 1), rel=0.02)


def test_the_gradient_norm_in_the_curve_is_the_unclipped_one():
    """And what the optimiser sees is clipped: with AdamW's first step the bound shows in its first moment."""
    batch = random_examples(4)
    model = a_model()
    nats, _ = label_losses(model, batch, pad_id=2)
    nats.mean().backward()
    norm = gradients(model).norm().item()
    budget = specs.Budget(tokens=1, batch_size=4, learning_rate=1e-3, max_grad_norm=norm / 10)
    result = train(a_model(), batch, budget, seed=0, pad_id=2, dtype="fp32")
    assert result.gradient_norms[0] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_losses_are_each_examples_own(name):
    """Whatever its batch, its padding and its place: paired comparisons rest on it."""
    model, data = a_model(name), random_examples(11, seed=4)
    nats, counts = losses(model, data, pad_id=2, batch_size=4, dtype="fp32")
    for one, value, count in zip(data, nats, counts, strict=True):
        alone, _ = label_losses(model.eval(), [one], pad_id=2)
        assert value == pytest.approx(alone.sum().item(), rel=1e-5) and count == one.label_tokens
    again, _ = losses(model, data[::-1], pad_id=0, batch_size=16, dtype="fp32")
    assert again[::-1] == pytest.approx(nats, rel=1e-5)


def test_the_rate_warms_up_and_stays():
    """Linear over the first `warmup` of the steps, never zero, then constant."""
    budget = specs.Budget(tokens=1, learning_rate=0.4, warmup=0.1)
    rates = [learning_rate(budget, step, 40) for step in range(40)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4]) and set(rates[4:]) == {0.4}
    assert learning_rate(budget, 0, 1) == 0.4


@pytest.mark.parametrize("name", list(METHODS))
def test_training_learns_and_counts(name):
    """The loss falls on eight pairs, and tokens, labels and steps are those of the plan."""
    data = random_examples(8)
    budget = specs.Budget(tokens=3000, batch_size=4, learning_rate=2e-2)
    model = a_model(name)
    before = sum(losses(model, data, pad_id=2, dtype="fp32")[0])
    result = train(model, data, budget, seed=0, pad_id=2, dtype="fp32")
    assert sum(losses(model, data, pad_id=2, dtype="fp32")[0]) < 0.9 * before
    plan = batch_plan([len(one.ids) for one in data], 4, 3000, 0)
    assert len(result.losses) == len(result.gradient_norms) == len(result.step_seconds) == len(plan)
    assert result.tokens == sum(len(data[index].ids) for batch in plan for index in batch)
    assert result.label_tokens == sum(data[index].label_tokens for batch in plan for index in batch)
    assert not model.training


def test_a_loss_that_is_counted_is_the_same_loss():
    """Every example is told of once, batch by batch."""
    model, data, told = a_model("lora"), random_examples(20), []
    assert losses(model, data, pad_id=2, batch_size=8, on_batch=told.append) == losses(
        model, data, pad_id=2, batch_size=8
    )
    assert told == [8, 8, 4]


def test_every_arm_of_a_comparison_spends_the_same_tokens():
    """Virtual prompt tokens do not count: arms with the same seed and budget see the same texts."""
    spent = {name: train(a_model(name), random_examples(20), BUDGET, seed=5, pad_id=2) for name in METHODS}
    assert len({(one.tokens, one.label_tokens, len(one.losses)) for one in spent.values()}) == 1


def test_progress_tells_every_step():
    """From the first step to the last, each with its pace."""
    seen = []
    train(a_model("lora"), random_examples(20), BUDGET, seed=0, pad_id=2, on_step=seen.append)
    assert [one.step for one in seen] == list(range(1, seen[0].steps + 1))
    assert seen[-1].step == seen[-1].steps and all(one.tokens_per_second > 0 for one in seen)


def test_the_seed_decides_everything():
    """Same seed, same bits; another seed, another order and another result."""
    data = random_examples(20)
    states, curves = [], []
    for seed in (0, 0, 1):
        model = a_model("lora")
        curves.append(train(model, data, BUDGET, seed=seed, pad_id=2).losses)
        states.append(torch.cat([value.flatten() for value in trainable_state(model).values()]))
    assert curves[0] == curves[1] != curves[2]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_divergence_is_said_in_one_sentence():
    """A NaN would otherwise train on for hours."""
    budget = BUDGET.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(Diverged, match=r"diverged at step \d+ .*lower the learning rate\.$"):
        train(a_model(), random_examples(20), budget, seed=0, pad_id=2, dtype="fp32")


# ---- checkpoints


class StoppedError(Exception):
    """What stands for a crash inside one process."""


def interrupt(monkeypatch, folder: Path, name: str, at: int) -> None:
    """Train until step `at`, with a checkpoint after every step, and stop there."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    def stop(progress):
        if progress.step == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_interrupted(name, checkpoint=folder, on_step=stop)


def assert_same_training(one, other) -> None:
    """Bit-equal parameters, equal curves and counts."""
    (model, result), (model2, result2) = one, other
    state, state2 = trainable_state(model), trainable_state(model2)
    assert list(state) == list(state2)
    assert all(torch.equal(state[name], state2[name]) for name in state)
    assert result.losses == result2.losses and result.gradient_norms == result2.gradient_norms
    assert (result.tokens, result.label_tokens) == (result2.tokens, result2.label_tokens)
    assert len(result.step_seconds) == len(result2.step_seconds)


@pytest.mark.parametrize("name", list(INTERRUPTED))
def test_an_interrupted_training_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    """Parameters, Adam's moments, weight decay, rate, order and dropout are all restored; a torn file is ignored."""
    interrupt(monkeypatch, tmp_path, name, at=6)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["progress.json", "state-5.safetensors"]  # only the last checkpoint is kept
    (tmp_path / "state-6.safetensors").write_bytes(b"torn by a crash while it was written")
    assert_same_training(train_interrupted(name, checkpoint=tmp_path), train_interrupted(name))


def test_a_training_can_be_interrupted_again_and_again(tmp_path, monkeypatch):
    """Preemptible machines do that."""
    for at in (3, 4, 8):
        interrupt(monkeypatch, tmp_path, "lora-dropout", at)
    assert_same_training(train_interrupted("lora-dropout", checkpoint=tmp_path), train_interrupted("lora-dropout"))


KILLED = """
import json, os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from peftbook.training import loop
from tiny import train_interrupted
loop.CHECKPOINT_SECONDS = -1.0
for name in sys.argv[2:]:
    folder = Path(sys.argv[1]) / name
    child = os.fork()
    if child == 0:
        train_interrupted(name, checkpoint=folder, on_step=lambda progress: time.sleep(0.02))
        os._exit(0)
    while not (folder / "progress.json").is_file() or json.loads((folder / "progress.json").read_text())["step"] < 4:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


@pytest.mark.slow
def test_kill_9_and_resume_equals_an_uninterrupted_run(tmp_path):
    """SIGKILL in the middle, for LoRA with dropout and for full fine-tuning: equal to the last bit.

    Whatever threads the process has that goes on.
    """
    names = ["lora-dropout", "full"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), *names],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        steps = json.loads((tmp_path / name / "progress.json").read_text())["step"]
        torch.set_num_threads(1)
        whole = train_interrupted(name)
        assert 4 <= steps < len(whole[1].losses)
        torch.set_num_threads(2)
        assert_same_training(train_interrupted(name, checkpoint=tmp_path / name), whole)
        assert torch.get_num_threads() == 1
