"""Peers: the same training by TRL's SFTTrainer and by transformers' Trainer."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

from bench.contestants import BATCH, LEARNING_RATE, SEED, WARMUP, Contestant, Trace, Work
from peftbook.tasks import TaskData

# What changes speed, memory or result, printed for every peer whether it was set here or left alone.
PRINTED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "adam_beta1", "adam_beta2",
    "adam_epsilon", "bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "use_cache",
    "torch_compile", "use_liger_kernel", "train_sampling_strategy", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_drop_last", "max_length", "packing", "packing_strategy", "padding_free", "pad_to_multiple_of",
    "shuffle_dataset", "completion_only_loss", "loss_type", "activation_offloading", "neftune_noise_alpha",
    "label_smoothing_factor", "average_tokens_across_devices", "logging_steps", "logging_nan_inf_filter",
    "save_strategy", "eval_strategy", "report_to", "disable_tqdm", "seed", "use_cpu",
)  # fmt: skip


def with_dtype(contestant: Contestant, dtype: str) -> Contestant:
    """The contestant told to compute in a type; as it is where none is said."""
    return replace(contestant, arguments=contestant.arguments | {"bf16": dtype == "bf16"}) if dtype else contestant


def train_peer(contestant: Contestant, model, tokenizer, task: TaskData, chosen: list[tuple[Any, Any]]) -> Trace:
    """TRL's SFTTrainer or transformers' Trainer on the same model and examples."""
    from transformers import PrinterCallback, TrainerCallback

    trace = Trace()
    started = [0.0]

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trace.ends.append(time.perf_counter() - started[0])

    with tempfile.TemporaryDirectory(prefix="peftbook-peer-") as folder:
        began = time.perf_counter()
        trainer, trace.set_here = build_peer(contestant, model, tokenizer, task, chosen, folder, trace.work)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Clock())
        started[0] = time.perf_counter()
        trace.prepare_seconds = started[0] - began
        trainer.train()
        trace.train_seconds = time.perf_counter() - started[0]
    trace.learning_rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    trace.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trace.all_arguments = json.loads(trainer.args.to_json_string())
    shown = {name: trace.all_arguments[name] for name in PRINTED if name in trace.all_arguments}
    trace.left_alone = {name: value for name, value in shown.items() if name not in trace.set_here}
    return trace


def build_peer(
    contestant: Contestant,
    model,
    tokenizer,
    task: TaskData,
    chosen: list[tuple[Any, Any]],
    folder: str,
    work: list[Work],
) -> tuple[Any, dict[str, Any]]:
    """The trainer, which notes the work of each step in `work`, and the arguments that were set here."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    steps = -(-len(chosen) // BATCH)
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": BATCH, "num_train_epochs": 1, "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": max(1, round(WARMUP * steps)),
        "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": SEED, "use_cpu": True, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    } | contestant.arguments  # fmt: skip
    if arguments.get("packing"):
        arguments["max_length"] = round(BATCH * statistics.fmean(len(encoded.ids) for _, encoded in chosen))
    if contestant.raw_chat:
        data = Dataset.from_list([conversation(task, example) for example, _ in chosen])
    else:
        data = Dataset.from_list([tokens_and_labels(encoded) for _, encoded in chosen])
    if contestant.library == "trl":
        from trl import SFTConfig, SFTTrainer

        args = SFTConfig(output_dir=folder, **arguments)
        trainer = noting_work(SFTTrainer, work)(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    else:
        trainer = noting_work(Trainer, work)(
            model=model, args=TrainingArguments(output_dir=folder, **arguments), train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer), processing_class=tokenizer,
        )  # fmt: skip
    return trainer, arguments | {
        "rate of a step": "as in our loop (theirs would be one warm-up step behind)",
        "data": "chat turns" if contestant.raw_chat else "our token ids and labels",
    }


def conversation(task: TaskData, example) -> dict[str, list[dict[str, str]]]:
    """TRL's conversational prompt-completion form."""
    return {"prompt": task.messages(example), "completion": [{"role": "assistant", "content": example.target}]}


def tokens_and_labels(encoded) -> dict[str, list[int]]:
    """Our ids, all attended to, with −100 where there is no label."""
    ids = list(encoded.ids)
    labels = [-100] * encoded.start + ids[encoded.start :]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def noting_work(base: type, work: list[Work]) -> type:
    """The trainer class with a count of what each step goes through, and with our learning rate at every step."""

    class Noting(base):
        def training_step(self, model, inputs, *args, **kwargs):
            work.append(count_work(inputs))
            return super().training_step(model, inputs, *args, **kwargs)

        def create_scheduler(self, num_training_steps, optimizer=None):
            # Theirs starts at rate 0, so that the first step would train nothing; ours starts one warm-up step later.
            from torch.optim.lr_scheduler import LambdaLR

            warm = int(self.args.warmup_steps)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: min(1.0, (step + 1) / warm))
            return self.lr_scheduler

    return Noting


def count_work(inputs: dict) -> Work:
    """Work of a padded batch, or of a packed row whose position ids start again at 0 with each example."""
    ids = inputs["input_ids"]
    labels = int((inputs["labels"][:, 1:] != -100).sum())
    if "attention_mask" in inputs:
        return Work(len(ids), labels, int(inputs["attention_mask"].sum()), ids.numel())
    return Work(int((inputs["position_ids"] == 0).sum()), labels, ids.numel(), ids.numel())
