"""Which method, settings and batch a model takes on a card, why, and what was ruled out, by byte model and records.

LoRA over 16 bits is taken where it surely fits, else LoRA over 4; with or without checkpoints, whichever is quicker
with the rows that then go at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peftbook.core.errors import InputError
from peftbook.core.records import default_store
from peftbook.decision.recipe.stages import BATCH, COMPLETION, STAGES, Stage, rate_for
from peftbook.evidence.literature import published
from peftbook.evidence.results import quantity, study_verdict
from peftbook.memory import Configuration, DecoderShape, Fit, Setup, fit
from peftbook.memory.fit import GPU_RESERVE, Change
from peftbook.memory.setup import TARGETS
from peftbook.memory.stacks import setup_in
from peftbook.methods import preset

STACK = "trl"
LORA = preset("lora").method
RANK: int = LORA.rank  # type: ignore[attr-defined]
KEPT = 0.99  # of the rows that a length must hold, where the longest are far longer
STEP = 64  # tokens to which a length is rounded up
SPARE = 1.25  # tokens that may be written for one of the longest target, and of another tokenizer for one of ours
IN_OUR_RUNS = "In our runs (SmolLM2-135M, docstrings)"
FEW_TESTS = 100  # of validation and of test
VARIANTS = {"DoRA": "dora", "PiSSA": "pissa", "OLoRA": "olora", "LoRA+": "lora_plus"}  # and their studies
PLANS = (("lora", False), ("lora", True), ("qlora", False), ("qlora", True))  # method, checkpoints


@dataclass(frozen=True)
class RowTokens:
    """Tokens of an example: what stands before the answer, template included, and the answer with its end of turn.

    earlier: of the first, those of earlier answers of a chat, which are trained on too.
    """

    before: int
    answer: int
    earlier: int = 0

    @property
    def tokens(self) -> int:
        return self.before + self.answer


@dataclass(frozen=True)
class FittedMethod:
    """A method with its largest micro-batch on a card; none where not even a row surely fits."""

    method: str
    checkpointing: bool
    fit: Fit
    micro_batch: int

    @property
    def setup(self) -> Setup:
        return self.fit.configuration.setup

    @property
    def label(self) -> str:
        """Its name as people say it."""
        return f"{preset(self.method).method.label}{' with checkpoints' if self.checkpointing else ''}"


@dataclass(frozen=True)
class TrainingRecipe:
    """What is advised.

    stage: what the model learns from.
    max_length: tokens of a training row; longer rows, of which there are `left_out`, are not trained on.
    every_answer: whether rows are chats of several answers, all of which have a loss.
    micro_batch × accumulation: rows of a step.  rate_reason: what the learning rate rests on.
    modules: names of the matrices that get an adapter.  parameters, context: of the model,
    0 positions if that is unknown.
    band: what the machine will show at the peak, in bytes, at least and at most.
    why: of the method.  ruled_out: others, each with the reason.  cautions: about the data.
    """

    stage: Stage
    method: str
    label: str
    setup: Setup
    modules: tuple[str, ...]
    parameters: int
    context: int
    max_length: int
    left_out: int
    every_answer: bool
    micro_batch: int
    accumulation: int
    steps: int
    learning_rate: float
    rate_reason: str
    peak: float
    band: tuple[float, float]
    memory: float
    max_new_tokens: int
    why: str
    ruled_out: tuple[tuple[str, str], ...]
    cautions: tuple[str, ...]

    @property
    def learns_from(self) -> str:
        """What has a loss."""
        return "every answer of a chat" if self.every_answer else self.stage.loss


def choose(
    shape: DecoderShape,
    name: str,
    rows: Mapping[str, Sequence[RowTokens]],
    memory: float,
    own: bool = True,
    stage: Stage = STAGES["sft"],
) -> TrainingRecipe:
    """The recipe for a model of this shape and name on these splits.

    own: whether the rows were counted with its own tokenizer; another's may have a quarter fewer tokens. Raises
    InputError where nothing surely fits, with what would.
    """
    if stage.name == "grpo":
        rows = with_own_answers(rows)
    training = rows["train"]
    max_length = longest_kept([row.tokens * (1 if own else SPARE) for row in training])
    if shape.context and max_length > shape.context:
        max_length = shape.context
    kept = [row for row in training if row.tokens <= max_length]
    if not kept:
        raise InputError(
            f"No training row has at most the {max_length:,} tokens of {name}'s context: shorten the rows, or choose a "
            "model with a longer one."
        )
    answer = max(row.answer + row.earlier for row in kept)
    plans = [plan_for(shape, *plan, max_length, answer, memory, stage) for plan in PLANS]
    chosen = chosen_of(plans)
    if chosen is None:
        raise InputError(nothing_fits(name, plans[-1], memory))
    setup = at_batch(chosen, stage.rows)
    peak = Configuration(shape, setup).step.peak().total
    rate, reason = rate_for(shape, name, stage.name)
    left_out = len(training) - len(kept)
    return TrainingRecipe(
        stage=stage,
        method=chosen.method,
        label=chosen.label,
        setup=setup,
        modules=tuple(shape.adapted(setup.targets)),
        parameters=shape.parameters,
        context=shape.context,
        max_length=max_length,
        left_out=left_out,
        every_answer=stage.name == "sft" and any(row.earlier for row in training),
        micro_batch=chosen.micro_batch,
        accumulation=stage.rows // chosen.micro_batch,
        steps=round(stage.epochs * math.ceil(len(kept) / BATCH)),
        learning_rate=rate,
        rate_reason=reason,
        peak=peak,
        band=(peak + GPU_RESERVE[0].beside(peak), peak + GPU_RESERVE[1].beside(peak)),
        memory=memory,
        max_new_tokens=answer if stage.name == "grpo" else longest_answer(rows, max_length, own),
        why=why(chosen, plans),
        ruled_out=ruled_out(shape, chosen, max_length, answer, memory, stage),
        cautions=cautions(stage, {name: len(split) for name, split in rows.items()}, left_out, max_length),
    )


def with_own_answers(rows: Mapping[str, Sequence[RowTokens]]) -> dict[str, list[RowTokens]]:
    """The rows with the longest answer that the model may write to each of them while it is rewarded."""
    written = max(COMPLETION, *(row.answer for split in rows.values() for row in split))
    return {name: [RowTokens(row.before, written) for row in split] for name, split in rows.items()}


# --- what fits ------------------------------------------------------------------------------------------------


def plan_for(
    shape: DecoderShape, method: str, checkpointing: bool, seq: int, answer: int, memory: float, stage: Stage
) -> FittedMethod:
    """A method in the stack's set-up, at its largest power of two of rows up to the batch."""
    asked = fields_of(method, shape) | {"stage": stage.name, "checkpointing": checkpointing, "seq": seq}
    if stage.name == "grpo":  # which writes all answers of a step at once
        asked |= {"completion": answer, "rollouts": stage.rows}

    def derive(fields: Mapping[str, object]) -> Setup:
        setup, _ = setup_in(STACK, **asked | {"batch": 1} | dict(fields))
        labels = min(answer, seq) * setup.batch if stage.name == "sft" else setup.labels
        return replace(setup, labels=labels, accumulated=setup.batch < stage.rows)

    fitting = fit(Configuration(shape, derive({})), memory, GPU_RESERVE, derive)
    rows = min(fitting.largest_batch, BATCH)
    micro = 2 ** int(math.log2(rows)) if rows else 0
    return FittedMethod(method, checkpointing, fitting, micro)


def fields_of(method: str, shape: DecoderShape) -> dict[str, object]:
    """Of a set-up, as the scripts write it: weights in bfloat16, adapters in float32."""
    own: dict[str, object] = (
        {"method": "full"} if method == "full" else {"method": "lora", "adapter_dtype": "fp32", "rank": RANK}
    )
    own |= {"dtype": "bf16", "attention": "eager" if shape.capped_scores else "sdpa"}
    if method != "full":
        own["targets"] = TARGETS[:4] if shape.experts else TARGETS
    return own | ({"quantised": "nf4"} if method == "qlora" else {})


def at_batch(plan: FittedMethod, batch: int = BATCH) -> Setup:
    """The set-up at the plan's own micro-batch, of `batch` rows a step."""
    rows, setup = plan.micro_batch, plan.setup
    return replace(
        setup, batch=rows, labels=setup.labels * rows, padding=setup.padding or rows > 1, accumulated=rows < batch
    )


def chosen_of(plans: Sequence[FittedMethod]) -> FittedMethod | None:
    """The quickest plan of the first method that fits."""
    fitting = [plan for plan in plans if plan.micro_batch]
    return min((plan for plan in fitting if plan.method == fitting[0].method), key=pace, default=None)


def pace(plan: FittedMethod) -> float:
    """How long a step takes, in readings of the frozen weights: passes · micro-batches · max(1, tokens / balance).

    A pass reads the weights forward or backward, and once more with checkpoints. Its products take longer than that
    from `balance` tokens on: in bfloat16 a product of t tokens has 2t operations for each weight of two bytes, so it is
    a card's operations a second over its bytes a second, here an H100's. Source: Austin et al. 2025.
    """
    operations, bandwidth = (float(published(f"austin2025-h100-{name}").value) for name in ("operations", "bandwidth"))
    passes = 3 if plan.checkpointing else 2
    tokens = plan.micro_batch * plan.setup.seq
    return passes * BATCH / plan.micro_batch * max(1.0, tokens * bandwidth / operations)


def nothing_fits(name: str, last: FittedMethod, memory: float) -> str:
    """The sentence for a card that is too small."""
    need = GPU_RESERVE[1]
    total = last.fit.peak.total
    least = (total + need.beside(total)) / 2**30
    changes: Sequence[Change] = last.fit.changes
    help_ = f", or {' and '.join(changes[0].names)} (see `peftbook fit`)" if changes else ""
    return (
        f"{name} does not surely fit in {memory / 2**30:.0f} GiB: over 4 bits, with checkpoints, one row of "
        f"{last.setup.seq} tokens takes up to {least:.1f} GiB; choose a smaller model, shorter rows{help_}."
    )


# --- length ---------------------------------------------------------------------------------------------------


def longest_kept(tokens: Sequence[float]) -> int:
    """The length that training rows are held to: of all rows, unless the last hundredth is far longer than the others.

    Rounded up to 64. Memory and time go with the longest row of a batch, so a few long rows would be paid for by all.
    """
    ordered = sorted(tokens)
    most = ordered[min(len(ordered) - 1, math.ceil(KEPT * len(ordered)) - 1)]
    longest = ordered[-1] if ordered[-1] <= 1.5 * most else most
    return STEP * math.ceil(longest / STEP)


def longest_answer(rows: Mapping[str, Sequence[RowTokens]], max_length: int, own: bool) -> int:
    """Tokens that an answer may have: of the longest target among the rows that are no outliers, with room."""
    known = [row.answer for split in rows.values() for row in split if row.tokens <= max_length]
    return 16 + math.ceil(SPARE * max(known) * (1 if own else SPARE))


# --- reasons --------------------------------------------------------------------------------------------------


def why(chosen: FittedMethod, plans: Sequence[FittedMethod]) -> str:
    """Why this method, in a sentence."""
    at = f"{chosen.micro_batch} rows of {chosen.setup.seq} tokens at a time"
    if chosen.method == "lora":
        return f"LoRA over 16 bits fits, {at}: no weight is rounded, and it merges into those that it was trained on."
    over = plans[0 if plans[0].micro_batch else 1]
    least = over.fit.peak.total / 2**30
    return (
        f"LoRA over 4 bits fits, {at}; over 16 bits one row would take {least:.1f} GiB of tensors. {IN_OUR_RUNS} QLoRA "
        f"minus LoRA is {gap('methods.qlora_minus_lora_rougeL')} in ROUGE-L and "
        f"{gap('methods.qlora_minus_lora_loss')} nats a token in loss."
    )


def gap(name: str) -> str:
    """A measured difference with its interval."""
    found = quantity(name)
    ends = "" if found.low is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{ends}"


def ruled_out(
    shape: DecoderShape, chosen: FittedMethod, seq: int, answer: int, memory: float, stage: Stage
) -> tuple[tuple[str, str], ...]:
    """(method, why not) of what people ask for."""
    whole = plan_for(shape, "full", True, seq, answer, memory, stage)
    least = whole.fit.peak.total / 2**30
    room = "fits too" if whole.micro_batch else "does not fit"
    reasons = [
        (
            "full fine-tuning",
            f"{room}: one row with checkpoints takes {least:.1f} GiB of tensors. {IN_OUR_RUNS} LoRA minus full is "
            f"{gap('methods.lora_minus_full_rougeL')} in ROUGE-L",
        )
    ]
    if chosen.method == "lora":
        reasons.append(("QLoRA", "LoRA fits without it: 4 bits round the weights, and each is unpacked in every step"))
    shorter = f"in{IN_OUR_RUNS[2:]} it is {gap('methods.prompt_minus_lora_rougeL')} in ROUGE-L from LoRA"
    reasons.append(("prompt tuning", f"{shorter}, and vLLM no longer serves soft prompts"))
    reasons.append((", ".join(VARIANTS), f"their trials here, against LoRA whose rate is tuned: {trials()}"))
    return tuple(reasons)


def trials() -> str:
    """What the trials of LoRA's variants found, each in two words."""
    found = {name: study_verdict(study, default_store()).outcome for name, study in VARIANTS.items()}
    said = dict.fromkeys(found.values())
    return "; ".join(f"{', '.join(name for name, each in found.items() if each == one)} {one}" for one in said)


def cautions(stage: Stage, counts: Mapping[str, int], left_out: int, max_length: int) -> tuple[str, ...]:
    """What stage and data will not carry. counts: rows of each split."""
    found = []
    if stage.name == "dpo":
        found.append(
            "DPO chooses between answers that the model gives already. Where it does not write such answers yet, train "
            "it on the chosen ones first (--stage sft), merge, and give the merged folder as --model (Rafailov et al. "
            "2023, section 4)"
        )
    if left_out:
        found.append(f"{left_out} training rows are longer than {max_length} tokens and are left out")
    if counts["validation"] < FEW_TESTS:
        found.append(f"{counts['validation']} validation rows choose rate and epoch roughly: near losses are equal")
    if counts["test"] < FEW_TESTS:
        test = counts["test"]
        found.append(f"{test} test rows tell large differences alone: `peftbook power --rows {test}` says which")
    return tuple(found)
