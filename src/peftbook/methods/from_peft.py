"""Any other method of peft, by its own name and the arguments of its own configuration."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, PlainSerializer

from peftbook.core.canonical import build
from peftbook.core.errors import InputError
from peftbook.memory import TARGETS, DecoderShape
from peftbook.memory.shapes import as_config
from peftbook.methods.lora import LoRA
from peftbook.methods.method import Method, parse
from peftbook.methods.prompt import UNCHECKPOINTED, UNSHARDED

if TYPE_CHECKING:
    from peft import PeftConfig

OURS = ("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode")  # fmt: skip
CACHED = ("PREFIX_TUNING", "CARTRIDGE")  # methods whose virtual tokens are keys and values
LORA_RANK = 16  # of the LoRA that a method is converted to
Value = bool | int | float | str | None | tuple[bool | int | float | str | None, ...]


def sorted_pairs(arguments: object) -> object:
    """A mapping as sorted pairs, lists as tuples, so that a spec can be hashed."""
    if not isinstance(arguments, Mapping):
        return arguments
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return tuple(sorted(given.items()))


class PeftMethod(Method):
    """A method that peft has, under its name there (BOFT, MISS, …). What is not given is peft's default.

    arguments: of the method's configuration class in peft, which checks them; peft's version is in the provenance.
    """

    title = "peft"
    lighter = ""

    kind: Literal["peft"] = "peft"
    name: Annotated[str, BeforeValidator(lambda name: name.upper() if isinstance(name, str) else name)] = "LORA"
    arguments: Annotated[
        tuple[tuple[str, Value], ...], BeforeValidator(sorted_pairs), PlainSerializer(lambda pairs: dict(pairs))
    ] = ()
    version: int = 1
    told_later: ClassVar[bool] = (
        False  # in a process that shall not import peft, and has another check what it asks for
    )

    @classmethod
    def from_words(cls, words: list[str]) -> Self:
        """From `BOFT` and `boft_block_size=4`; peft's configuration is made, so that a wrong argument is told now."""
        method = build(cls, name=words[0], arguments=parse(words[1:]))
        if not cls.told_later:
            method.config  # noqa: B018
        return method

    @property
    def full_kind(self) -> str:
        return f"peft:{self.name}"

    @property
    def label(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.arguments)
        return f"{self.name}{f' ({given})' if given else ''}"

    @property
    def unmerged(self) -> str:  # type: ignore[override]
        return "what is learned before the input is no weight of the model" if self.config.is_prompt_learning else ""

    @property
    def unsharded(self) -> str:  # type: ignore[override]
        return UNSHARDED if self.config.is_prompt_learning else "fsdp has not been tried with peft's other methods"

    @property
    def uncheckpointed(self) -> str:  # type: ignore[override]
        return UNCHECKPOINTED if self.name in CACHED else ""

    @property
    def config(self) -> Any:
        """Its configuration in peft, see `configuration`."""
        return configuration(self)

    def apply(self, model: Any, seed: int, tokenizer: Any) -> Any:
        """peft's model. Raises InputError where this loop would not train all that the method wants trained."""
        from peft import get_peft_model

        config = copy.deepcopy(self.config)  # peft writes into it
        try:
            tuned = get_peft_model(model, config)
            left = [] if any(value.is_meta for value in tuned.parameters()) else unreached(tuned)
        except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = f"peft cannot apply {self.label} here ({first_line(error)})"
            raise InputError(f"{why}: give it other arguments, or choose another method.") from error
        if hasattr(tuned.base_model, "update_and_allocate"):
            raise InputError(f"{self.name} wants a call between steps, which this loop does not make: choose another.")
        if left or self.name == "CPT":
            raise InputError(f"{self.name} has a forward pass of its own, beside which this loop would train less.")
        return tuned

    def parameters(self, shape: DecoderShape) -> int:
        """Number of trained parameters, see `trainable_parameters`."""
        return trainable_parameters(self, shape)

    def setup(self, shape: DecoderShape) -> dict[str, Any]:
        """Virtual tokens as those of a prompt or a prefix; else as LoRA of a rank that trains about as many numbers."""
        if self.config.is_prompt_learning:
            return {"method": "prefix" if self.name in CACHED else "prompt", "length": self.config.num_virtual_tokens}
        rank = max(1, round(self.parameters(shape) / LoRA(rank=1).parameters(shape)))
        return {"method": "lora", "rank": rank, "targets": TARGETS}

    def as_lora(self, model: Any) -> Any:
        """The model with its update as LoRA of rank 16, by truncated singular values, where peft can convert it."""
        from peft import convert_to_lora, get_peft_model, set_peft_model_state_dict

        tuned: Any = model
        if self.name == "LORA" or not tuned.supports_lora_conversion():
            return None
        try:
            config, state = convert_to_lora(tuned, rank=LORA_RANK)
        except (TypeError, ValueError):
            return None
        converted = get_peft_model(tuned.unload(), config)
        set_peft_model_state_dict(converted, state)
        return converted


@functools.cache
def peft_configs() -> dict[str, type[PeftConfig]]:
    """Name → configuration class, of every method that the installed peft has."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


@functools.lru_cache(maxsize=64)
def configuration(method: PeftMethod) -> Any:
    """Its configuration. Raises InputError naming what peft does not know, and what it does."""
    known = peft_configs()
    if method.name not in known:
        raise InputError(f"peft has no method {method.name!r}: choose one of {', '.join(sorted(known))}.")
    cls: Any = known[method.name]
    arguments = {n: list(v) if isinstance(v, tuple) else v for n, v in method.arguments}
    fields = [one.name for one in dataclasses.fields(cls) if one.init and one.name not in OURS]
    for name in arguments:
        if name not in fields:
            raise InputError(f"{cls.__name__} has no argument {name!r}: choose among {', '.join(fields)}.")
    try:
        return cls(**arguments, task_type="CAUSAL_LM")
    except (ImportError, TypeError, ValueError) as error:
        why = f"{cls.__name__} refuses {arguments or 'to be made without arguments'}"
        raise InputError(f"{why}: {first_line(error)}.") from error


@functools.lru_cache(maxsize=64)
def trainable_parameters(method: PeftMethod, shape: DecoderShape) -> int:
    """Number of parameters that peft trains on a model of this shape, without allocating the whole model.

    Methods that read weights are applied to models of one and of two layers that have weights; each further layer
    counts as the second.
    """
    try:
        return trainable_parameters_on(method, shape, stored=False)
    except InputError:
        one, two = (
            trainable_parameters_on(
                method, dataclasses.replace(shape, layers=layers, sliding=shape.sliding[:layers]), stored=True
            )
            for layers in (1, 2)
        )
        return one + (shape.layers - 1) * (two - one)


def trainable_parameters_on(method: PeftMethod, shape: DecoderShape, stored: bool) -> int:
    """The same, for all layers of the shape. stored: whether the layers have weights, random ones."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(as_config(shape))
    if stored:
        for value in model.model.layers.to_empty(device="cpu").parameters():
            value.data.normal_(std=0.02)
    tuned = method.apply(model, 0, None)
    return sum(value.numel() for value in tuned.parameters() if value.requires_grad)


def unreached(tuned: Any) -> list[str]:
    """Trained parameters that a pass through the decoder, or through the encoder of virtual tokens, does not use."""
    import torch

    if tuned.active_peft_config.is_prompt_learning:
        states = tuned.prompt_encoder["default"](tuned.prompt_tokens["default"][None])
    else:
        base = tuned.get_base_model()
        states = base.model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=base.device)).last_hidden_state
    states.float().sum().backward()
    names = [name for name, value in tuned.named_parameters() if value.requires_grad and value.grad is None]
    tuned.zero_grad(set_to_none=True)
    return names


def first_line(error: Exception) -> str:
    """What an error says, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
