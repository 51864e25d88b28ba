"""What the tests of several processes train: one process imports, then each strategy gets two forks of it over gloo.

    python -c "import together; together.main()" FOLDER

leaves in FOLDER/<strategy>/<name> the curve, the trained tensors and what else a test compares with one process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import NumberTokenizer, random_examples, tiny_llama
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule

from peftbook.core import specs
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.training import loop
from peftbook.training.distributed import ALONE, Processes, freeze_in_bf16, full_tensor, saved_state, shard
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.generate import generate
from peftbook.training.loop import Trained, losses, train
from peftbook.training.models import keep_linear4bit_layout

COUNT = 2
STRATEGIES = ("ddp", "fsdp")
TOKENS = 220  # of a training: more than one pass over the examples
STOP = 4  # the step before which an interrupted training has its last checkpoint


@dataclass(frozen=True)
class Case:
    """One training: 19 examples in batches of three, so that processes have unequal shares and one once has none.

    halved: the base is in bfloat16.
    """

    method: Method
    dtype: str = "fp32"
    micro_batch: int | None = None
    strategies: tuple[str, ...] = STRATEGIES
    examples: int = 19
    batch_size: int = 3
    checkpointing: bool = False
    halved: bool = False


CASES = {
    "lora": Case(LoRA(rank=2)),
    "lora-bf16": Case(LoRA(rank=2), "bf16", batch_size=4),
    "lora-checkpointed": Case(LoRA(rank=2), checkpointing=True),
    "lora-halved": Case(LoRA(rank=2), "bf16", batch_size=4, checkpointing=True, halved=True),
    "lora-micro": Case(LoRA(rank=2), micro_batch=1, batch_size=4),
    "qlora": Case(QLoRA(rank=2)),
    "qlora-bf16": Case(QLoRA(rank=2), "bf16", batch_size=4),
    "full": Case(Full()),
    "prompt": Case(PromptTuning(length=3), strategies=("ddp",)),
}


def a_model(case: Case, folder: Path) -> nn.Module:
    """The tiny Llama with the method applied; in 4 bits for QLoRA, by way of a folder, computing in the case's type."""
    model = tiny_llama().bfloat16() if case.halved else tiny_llama()
    if isinstance(case.method, QLoRA):
        if not folder.is_dir():
            model.save_pretrained(folder)
        quantised = case.method.quantization(torch.float32 if case.dtype == "fp32" else torch.bfloat16)
        model = type(model).from_pretrained(
            folder, dtype=torch.float32, quantization_config=quantised, device_map={"": "cpu"}
        )
        keep_linear4bit_layout(model)
    return apply_method(model, case.method, seed=3, tokenizer=NumberTokenizer())


def train_case(name: str, folder: Path, processes: Processes = ALONE, **arguments) -> tuple[nn.Module, Trained]:
    """Train a case from its start or from a checkpoint."""
    case = CASES[name]
    model = a_model(case, folder / "model")
    if processes.sharded:
        if case.dtype == "bf16":
            freeze_in_bf16(model)
        shard(model, processes)
    budget = specs.Budget(tokens=TOKENS, batch_size=case.batch_size, learning_rate=1e-2, weight_decay=0.1)
    trained = train(
        model, random_examples(case.examples), budget, seed=3, pad_id=2, dtype=case.dtype,
        micro_batch=case.micro_batch, checkpointing=case.checkpointing, processes=processes, **arguments,
    )  # fmt: skip
    return model, trained


class StoppedError(Exception):
    """What stands for a crash."""


def interrupt(name: str, folder: Path, checkpoint: Path, processes: Processes = ALONE) -> None:
    """Train with a checkpoint after every step and stop in step STOP + 1."""

    def stop(progress):
        if progress.step == STOP + 1:
            raise StoppedError

    kept, loop.CHECKPOINT_SECONDS = loop.CHECKPOINT_SECONDS, -1.0
    try:
        train_case(name, folder, processes, checkpoint=checkpoint, on_step=stop)
    except StoppedError:
        return
    finally:
        loop.CHECKPOINT_SECONDS = kept


def keep(folder: Path, model: nn.Module, trained: Trained, processes: Processes, dtype: str = "fp32") -> None:
    """What a training left, from the first process."""
    state = {key: full_tensor(value.detach()).contiguous() for key, value in trainable_state(model).items()}
    nats, _ = losses(model, random_examples(7, seed=4), pad_id=2, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    if processes.sharded:
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.reshard()
        found = {"trained": 0, "frozen": 0}
        for value in model.parameters():
            found["trained" if value.requires_grad else "frozen"] += value.to_local().nbytes
        (folder / f"bytes-{processes.rank}.json").write_text(json.dumps(found))
    if processes.first:
        save_file(state, folder / "trained.safetensors")
        facts = {"losses": trained.losses, "norms": trained.gradient_norms, "nats": nats}
        facts |= {"tokens": trained.tokens, "labels": trained.label_tokens}
        (folder / "facts.json").write_text(json.dumps(facts))


def one_process(folder: Path, processes: Processes) -> None:
    """All cases of a strategy, an interrupted training and its end, an adapter folder and texts."""
    place = folder / processes.strategy
    for name, case in CASES.items():
        if processes.strategy not in case.strategies:
            continue
        model, trained = train_case(name, folder, processes)
        keep(place / name, model, trained, processes, case.dtype)
        if name in ("lora", "qlora"):
            state = saved_state(model) if processes.sharded else None
            texts = generate(model, NumberTokenizer(), [[5, 6, 7], [8, 9]], max_new_tokens=4)
            if processes.first:
                model.save_pretrained(place / name / "adapter", state_dict=state)
                (place / name / "texts.json").write_text(json.dumps(texts))
    interrupt("lora", folder, place / "checkpoint", processes)
    distributed.barrier()
    model, trained = train_case("lora", folder, processes, checkpoint=place / "checkpoint")
    keep(place / "resumed", model, trained, processes)
    model, trained = train_case("lora", folder, processes, checkpoint=folder / "alone")
    keep(place / "taken-over", model, trained, processes)


def main() -> None:
    """Fork the processes of each strategy and wait for them; FOLDER/alone is a checkpoint of one process."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    tiny_llama().save_pretrained(folder / "model")
    interrupt("lora", folder, folder / "alone")
    for strategy in STRATEGIES:
        children = []
        for rank in range(COUNT):
            if (child := os.fork()) == 0:
                meeting = f"file://{folder / strategy}.meeting"
                distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=COUNT)
                one_process(folder, Processes(rank, COUNT, strategy))
                distributed.destroy_process_group()
                sys.stdout.flush()
                os._exit(0)
            children.append(child)
        for child in children:
            if os.waitpid(child, 0)[1]:
                raise SystemExit(f"A process of {strategy} failed.")
