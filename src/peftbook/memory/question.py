"""What is asked of `peftbook fit`, as a set-up, and the whole answer.

    answered(Question("llama-2-7b", "24GiB", method="qlora")).fit.fits

The book's page *Will it fit?* asks in the same way: it runs a translation of this module (`views.site.byte_model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.architecture import NO_SDPA
from peftbook.memory.configuration import Configuration
from peftbook.memory.fit import (
    GPU_RESERVE,
    Fit,
    as_numbers,
    bytes_of_card,
    bytes_of_text,
    card_note,
    conclusion,
    fit,
    verdict,
)
from peftbook.memory.names import ATTENTION, METHOD_NAMES, OPTIMISER_NAMES, TARGET_WORDS, meant, variant
from peftbook.memory.setup import TARGETS, Setup
from peftbook.memory.shapes import SHAPES, DecoderShape, quantised_in, read_config, read_shape
from peftbook.memory.stacks import Assumption, setup_in, stack_of

ON_OFF = {  # options that are on or off; without them it is as the stack has it
    "autocast": "matrix products in bfloat16 by autocast", "dropout": "LoRA with dropout",
    "padding": "rows of different length, with a mask", "checkpointing": "keep only the input of each layer",
    "offloaded": "with checkpointing: and that on the host",
    "accumulated": "gradients that stay over several micro-batches",
    "wide_norms": "norms in float32 over a quantised base, and with them what layers hand on",
    "keeps_inputs": "4-bit matrices keep their inputs: bitsandbytes before 0.43.2",
    "in_backward": "full: the optimiser moves a weight when it has its gradient, which is then let go",
    "reference": "the untrained model scores rows too: dpo without precompute_ref_log_probs, grpo with a beta above 0",
    "host_weights": "the host holds weights and optimiser, the card a layer at a time: FSDP's and ZeRO-3's offload",
}  # fmt: skip
REWORDED = ("method", "labels", "targets", "saved", "attention", "optimiser")  # settings that are not taken as said
EXACT = 2**53  # bytes that a float can count


@dataclass(frozen=True)
class Question:
    """The options of `peftbook fit` by their names; None, or nothing, leaves a setting to the stack."""

    model: str
    memory: str
    method: str = "lora"
    reserve: str | None = None
    stack: str = "trl"
    stage: str = "sft"
    batch: int | None = None
    seq: int | None = None
    labels: str = "0"
    rank: int | None = None
    targets: tuple[str, ...] | None = None
    saved: tuple[str, ...] = ()
    magnitude_dtype: str | None = None
    saved_dtype: str | None = None
    length: int | None = None
    completion: int | None = None
    rollouts: int | None = None
    quant: str = ""
    single_quant: bool = False
    dtype: str | None = None
    adapter_dtype: str | None = None
    attention: str = "auto"
    logits: str | None = None
    autocast: bool | None = None
    dropout: bool | None = None
    padding: bool | None = None
    checkpointing: bool | None = None
    offloaded: bool | None = None
    accumulated: bool | None = None
    wide_norms: bool | None = None
    keeps_inputs: bool | None = None
    in_backward: bool | None = None
    reference: bool | None = None
    host_weights: bool | None = None
    optimiser: str | None = None
    device: str = "cuda"
    devices: int = 1


@dataclass(frozen=True)
class FitAnswer:
    """What fits. assumed: settings that the stack gave.  asked: those that the question gave.  notes: what to mind."""

    fit: Fit
    assumed: tuple[Assumption, ...]
    asked: dict[str, Any]
    notes: tuple[str, ...]


def answered(question: Question) -> FitAnswer:
    """What a training step needs of so much memory. Raises InputError where there is no such step."""
    shape = read_shape(question.model)
    asked = asked_for(question, shape)

    def derive(fields: Mapping[str, object]) -> tuple[Setup, tuple[Assumption, ...]]:
        return in_stack(question, shape, asked | dict(fields))

    setup, assumed = derive({})
    configuration = Configuration(shape, with_labels(setup, question.labels))
    if (size := configuration.step.peak().total) >= EXACT:
        raise InputError(f"Such a step needs {size / 2**50:,.0f} PiB: choose a smaller model or fewer tokens.")
    reserve = bytes_of_text(question.reserve, least=0) if question.reserve else GPU_RESERVE
    fitting = fit(configuration, bytes_of_card(question.memory), reserve, lambda fields: derive(fields)[0])
    return FitAnswer(fitting, assumed, asked, notes_on(question, configuration))


def notes_on(question: Question, configuration: Configuration) -> tuple[str, ...]:
    """What the words of a question stand for here, and what its bytes do not say."""
    shape, setup = configuration.shape, configuration.setup
    notes = [card_note(question.memory)]
    if assumed := " and ".join(f"--{name}" for name in ("batch", "seq") if getattr(question, name) is None):
        notes.append(
            f"You gave no {assumed}, so this answer is for {setup.batch} × {setup.seq} tokens: more or longer rows "
            "take more."
        )
    if 0 < shape.context < setup.seq:
        notes.append(
            f"Rows of {setup.seq:,} tokens go beyond the {shape.context:,} positions of {question.model}: their bytes "
            "are counted, but it may not read them well."
        )
    if question.dtype == "fp16":
        notes.append("fp16 is counted as bf16, which takes the same bytes.")
    if question.stack == "unsloth" and shape.experts and setup.quantised:
        notes.append("Unsloth packs experts too, by code of its own, and then takes far less: that is not counted.")
    return tuple(filter(None, notes))


def answer_fields(question: Question) -> dict[str, Any]:
    """All that a page shows of an answer: the numbers of `--json`, and the lines of the command."""
    answer = answered(question)
    return as_numbers(answer.fit) | {
        "verdict": verdict(answer.fit),
        "conclusion": [*conclusion(answer.fit, option), *answer.notes],
        "assumed": assumptions_text(question, answer.assumed),
        "options": options_of(answer.fit.configuration.setup),
        "command": command(question),
    }


def options_of(setup: Setup) -> dict[str, str]:
    """Each setting that has an option, as the option that says it."""
    said = {field.name: option(field.name, getattr(setup, field.name)) for field in fields(Setup)}
    return {name: words for name, words in said.items() if words}


def command(question: Question) -> str:
    """The command that asks the same."""
    words = ["peftbook fit"]
    for field in fields(Question):
        value = getattr(question, field.name)
        if field.name in ("model", "memory") or value != field.default:
            words.append("--single-quant" if field.name == "single_quant" else option(field.name, value))
    return " ".join(words)


def in_stack(question: Question, shape: DecoderShape, asked: dict[str, Any]) -> tuple[Setup, tuple[Assumption, ...]]:
    """The set-up of the stack. Unless the question says otherwise, attention is eager where a GPU has no fused one, and
    LoRA on attention alone where there are experts."""
    setup, assumed = setup_in(question.stack, **asked)
    if question.attention == "auto" and setup.attention == "sdpa":
        try:
            Configuration(shape, replace(setup, targets=TARGETS[:1])).step  # noqa: B018 — whether there is such a step
        except InputError:
            setup = replace(setup, attention="eager")
            why = "torch's math kernel, which keeps what eager attention does: no fused one here"
            assumed = (*assumed, Assumption("attention", "eager", why))
    if shape.experts and setup.method == "lora" and "targets" not in asked:
        setup = replace(setup, targets=tuple(name for name in setup.targets if name in TARGETS[:4]))
        why = "experts are no linear layers: peft's all-linear adapts them as parameters, which is not counted"
        others = [one for one in assumed if one.field != "targets"]
        assumed = (*others, Assumption("targets", setup.targets, why))
    return setup, assumed


def asked_for(question: Question, shape: DecoderShape) -> dict[str, Any]:
    """The fields of the set-up that the question names."""
    given = {field.name: getattr(question, field.name, None) for field in fields(Setup) if field.name not in REWORDED}
    asked = {name: value for name, value in given.items() if value is not None}
    asked |= {"method": meant("Method", question.method, METHOD_NAMES), **variant(question.method)}
    if question.saved:
        asked["saved"] = question.saved
    if question.dtype == "fp16":
        if asked["method"] == "full":
            raise InputError("A gradient scaler takes no trained weights in fp16: choose --dtype fp32 --autocast.")
        asked["dtype"] = "bf16"
    asked["attention"] = attention_named(question.attention, shape.family)
    if question.targets is not None:
        asked["targets"] = question.targets
    if question.optimiser is not None:
        named = meant("Optimiser", question.optimiser, OPTIMISER_NAMES)
        asked["optimiser"] = "adamw" if (named, question.device) == ("adamw_foreach", "cpu") else named
    return asked | base_of(question)


def assumptions_text(question: Question, assumed: tuple[Assumption, ...]) -> list[str]:
    """What a stack assumed, each as the option that says it, with its source."""
    known = stack_of(question.stack, question.stage)
    lines = ["", f"Assumed, as {known.named} has it; each is an option:"]
    said = {one.field: option(one.field, one.value) for one in assumed}
    wide = max((len(words) for words in said.values()), default=0)
    lines += [f"  {said[one.field]:{wide}}  {one.source}" for one in assumed if said[one.field]]
    return lines + [f"Not counted: {known.uncounted}."] * bool(known.uncounted)


def option(field: str, value: Any) -> str:
    """The option that says a setting; none for what only the book's loop does."""
    if field in ON_OFF:
        return f"--{'' if value else 'no-'}{field.replace('_', '-')}"
    if field in ("targets", "saved"):
        known = TARGET_WORDS.items() if field == "targets" else ()
        value = next((word for word, names in known if names == value), ",".join(value) or "''")
    if field == "double":
        return "" if value else "--single-quant"
    name = {"quantised": "quant"}.get(field, field.replace("_", "-"))
    return "" if field in ("held", "dora", "freeze_a") else f"--{name} {value}"


def base_of(question: Question) -> dict[str, Any]:
    """The quantisation of the base: as asked for, by the method's name, or as the model's own settings have it."""
    known = {} if question.model.lower() in SHAPES else quantised_in(read_config(question.model))
    if not known and question.model.lower().endswith("-bnb-4bit"):
        known = {"quantised": "nf4"}
    if question.quant:
        known = {"quantised": "" if question.quant == "none" else question.quant}
    if question.method == "qlora":
        if question.quant in ("none", "int8"):
            raise InputError(
                f"--method qlora is LoRA over a base in 4 bits: leave --quant {question.quant} out, or choose lora."
            )
        known = known if known.get("quantised") else {"quantised": "nf4"}
    return known | ({"double": False} if question.single_quant else {})


def attention_named(name: str, family: str) -> str:
    """The attention that a word stands for; auto is transformers' own choice, see `_supports_sdpa` of its models.

    Raises InputError for torch's fused kernel where the family has none.
    """
    if name == "auto":
        return "eager" if family in NO_SDPA else "sdpa"
    if name == "sdpa" and family in NO_SDPA:
        raise InputError(
            "--attention sdpa caps no scores, which models of this family do: choose eager or flash_attention_2."
        )
    return meant("Attention", name, ATTENTION)


def with_labels(setup: Setup, said: str) -> Setup:
    """The set-up with so many positions that have logits. Raises InputError for more than there are."""
    if said == "0":
        return setup
    positions = setup.rows * setup.seq
    try:
        share = said.endswith("%")
        found = float(said.removesuffix("%")) * (positions / 100 if share else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found <= positions or not (found if share else found.is_integer()):
        raise InputError(
            f"--labels {said} of {setup.rows} × {setup.seq} positions: choose a whole number up to "
            f"{positions:,}, a share like 30%, or 0 for all."
        )
    return replace(setup, labels=max(1, round(found)) if share else int(found))
