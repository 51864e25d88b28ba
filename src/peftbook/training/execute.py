"""From a run's spec to its record: load, train, evaluate, measure."""

from __future__ import annotations

import contextlib
import datetime
import functools
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftbook.core import specs
from peftbook.core.errors import Diverged, InputError
from peftbook.core.folders import checkpoints_folder
from peftbook.core.progress import Display, Phase, Phases, describe_step
from peftbook.core.records import Record, Store
from peftbook.evidence import metrics
from peftbook.memory import shape_from_config
from peftbook.runtime.hardware import peak_memory
from peftbook.runtime.resources import generation_batch, loss_batch
from peftbook.tasks import TaskData, TaskExample, get_task, references
from peftbook.training.calibration import known_rates
from peftbook.training.distributed import ALONE, Processes, freeze_in_bf16, saved_state, shard
from peftbook.training.encode import (
    Encoded,
    batch_plan,
    encode_example,
    encode_prompt,
    encode_training,
    with_replay,
)
from peftbook.training.estimate import predicted_seconds
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.generate import generate
from peftbook.training.loop import (
    Progress,
    Trained,
    arithmetic,
    frozen_head_in,
    frozen_linears_in,
    losses,
    order_of,
    reordered,
    saved_threads,
    train,
)
from peftbook.training.models import Loaded, load_model
from peftbook.training.provenance import provenance, seconds_of
from peftbook.training.scoring import bertscore, embedded_encoder


@dataclass
class Trainee:
    """A loaded model with its method applied and its training data encoded: ready to train."""

    run: specs.Run
    task: TaskData
    loaded: Loaded
    model: torch.nn.Module
    processes: Processes = ALONE

    @property
    def tokenizer(self):
        return self.loaded.tokenizer

    @property
    def trainable(self) -> int:
        """Number of trainable values."""
        return sum(value.numel() for value in trainable_state(self.model).values())

    @functools.cached_property
    def encoded(self) -> list[Encoded]:
        """The training examples as token ids."""
        return encode_training(self.tokenizer, self.task, self.run.budget) if self.run.budget else []

    @property
    def plan(self) -> list[list[int]]:
        """The examples of each batch."""
        budget, lengths = self.run.budget, [len(example.ids) for example in self.encoded]
        return batch_plan(lengths, budget.batch_size, budget.tokens, self.run.seed) if budget else []

    @functools.cached_property
    def graded(self) -> list[Encoded]:
        """The examples on which the run takes its loss as token ids, the solved ones before their questions."""
        run, task = self.run, self.task
        shots, limit = few_shots(task, run), run.budget.max_length if run.budget else specs.MOST_LENGTH
        examples = run.evaluation.chosen(task.splits[run.evaluation.split], run.evaluation.n_loss)
        return [encode_example(self.tokenizer, task, one, limit, shots) for one in examples]

    def train(
        self,
        on_step: Callable[[Progress], None] | None = None,
        *,
        checkpoint: Path | None = None,
        micro_batch: int | None = None,
        out: dict | None = None,
        replay: Sequence[Encoded] = (),
        share: float = 0.0,
    ) -> Trained | None:
        """Train as the run says; None for an untuned run. replay: pieces that are `share` of the tokens, on top."""
        budget = self.run.budget
        if budget is None:
            return None
        if out is not None:
            out["truncated_examples"] = sum(example.truncated for example in self.encoded)
        data, plan = with_replay(self.encoded, self.plan, replay, share)
        with order_of(self.run, self.model):
            return train(
                self.model,
                data,
                budget,
                plan=plan,
                seed=self.run.seed,
                pad_id=self.tokenizer.pad_token_id,
                dtype=self.run.dtype,
                platform=self.run.platform,
                micro_batch=micro_batch,
                checkpointing=self.run.checkpointing,
                checkpoint=checkpoint,
                on_step=on_step,
                rate_factor=self.run.method.rate_factor,
                processes=self.processes,
            )

    def losses(self, rows: list[Encoded], **options: Any) -> tuple[list[float], list[int]]:
        """Summed nats and label tokens of each row, in the type that the run computes in. options: of `losses`."""
        run, pad_id = self.run, self.tokenizer.pad_token_id
        return losses(self.model, rows, pad_id=pad_id, dtype=run.dtype, platform=run.platform, **options)

    def graded_losses(self, on_batch: Callable[[int], None] | None = None) -> tuple[list[float], list[int]]:
        """The same of the graded examples, summed in the order of the run."""
        with order_of(self.run, self.model):
            size = loss_batch(self.run.method.examples_shown)
            return self.losses(self.graded, batch_size=size, on_batch=on_batch)

    def spread(self) -> None:
        """Leave to this process its share of the weights, where they are shared."""
        if self.processes.sharded:
            wanted = self.run.evaluation
            if self.run.dtype != "fp32" and not (wanted.n_generate and wanted.generation_dtype == "fp32"):
                freeze_in_bf16(self.model)  # nothing is computed with float32 weights themselves
            shard(self.model, self.processes)


@dataclass(frozen=True)
class Watch:
    """Who follows a run as it is computed; nothing here changes a result.

    phase: whenever there is something new about the phase that is under way.  step: after each step of training.
    keep: has what was trained, before the record says that it is done; what it returns belongs to its provenance.
    """

    phase: Callable[[Phase], None] = lambda phase: None
    step: Callable[[Progress], None] = lambda progress: None
    keep: Callable[[Trainee], dict[str, Any]] = lambda trainee: {}


NOBODY = Watch()


def prepare(run: specs.Run, task: TaskData | None = None, processes: Processes = ALONE) -> Trainee:
    """Load what a run needs and apply its method. Raises InputError for missing or changed data or model.

    A model that will be shared by processes is loaded into the machine's memory, not the device's.
    """
    if run.start:
        raise InputError(f"What run {run.start[:12]} trained is not at hand to go on from: run that one first.")
    task = task or get_task(run.task.name)
    if task.data_sha256 != run.task.data_sha256:
        raise InputError(
            f"Task {run.task.name!r} has data {task.data_sha256[:12]}…, the run names {run.task.data_sha256[:12]}…: "
            "use the version of peftbook that shipped this data."
        )
    loaded = load_model(run.model, run.method, "cpu" if processes.sharded else run.platform, run.dtype, run.weights)
    model = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    return Trainee(run, task, loaded, model, processes)


def execute(
    run: specs.Run | specs.Probe,
    store: Store,
    *,
    task: TaskData | None = None,
    adapter: Path | None = None,
    quiet: bool = False,
    micro_batch: int | None = None,
    processes: Processes = ALONE,
    watch: Watch = NOBODY,
) -> Record:
    """Compute a run or a probe and save its record; a diverged run is saved with its `failure`.

    task: the loaded data of a task that has no name in the registry.  adapter: a folder for what was trained.
    processes: those that compute the run together, each of which calls this; the first one writes.
    watch: is told how a run gets on.
    quiet: nothing about it on standard error, of a terminal or a log.

    Raises InputError for bad input (nothing is saved): unknown task, data that is not the pinned one, missing model.
    """
    title = run.measure if isinstance(run, specs.Probe) else f"{run.method.full_kind} seed {run.seed}"
    started = datetime.datetime.now(datetime.UTC)
    with Display(title, sys.stderr) if processes.first and not quiet else contextlib.nullcontext() as display:
        phases = Phases(watch.phase, *([] if display is None else [display]))
        if isinstance(run, specs.Probe):
            phases("measuring")
            from peftbook.training.probes import measure

            found: dict[str, Any] = vars(measure(run))
            return store.save(Record(key=run.key, spec=run, provenance=provenance(started, None), **found))
        phases("loading")
        checkpoint = checkpoints_folder() / run.checkpoint
        if run.purpose == "quality":
            torch.set_num_threads(saved_threads(checkpoint))  # a start may be computed, and sums depend on them
        trainee = processes.agree(lambda: prepare(run, task, processes))
        out: dict[str, Any] = {"measurements": {}, "curve": {}, "per_example": {}, "metrics_info": {}}
        count_parameters(trainee, out["measurements"])
        if run.budget is not None:
            phases("encoding")
        predicted = predict(trainee) if processes.count == 1 else {}
        trainee.spread()
        texts: list[str] | None = None
        resumed: dict[str, int] = {}
        kept: dict[str, Any] = {}
        failure = ""
        try:
            result = train_in_steps(trainee, checkpoint, phases, micro_batch, out, watch)
            if result is not None:
                describe_training(result, out)
                resumed = {"resumed_from_step": result.resumed_from} if result.resumed_from else {}
            texts = evaluate(trainee, phases, out)
            phases("saving")
            if adapter is not None:
                save_trained(trainee, adapter)
            kept = watch.keep(trainee)
            score_as_lora(trainee, out["measurements"])
        except Diverged as error:
            failure = str(error)
        at_once = -(-run.budget.batch_size // processes.count) if run.budget else None  # unless fewer are asked
        record = Record(
            key=run.key,
            spec=run,
            provenance=provenance(started, micro_batch or at_once, processes)
            | seconds_of(predicted, out["measurements"])
            | resumed
            | kept,
            failure=failure,
            **out,
        )
        if not processes.first:
            return record
        saved = store.save(record, texts)
        if run.whole is run or failure:
            shutil.rmtree(checkpoint, ignore_errors=True)
        return saved


def predict(trainee: Trainee) -> dict[str, float]:
    """Seconds of the run's parts by the time model; empty where the machine's rates, or the model, are not known."""
    if (rates := known_rates(trainee.run.platform)) is None:
        return {}
    try:
        shape = shape_from_config(trainee.loaded.model.config.to_dict())
        return predicted_seconds(trainee.run, shape, trainee.task, trainee.tokenizer, trainee.encoded, rates)
    except InputError:
        return {}


def save_trained(trainee: Trainee, folder: Path) -> None:
    """The adapter, or the whole model and its tokenizer where there is none, as their library saves them.

    Shards are put together first.
    """
    state = {"state_dict": saved_state(trainee.model)} if trainee.processes.sharded else {}
    if trainee.processes.first:
        trainee.model.save_pretrained(folder, **state)
        if trainee.run.method.saved == "model":
            trainee.tokenizer.save_pretrained(folder)


def count_parameters(trainee: Trainee, out: dict) -> None:
    """Trainable and total parameters; a 4-bit weight counts once for each value it stores."""
    states = [(value, getattr(value, "quant_state", None)) for value in trainee.model.parameters()]
    out["trainable_parameters"] = trainee.trainable
    out["total_parameters"] = sum(
        math.prod(state.shape) if state is not None else value.numel() for value, state in states
    )


def train_in_steps(
    trainee: Trainee, checkpoint: Path, phases: Phases, micro_batch: int | None, out: dict, watch: Watch = NOBODY
) -> Trained | None:
    """Train, and say after each step how far it is."""
    run = trainee.run
    if run.budget is None:
        return None
    phases("training", detail=f"{len(trainee.encoded):,} examples")

    def show(progress: Progress) -> None:
        watch.step(progress)
        phases("training", progress.step, progress.steps, describe_step(progress.loss, progress.tokens_per_second))

    kept = checkpoint if run.purpose == "quality" else None
    return trainee.train(show, checkpoint=kept, micro_batch=micro_batch, out=out["measurements"])


def describe_training(result: Trained, out: dict) -> None:
    """Curve and cost of a training into the record's fields."""
    steps = sorted(result.step_seconds)
    out["measurements"] |= {
        "train_steps": len(result.losses),
        "train_tokens": result.tokens,
        "train_label_tokens": result.label_tokens,
        "train_seconds": round(result.seconds, 3),
        "train_tokens_per_second": round(result.tokens / result.seconds, 2),
        "median_step_seconds": round(steps[len(steps) // 2], 4),
    }
    out["curve"] = result.curve()


def evaluate(trainee: Trainee, phases: Phases, out: dict) -> list[str] | None:
    """Label loss on the split's first n_loss examples and, if asked, greedy texts and their scores."""
    model, task, run, tokenizer = trainee.model, trainee.task, trainee.run, trainee.tokenizer
    wanted = run.evaluation
    examples = task.splits[wanted.split]
    shots = few_shots(task, run)
    count_loss = phases.count("scoring loss", len(wanted.chosen(examples, wanted.n_loss)))
    began = time.monotonic()
    nats, counts = trainee.graded_losses(count_loss)
    if not all(map(math.isfinite, nats)):
        raise Diverged("Training diverged: the loss after training is not finite; lower the learning rate.")
    measured, per_example = out["measurements"], out["per_example"]
    measured["loss_nats"] = math.fsum(nats) / sum(counts)
    measured["perplexity"] = metrics.perplexity(nats, counts)
    measured["loss_examples"] = len(nats)
    measured["loss_seconds"] = round(time.monotonic() - began, 3)
    per_example["loss_nats"] = [round(value, 6) for value in nats]
    per_example["label_tokens"] = [float(count) for count in counts]
    measured["peak_memory_bytes"] = int(trainee.processes.largest(peak_memory(run.platform)))
    if not wanted.n_generate:
        return None
    chosen = wanted.chosen(examples, wanted.n_generate)
    prompts = [encode_prompt(tokenizer, task, one, shots) for one in chosen]
    began = time.monotonic()
    dtype, size = wanted.generation_dtype, generation_batch(len(shots))
    packed = run.packed and run.task.own  # published texts are those of padded prompts
    with (
        reordered(model, dtype) if packed else contextlib.nullcontext(),
        frozen_linears_in(dtype, model),
        frozen_head_in(dtype, model),
        arithmetic(model, dtype, run.platform),
    ):
        texts = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=wanted.max_new_tokens,
            batch_size=size,
            on_batch=phases.count("generating", len(prompts)),
        )
    measured["generate_seconds"] = round(time.monotonic() - began, 3)
    measured["generated_examples"] = len(texts)
    if trainee.processes.first:
        score_texts(texts, chosen, task, out, phases)
    return texts


def score_as_lora(trainee: Trainee, measured: dict) -> None:
    """Loss with the method converted to LoRA, where it can be; the trained model is used up by that."""
    converted = trainee.run.method.as_lora(trainee.model) if trainee.run.purpose == "quality" else None
    if converted is not None:
        nats, counts = replace(trainee, model=converted).graded_losses()
        measured["as_lora_loss_nats"] = math.fsum(nats) / sum(counts)


def few_shots(task: TaskData, run: specs.Run):
    """The solved examples before the question: drawn from the training split by the run's seed."""
    if not run.method.examples_shown:
        return ()
    train_split = task.splits["train"]
    picks = np.random.default_rng(run.seed).choice(len(train_split), size=run.method.examples_shown, replace=False)
    return tuple(train_split[index] for index in picks)


def score_texts(texts: list[str], examples: Sequence[TaskExample], task: TaskData, out: dict, phases: Phases) -> None:
    """The task's generation metrics, each example's score and the mean, 0–1; BLEU is of the corpus, 0–100."""
    phases("scoring texts")
    known = references(task)
    answers = [known[one.id] for one in examples]
    scores: dict[str, list[float]] = {}
    if "rouge" in task.metrics:
        scores |= metrics.rouge(texts, answers)
        out["metrics_info"]["rouge"] = {"package": "rouge_score", "stemmer": False, "measure": "f", "of": "best"}
    if "exact_match" in task.metrics:
        scores["exact_match"] = metrics.exact_match(texts, answers)
    if "bertscore" in task.metrics:
        phases("bertscore")
        scores["bertscore_f1"] = bertscore(texts, answers)
        out["metrics_info"]["bertscore"] = embedded_encoder()
    if task.judge is not None:
        phases("scoring texts")
        scores[task.judge_name] = task.judge(texts, examples)
    for name, values in scores.items():
        out["per_example"][name] = [round(value, 6) for value in values]
        out["measurements"][name] = math.fsum(values) / len(values)
    if "bleu" in task.metrics:
        statistics, signature = metrics.bleu_statistics(texts, answers)
        out["per_example"] |= statistics
        out["measurements"]["bleu"] = metrics.bleu(statistics)
        out["metrics_info"]["bleu"] = {"package": "sacrebleu", "signature": signature}
