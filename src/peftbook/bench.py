"""Benchmarks: the training loop against TRL's SFTTrainer and transformers' Trainer, and how long the book builds.

Every contestant of `train_bench` trains the same weights (one seeded adapter) on the same examples, each seen once,
in a process of its own; rounds are interleaved (A, B, C, A, B, C), so that a slow spell of the machine hits all. One
function, ours, computes the validation loss of all of them after training: that is the check that the work was the
same. Before the rounds each contestant that leaves it open tries both types, and its rounds are run in the faster one.
Run it on an otherwise idle machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peftbook import specs
from peftbook.errors import InputError
from peftbook.methods import get, named
from peftbook.records import write_atomically
from peftbook.tasks import TaskData, get_task

__all__ = ["CONTESTANTS", "Contestant", "book_bench", "measure", "print_table", "table", "train_bench"]

BATCH = 8
LEARNING_RATE = 2e-4
WARMUP = 0.1
MAX_LENGTH = 512
SEED = 0
VALIDATION_EXAMPLES = 64
LAST_STEPS = 5  # the end of a loss curve is the mean of its last steps: single batches are noisy
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
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


@dataclass(frozen=True)
class Contestant:
    """One way to train: `library` is "ours", "trl" or "trainer"; `arguments` go beyond what all peers share.

    With `raw_chat` the library applies the chat template itself; else it is given our token ids and labels.
    dtypes: those that it tries before the rounds; a contestant by its library's defaults tries none.
    """

    name: str
    library: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw_chat: bool = False
    note: str = ""
    dtypes: tuple[str, ...] = ()


TUNED: dict[str, Any] = {"gradient_checkpointing": False}
BOTH = ("bf16", "fp32")
TRIAL_STEPS = 2  # the first of which pays for preparations
TRIAL_SECONDS = 90  # a trial that takes longer is lost
CONTESTANTS: tuple[Contestant, ...] = (
    Contestant("ours", "ours", note="The step as in every run of the book, no checkpoint written.", dtypes=BOTH),
    Contestant(
        "trl-default",
        "trl",
        raw_chat=True,
        note="Prompt-completion chat data, the template applied by TRL: it labels one token an example more than ours "
        "(the line feed after the end-of-turn token). SFTConfig() alone raises ValueError on a CPU: its default bf16 "
        "needs use_cpu=True. On CPU TRL's fused head scores every position, labelled or not.",
    ),
    Contestant(
        "trl-tuned",
        "trl",
        {**TUNED, "train_sampling_strategy": "group_by_length", "max_length": MAX_LENGTH},
        note="Our token ids and labels. Length groups come longest first.",
        dtypes=BOTH,
    ),
    Contestant(
        "trl-packed",
        "trl",
        {**TUNED, "packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1},
        note="Our token ids and labels, one pack a step; max_length is 8 × the mean length, so a pack holds 8 examples "
        "on average, not exactly. TRL documents packing for flash attention; under sdpa position ids still isolate "
        "the examples (tested: equal losses), but attention is computed densely over the whole pack.",
        dtypes=BOTH,
    ),
    Contestant(
        "trainer-default",
        "trainer",
        note="Our token ids and labels, DataCollatorForSeq2Seq. The default precision is that of the weights, float32; "
        "logits are computed at all positions.",
    ),
    Contestant(
        "trainer-tuned",
        "trainer",
        {**TUNED, "train_sampling_strategy": "group_by_length"},
        note="Our token ids and labels, DataCollatorForSeq2Seq. Logits are computed at all positions: Trainer has no "
        "setting that restricts them to labels. Length groups come longest first.",
        dtypes=BOTH,
    ),
)
PEERS = ("trl", "trainer")


@dataclass
class Work:
    """What one step went through."""

    examples: int
    label_tokens: int
    real_tokens: int
    padded_tokens: int


@dataclass
class Trace:
    """What a training left: step ends in seconds since its start, work and loss of every step, and its settings."""

    ends: list[float] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    set_here: dict[str, Any] = field(default_factory=dict)
    left_alone: dict[str, Any] = field(default_factory=dict)
    all_arguments: dict[str, Any] = field(default_factory=dict)
    prepare_seconds: float = 0.0
    train_seconds: float = 0.0


# ---- the parent: order, processes, aggregation ----


def train_bench(
    steps: int = 40,
    methods: Sequence[str] = ("lora",),
    peers: bool | Sequence[str] = True,
    out: Path | None = None,
    *,
    rounds: int = 3,
    model: str = specs.EMBEDDED_MODEL,
    task: str = "docstrings",
    validation: int = VALIDATION_EXAMPLES,
    compute: Callable[[dict], dict] | None = None,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Measure every contestant on `steps` × 8 examples, `rounds` times in turn; one row for each method and contestant.

    peers: names from PEERS (True: all, False or empty: only ours).   out: also write the rows there as JSON.
    Speeds leave the first step out (see `speed`). A contestant that fails gets a row that says why.
    Raises InputError for unknown names, fewer than two steps, and when TRL is asked for but not installed.
    """
    chosen = pick(peers)
    check(steps, rounds, methods)
    results: dict[tuple[str, str], list[dict]] = {}
    trials: dict[tuple[str, str], dict[str, float]] = {}
    shared: dict[str, Any] = {"model": model, "task": task, "validation": validation}
    for turn in range(-1, rounds):
        for method in methods:
            for contestant in chosen:
                name = method, contestant.name
                job = shared | {"contestant": contestant.name, "method": method}
                if turn < 0:
                    trials[name] = try_types(contestant, job, compute or run_process, report)
                    continue
                dtype = max(trials[name], key=lambda one: trials[name][one], default="")
                report(f"round {turn + 1} of {rounds}: {method}, {contestant.name} {dtype}")
                found = (compute or run_process)(job | {"steps": steps, "dtype": dtype})
                results.setdefault(name, []).append(found)
                report("    " + (found.get("failure") or f"{speed(found, 'real_tokens'):.0f} real tokens/s"))
    rows = [aggregate(*name, found) | {"tokens_per_second_by_dtype": trials[name]} for name, found in results.items()]
    if out is not None:
        write_atomically(Path(out), (json.dumps(rows, indent=1) + "\n").encode())
    return rows


def try_types(
    contestant: Contestant, job: dict, compute: Callable[[dict], dict], report: Callable[[str], None]
) -> dict[str, float]:
    """Type → real tokens a second in a training of TRIAL_STEPS; 0 where it failed."""
    found = {}
    for dtype in contestant.dtypes:
        report(f"trial: {job['method']}, {contestant.name} {dtype}")
        result = compute(job | {"steps": TRIAL_STEPS, "dtype": dtype, "seconds": TRIAL_SECONDS})
        found[dtype] = 0.0 if result.get("failure") else speed(result, "real_tokens")
        report("    " + (result.get("failure") or f"{found[dtype]:.0f} real tokens/s"))
    return found


def pick(peers: bool | Sequence[str]) -> list[Contestant]:
    """Ours, then the contestants of the named libraries."""
    names = tuple(peers) if not isinstance(peers, bool) else PEERS if peers else ()
    if unknown := [name for name in names if name not in PEERS]:
        raise InputError(f"Unknown peer {unknown[0]!r}: choose from {', '.join(PEERS)}.")
    if "trl" in names and importlib.util.find_spec("trl") is None:
        raise InputError("The comparison with TRL needs trl: install with pip install 'peftbook[bench]'.")
    return [one for one in CONTESTANTS if one.library in ("ours", *names)]


def check(steps: int, rounds: int, methods: Sequence[str]) -> None:
    """Refuse what cannot be measured."""
    if steps < 2:
        raise InputError(f"steps = {steps} leaves nothing to time after the first step: use at least 2.")
    if rounds < 1:
        raise InputError(f"rounds = {rounds} measures nothing: use at least 1.")
    for name in methods:
        if not get(name).trains:
            raise InputError(f"Method {name!r} is not trained: choose full, lora, qlora or prompt.")


def run_process(job: dict) -> dict:
    """`measure` in a fresh process, of at most job["seconds"]; the result, or a dictionary with its `failure`."""
    with tempfile.TemporaryDirectory(prefix="peftbook-bench-") as folder:
        target = Path(folder) / "result.json"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "peftbook.bench", str(target)],
                input=json.dumps(job), text=True, capture_output=True, check=False, timeout=job.get("seconds"),
                env={"HF_HUB_OFFLINE": "1", **os.environ},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failure": f"took more than {job['seconds']} s"}
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        if done.returncode == 2:
            raise InputError(said)
        if done.returncode:
            return {"failure": said}
        return json.loads(target.read_text())


def aggregate(method: str, contestant: str, found: list[dict]) -> dict:
    """Medians and ranges over the rounds that succeeded; curve and settings of the first of them."""
    good = [one for one in found if not one.get("failure")]
    failure = next((one["failure"] for one in found if one.get("failure")), "")
    row: dict[str, Any] = {"contestant": contestant, "method": method, "rounds": len(good), "failure": failure}
    row["note"] = next((one.note for one in CONTESTANTS if one.name == contestant), "")
    if not good:
        return row
    names = ("examples", "label_tokens", "real_tokens")
    for name in names:
        row[f"{name}_per_second"] = spread([speed(one, name) for one in good])
    for name in ("peak_memory_mib", "load_memory_mib", "load_seconds", "prepare_seconds", "train_seconds"):
        row[name] = spread([one[name] for one in good])
    row["validation_loss_nats"] = spread([one["validation_loss_nats"] for one in good])
    first = good[0]
    for name in (*names, "padded_tokens"):
        row[name] = sum(step[name] for step in first["work"])
    row["steps"] = len(first["losses"])
    row["losses"] = first["losses"]
    row["loss_start_nats"] = first["losses"][0]
    row["loss_end_nats"] = statistics.fmean(first["losses"][-LAST_STEPS:])
    for name in ("set_here", "left_alone", "all_arguments", "machine"):
        row[name] = first[name]
    row["measurements"] = [{"ends": one["ends"], "load_average": one["machine"]["load_average"]} for one in good]
    return row


def speed(result: dict, name: str) -> float:
    """Units of `name` a second: real tokens a second, times the units per real token of the whole run.

    The first step is left out (it pays for allocations and first calls). Some samplers serve the longest examples
    first, so that a plain count of the examples after it would flatter them; real tokens do not.
    """
    ends, work = result["ends"], result["work"]
    rate = sum(step["real_tokens"] for step in work[1:]) / (ends[-1] - ends[0])
    return rate * sum(step[name] for step in work) / sum(step["real_tokens"] for step in work)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


# ---- the child: one contestant ----


def measure(job: dict) -> dict:
    """Train as one contestant and measure it: JSON-ready. Meant for a process of its own."""
    from peftbook.training.forward import apply_method
    from peftbook.training.loop import losses
    from peftbook.training.models import load_model

    contestant = next(one for one in CONTESTANTS if one.name == job["contestant"])
    began = time.perf_counter()
    method = named(job["method"])
    dtype = job.get("dtype", "")
    loaded = load_model(specs.Model(name=job["model"]), method)
    tokenizer = loaded.tokenizer
    model = apply_method(loaded.model, method, SEED, tokenizer)
    load_seconds = time.perf_counter() - began
    load_memory = peak_memory_mib()
    task = get_task(job["task"])
    chosen = choose(tokenizer, task, "train", job["steps"] * BATCH)
    dtypes = watch_dtype(model)
    if contestant.library == "ours":
        trace = train_ours(model, tokenizer, chosen, dtype or "bf16")
    else:
        trace = train_peer(with_dtype(contestant, dtype), model, tokenizer, task, chosen)
    peak = peak_memory_mib()
    trace.set_here["method"] = json.loads(method.model_dump_json())
    trace.left_alone["dtype of the weights"] = str(next(model.parameters()).dtype)
    trace.left_alone["dtype that linear layers return"] = ", ".join(sorted(dtypes))
    trace.left_alone["attention"] = loaded.model.config._attn_implementation
    held_out = [encoded for _, encoded in choose(tokenizer, task, "validation", job["validation"])]
    nats, counts = losses(model, held_out, pad_id=tokenizer.pad_token_id)
    return asdict(trace) | {
        "load_seconds": load_seconds,
        "load_memory_mib": load_memory,
        "peak_memory_mib": peak,
        "validation_loss_nats": sum(nats) / sum(counts),
        "machine": machine(),
    }


def with_dtype(contestant: Contestant, dtype: str) -> Contestant:
    """The contestant told to compute in a type; as it is where none is said."""
    return replace(contestant, arguments=contestant.arguments | {"bf16": dtype == "bf16"}) if dtype else contestant


def choose(tokenizer, task: TaskData, split: str, count: int) -> list[tuple[Any, Any]]:
    """(example, its encoding), `count` of them in a seeded order; those that do not fit MAX_LENGTH are left out.

    No contestant truncates, so all see the same tokens.
    """
    import numpy as np

    from peftbook.training.encode import encode_example

    found: list[tuple[Any, Any]] = []
    for index in np.random.default_rng(SEED).permutation(len(task.splits[split])):
        example = task.splits[split][index]
        with contextlib.suppress(InputError):
            encoded = encode_example(tokenizer, task, example, MAX_LENGTH)
            if not encoded.truncated:
                found.append((example, encoded))
        if len(found) == count:
            return found
    raise InputError(f"Only {len(found)} {split} examples fit {MAX_LENGTH} tokens and {count} are needed: lower steps.")


def watch_dtype(model) -> set[str]:
    """A set that fills with the types that the first adapted linear layer returns (shows whether autocast is on)."""
    from torch import nn

    from peftbook.training.forward import causal_model

    seen: set[str] = set()
    layers = causal_model(model).model.layers
    linear = next(part for part in layers.modules() if isinstance(part, nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.add(str(output.dtype)))
    return seen


PRECISION = {"bf16": "bfloat16 autocast over float32 weights", "fp32": "float32"}


def train_ours(model, tokenizer, chosen: list[tuple[Any, Any]], dtype: str) -> Trace:
    """The book's loop with the book's encoding."""
    from peftbook.training.encode import batch_plan
    from peftbook.training.loop import learning_rate, train

    data = [encoded for _, encoded in chosen]
    lengths = [len(one.ids) for one in data]
    budget = specs.Budget(
        tokens=sum(lengths), batch_size=BATCH, learning_rate=LEARNING_RATE, warmup=WARMUP, max_length=MAX_LENGTH
    )
    trace = Trace()
    began = time.perf_counter()
    result = train(
        model, data, budget, seed=SEED, pad_id=tokenizer.pad_token_id, dtype=dtype,
        on_step=lambda progress: trace.ends.append(time.perf_counter() - began),
    )  # fmt: skip
    trace.train_seconds = time.perf_counter() - began
    trace.losses = result.losses
    trace.learning_rates = [learning_rate(budget, step, len(trace.losses)) for step in range(len(trace.losses))]
    for batch in batch_plan(lengths, BATCH, budget.tokens, SEED):
        sizes = [lengths[index] for index in batch]
        labels = sum(data[index].label_tokens for index in batch)
        trace.work.append(Work(len(batch), labels, sum(sizes), len(sizes) * max(sizes)))
    trace.set_here = json.loads(budget.model_dump_json())
    trace.left_alone = {
        "optimizer": "torch.optim.AdamW, fused, betas 0.9 and 0.999, eps 1e-08",
        "schedule": "linear warm-up, then constant",
        "precision": PRECISION[dtype],
        "gradient checkpointing": False,
        "batches": "random permutation, pools of 16 batches sorted by length, batches shuffled",
        "attention mask": "none (right padding, causal attention)",
        "logits": "at label positions only",
        "seed": SEED,
    }
    return trace


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
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": max(1, round(WARMUP * steps)),
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": SEED,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | contestant.arguments
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
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [-100] * encoded.start + ids[encoded.start :],
    }


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


def peak_memory_mib() -> float:
    """Peak resident memory of this process's own program."""
    from peftbook.training.hardware import peak_memory

    return peak_memory("cpu") / 2**20


def machine() -> dict[str, Any]:
    """Where a measurement was made."""
    from importlib import metadata

    import torch

    from peftbook.training.hardware import machine_name
    from peftbook.training.precision import instruction_limits

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "name": machine_name(),
        "instructions": ", ".join(filter(None, (torch.backends.cpu.get_cpu_capability(), instruction_limits()))),
        "threads": torch.get_num_threads(),
        "nice": os.nice(0),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


# ---- the book ----


def book_bench(
    root: Path,
    command: Sequence[str] | None = None,
    *,
    chapter: str = "book/lora.md",
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Seconds of three builds of the book at `root`: cold (no `_build`), warm, after an edit of one chapter's prose.

    command: what builds the book, run in `root`; by default Jupyter Book without flags.
    `_build` is moved aside and put back, the chapter's bytes and times too, whatever happens in between.
    Raises InputError when a build fails, and when an earlier call was killed and left its files aside.
    """
    root = Path(root).resolve()
    page = root / chapter
    if not page.is_file():
        raise InputError(f"There is no chapter {str(page)!r} to touch: give the root of the book and one of its pages.")
    command = list(command or (str(Path(sys.executable).with_name("jupyter-book")), "build", str(root)))
    rows = []
    with build_aside(root), kept(page):
        for build in ("cold", "warm", "touched"):
            report(f"{build} build")
            if build == "touched":
                page.write_bytes(page.read_bytes() + b"\n\nA sentence that `peftbook bench book` adds and removes.\n")
            rows.append({"build": build, "seconds": timed(command, root), "command": command, "chapter": chapter})
    return rows


@contextlib.contextmanager
def build_aside(root: Path) -> Iterator[None]:
    """No `_build` inside the block; the old one is back after it."""
    build, aside = root / "_build", root / ".bench-aside"
    if aside.exists():
        raise InputError(f"{str(aside)!r} is left from a bench that was killed: move its content back, delete it.")
    aside.mkdir()
    try:
        if build.exists():
            build.rename(aside / "_build")
        yield
    finally:
        shutil.rmtree(build, ignore_errors=True)
        if (aside / "_build").exists():
            (aside / "_build").rename(build)
        aside.rmdir()


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """The file has the same bytes and times after the block as before it."""
    content, times = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def timed(command: Sequence[str], folder: Path) -> float:
    """Wall seconds of a command. Raises InputError with its last line when it fails."""
    began = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{command[0]!r} cannot be run ({error.strerror}): give another command.") from None
    seconds = time.perf_counter() - began
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise InputError(f"`{' '.join(command)}` failed with status {done.returncode}: {said}")
    return seconds


# ---- text ----

COLUMNS = ("contestant", "examples/s", "label tok/s", "real tok/s", "× ours", "bf16 | fp32", "padding", "peak MiB",
           "train loss", "validation")  # fmt: skip


def print_table(rows: Sequence[dict]) -> None:
    """Print the rows of either bench."""
    print(table(rows))


def table(rows: Sequence[dict]) -> str:
    """The rows as text: numbers first, then every setting and the caveats of each contestant."""
    if rows and "build" in rows[0]:
        lines = [f"{row['build']:<8}{row['seconds']:8.1f} s" for row in rows]
        return "\n".join([*lines, f"command: {' '.join(rows[0]['command'])}", f"touched: {rows[0]['chapter']}"])
    blocks = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        blocks += [numbers(method, mine), *map(settings, mine)]
    return "\n\n".join(blocks)


def numbers(method: str, rows: Sequence[dict]) -> str:
    """The table of one method: medians over rounds, ranges in brackets."""
    base = next((r["examples_per_second"]["median"] for r in rows if r["contestant"] == "ours" and r["rounds"]), None)
    cells = [list(COLUMNS)]
    for row in rows:
        if not row["rounds"]:
            cells.append([row["contestant"], "failed", *[""] * (len(COLUMNS) - 2)])
            continue
        median = row["examples_per_second"]["median"]
        cells.append([
            row["contestant"],
            ranged(row["examples_per_second"], 2),
            ranged(row["label_tokens_per_second"], 1),
            ranged(row["real_tokens_per_second"], 0),
            f"{median / base:.2f}" if base else "",
            " | ".join(f"{rate:.0f}" for rate in row["tokens_per_second_by_dtype"].values()) or "its own",
            f"{1 - row['real_tokens'] / row['padded_tokens']:.1%}",
            ranged(row["peak_memory_mib"], 0),
            f"{row['loss_start_nats']:.3f} → {row['loss_end_nats']:.3f}",
            ranged(row["validation_loss_nats"], 4),
        ])  # fmt: skip
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    rounds = max(row["rounds"] for row in rows)
    title = f"{method}: median of {rounds} rounds [lowest–highest], first step left out"
    foot = (
        "examples/s and label tok/s: real tok/s times their number per real token in the whole run.\n"
        f"bf16 | fp32: real tok/s of the second step in either type; the rounds are in the faster one.\n"
        f"train loss: nats per label token, first step → mean of the last {LAST_STEPS} steps, on each library's own "
        "batches.\nvalidation: nats per label token of the same held-out examples, by our function, after training."
    )
    if where := next((row["machine"] for row in rows if row["rounds"]), None):
        versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        foot += (
            f"\n{where['name']}, {where['instructions']}, {where['threads']} threads, nice {where['nice']}; {versions}"
        )
    return "\n".join([title, *lines, foot])


def ranged(value: dict[str, float], digits: int) -> str:
    """Median, with the range where rounds differ."""
    middle, low, high = (f"{value[name]:.{digits}f}" for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} [{low}–{high}]"


def settings(row: dict) -> str:
    """Every setting of a contestant, one block: set here, left alone, caveats, failure."""
    lines = [f"{row['contestant']} ({row['method']})"]
    if row["rounds"]:
        lines.append(
            f"  {row['steps']} steps, {row['examples']} examples, {row['label_tokens']} label tokens, "
            f"{row['real_tokens']} real tokens; load {row['load_seconds']['median']:.1f} s "
            f"({row['load_memory_mib']['median']:.0f} MiB), prepare {row['prepare_seconds']['median']:.1f} s, "
            f"whole training {row['train_seconds']['median']:.1f} s"
        )
        for title, name in (("set here", "set_here"), ("left alone", "left_alone")):
            pairs = ", ".join(f"{key}={value}" for key, value in row[name].items())
            lines += textwrap.wrap(f"{title}: {pairs}", 118, initial_indent="  ", subsequent_indent="    ")
    if row["note"]:
        lines += textwrap.wrap(row["note"], 118, initial_indent="  ", subsequent_indent="  ")
    if row["failure"]:
        lines += textwrap.wrap(f"FAILED: {row['failure']}", 118, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def main() -> None:
    """Measure the job on standard input and write the result to the file that the first argument names."""
    job = json.loads(sys.stdin.read())
    try:
        result = measure(job)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
