"""What a library assumes of a training step where its user says nothing: tables of settings, each with its source.

    setup, assumed = setup_in("trl", method="lora", quantised="nf4", seq=2048)

A stack is a set-up, and its bytes are those of the same walk. What TRL and transformers declare is read from the
installed packages, without importing them; for a machine without them the table has the value of the named version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from peftbook.core.errors import InputError
from peftbook.memory.defaults import declared_in
from peftbook.memory.names import OPTIMISER_NAMES, meant
from peftbook.memory.setup import STAGES, TARGETS, Setup


@dataclass(frozen=True)
class Declared:
    """A default that a library declares: the first of `classes` (package/file:class) that has `name` decides.

    fallback: its value in the version of the table.  if_none: what the library takes None for.
    """

    classes: tuple[str, ...]
    name: str
    fallback: Any
    if_none: Any = None

    @property
    def value(self) -> Any:
        """The installed library's, or the table's where the library is not there or has no plain value."""
        owners = [declared_in(where) for where in self.classes]
        known = (owner[self.name] for owner in owners if self.name in owner)
        found = next(known, self.fallback) if owners[0] else self.fallback
        return self.if_none if found is None else found

    @property
    def source(self) -> str:
        """The class and the field."""
        return f"{self.classes[0].rpartition(':')[2]}.{self.name}"


Known = tuple[Any, str]  # a value and where it is from
Given = Mapping[str, Known | Declared | Callable[[Mapping[str, Any]], Known]]  # by field; of a function of the others


@dataclass(frozen=True)
class Stack:
    """A library's assumptions. package: what its version is read from, if that may be here.  version: of the table.

    always, whole, quantised, full: in every case; over a base in 16 or 32 bits; over a quantised one; for full
    fine-tuning. The later ones replace the earlier ones.  uncounted: what the library does and no field says.
    stages: what it has beside supervised fine-tuning.
    """

    title: str
    package: str
    version: str
    always: Given
    whole: Given = field(default_factory=dict)
    quantised: Given = field(default_factory=dict)
    full: Given = field(default_factory=dict)
    uncounted: str = ""
    stages: Mapping[str, Stack] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The title with the version of what is installed, or of the table."""
        if not self.package:
            return f"{self.title} ({self.version})"
        try:
            return f"{self.title} {version(self.package)}"
        except PackageNotFoundError:
            return f"{self.title} {self.version}, which is not installed,"

    def given(self, method: str, quantised: bool) -> dict[str, Any]:
        """The assumptions of a case; where the library has none of its own, what the book advises."""
        case = self.quantised if quantised else self.whole
        return {**ADVISED, **self.always, **case, **(self.full if method == "full" else {})}


TRAINER = ("transformers/training_args.py:TrainingArguments",)
SFT = ("trl/trainer/sft_config.py:SFTConfig", "trl/trainer/base_config.py:_BaseConfig", *TRAINER)
ADVISED: Given = {
    "rank": (16, "the book's advice; peft's LoraConfig has 8"),
    "targets": (TARGETS, "the book's advice; peft's LoraConfig has q_proj and v_proj"),
    "dropout": (False, "LoraConfig.lora_dropout 0"),
    "double": (True, "QLoRA's own; BitsAndBytesConfig has none: --single-quant"),
}
PEFT_ADAPTER = ("fp32", "peft's autocast_adapter_dtype")
PADDED = (True, "rows are padded to the longest")
SHORT = 512  # tokens, from which Unsloth brings checkpoints to the host
UNCUT = (1024, "nothing cuts rows: give the longest")
OF_CHECKPOINT = ("bf16", "the dtype of published checkpoints")
ROWS = Declared(TRAINER, "per_device_train_batch_size", 8)
OPTIM = Declared(TRAINER, "optim", "adamw_torch_fused")
PREPARED = "prepare_peft_model, peft_module_casting_to_bf16"
TRL_CASTS = "TRL casts what is trained over a quantised base"
HUB = "config_hub/finetune/llama-3.1-8b"
KBIT = "peft.prepare_model_for_kbit_training"
WHOLE = ("whole", "transformers' own loss, in float32 at every position")
SFT_ALWAYS: Given = {
    "batch": Declared(SFT, "per_device_train_batch_size", 8),
    "seq": Declared(SFT, "max_length", 1024, if_none=1024),
    "optimiser": Declared(SFT, "optim", "adamw_torch_fused"),
    "checkpointing": Declared(SFT, "gradient_checkpointing", True),
    "offloaded": Declared(SFT, "activation_offloading", False),
    "autocast": Declared(SFT, "bf16", None, if_none=True), "padding": PADDED,
    "dtype": ("fp32", 'a model given by name; bf16 is model_init_kwargs={"dtype": "bfloat16"}'),
    "logits": ("tiled", "TRL's fused head, at positions with a label alone"),
}  # fmt: skip
SFT_QUANTISED: Given = {
    "adapter_dtype": ("bf16", TRL_CASTS), "saved_dtype": ("bf16", TRL_CASTS),
    "magnitude_dtype": ("fp32", f"{TRL_CASTS}, but for DoRA's magnitudes"),
}  # fmt: skip
DPO = ("trl/trainer/dpo_config.py:DPOConfig", *SFT[1:])
GRPO = ("trl/trainer/grpo_config.py:GRPOConfig", *SFT[1:])
GROUP = Declared(GRPO, "num_generations", 8)


def foreach_on_a_gpu(setting: Mapping[str, Any]) -> Known:
    """torch.optim.AdamW where nobody asks for its fused kernel: on a CPU it goes tensor by tensor."""
    kind = "adamw_foreach" if setting["device"] == "cuda" else "adamw"
    return kind, "torch.optim.AdamW without fused=True"


def offloaded_by_unsloth(setting: Mapping[str, Any]) -> Known:
    """Unsloth leaves checkpoints of short rows where they are (unsloth/models/_utils.py)."""
    where = 'use_gradient_checkpointing "unsloth"'
    return (True, where) if setting["seq"] >= SHORT else (False, f"{where}, below {SHORT} tokens")


def completions_alone(setting: Mapping[str, Any]) -> Known:
    """GRPOTrainer scores what was generated; without Triton its fused head computes every position."""
    if setting["device"] == "cpu":
        return 0, "a CPU scores every position"
    return setting["batch"] * min(setting["completion"] or setting["seq"], setting["seq"]), "completions alone"


def whole_groups(setting: Mapping[str, Any]) -> Known:
    """A generation batch is a multiple of the generations of a prompt (`GRPOConfig.__post_init__`)."""
    group = GROUP.value
    return -(-setting["batch"] // group) * group, f"generation_batch_size, a multiple of num_generations {group}"


def declared(classes: tuple[str, ...]) -> Given:
    """What SFTTrainer assumes, as the settings of another of TRL's trainers declare it."""
    return {
        name: replace(one, classes=classes) if isinstance(one, Declared) else one for name, one in SFT_ALWAYS.items()
    }


STAGES_OF_TRL = {
    "dpo": Stack(
        "TRL's DPOTrainer", "trl", "1.16.0",
        {**declared(DPO), "reference": (True, "precompute_ref_log_probs False")},
        whole={"adapter_dtype": PEFT_ADAPTER}, quantised=SFT_QUANTISED,
    ),
    "grpo": Stack(
        "TRL's GRPOTrainer", "trl", "1.16.0",
        {
            **{name: one for name, one in declared(GRPO).items() if name != "offloaded"},
            "seq": (1024, "prompts are not cut: give the longest, with its completion"),
            "completion": Declared(GRPO, "max_completion_length", 512), "rollouts": whole_groups,
            "labels": completions_alone, "reference": (False, "beta 0.0"),
        },
        whole={"adapter_dtype": PEFT_ADAPTER}, quantised=SFT_QUANTISED,
        uncounted="a reward model, and vLLM beside it (use_vllm), which takes vllm_gpu_memory_utilization (0.3) of "
        "the card: give --memory what that leaves",
    ),
}  # fmt: skip


STACKS: dict[str, Stack] = {
    "peft": Stack(
        "a loop of your own over peft", "peft", "0.21.2",
        always={
            "batch": (1, "one row"), "seq": UNCUT,
            "dtype": OF_CHECKPOINT, "adapter_dtype": PEFT_ADAPTER, "logits": WHOLE, "optimiser": foreach_on_a_gpu,
        },
        quantised={
            "dtype": ("fp32", KBIT), "checkpointing": (True, KBIT), "padding": PADDED,
            "logits": ("held", "as transformers' own loss, with the model's output in hand"),
        },
    ),
    "trainer": Stack(
        "transformers.Trainer", "transformers", "5.24.0",
        always={
            "batch": ROWS, "seq": UNCUT, "optimiser": OPTIM, "padding": PADDED,
            "checkpointing": Declared(TRAINER, "gradient_checkpointing", None, if_none=False),
            "autocast": Declared(TRAINER, "bf16", False),
            "dtype": OF_CHECKPOINT, "adapter_dtype": PEFT_ADAPTER, "logits": WHOLE,
        },
        quantised={"dtype": ("fp32", KBIT), "checkpointing": (True, KBIT)},
    ),
    "trl": Stack(
        "TRL's SFTTrainer", "trl", "1.16.0", SFT_ALWAYS, whole={"adapter_dtype": PEFT_ADAPTER}, quantised=SFT_QUANTISED,
        stages=STAGES_OF_TRL,
    ),
    "liger": Stack(
        "TRL's SFTTrainer with use_liger_kernel", "liger_kernel", "0.8.2",
        {**SFT_ALWAYS, "logits": ("liger", "use_liger_kernel; its plain cross-entropy is --logits in_place")},
        whole={"adapter_dtype": PEFT_ADAPTER}, quantised=SFT_QUANTISED,
        uncounted="Liger's norms and gates, which keep less where nothing is checkpointed",
    ),
    "trl1": Stack(
        "TRL's SFTTrainer from 0.29 to 1.6", "", "1.6.0",
        {**SFT_ALWAYS, "logits": ("whole", 'loss_type "nll", the default before 1.7 (TRL PR 5846)')},
        whole={"adapter_dtype": PEFT_ADAPTER}, quantised=SFT_QUANTISED,
    ),
    "trl0": Stack(
        "TRL's SFTTrainer before 0.29", "", "0.25.0",
        always={
            "batch": (8, "per_device_train_batch_size"), "seq": (1024, "max_length"),
            "optimiser": ("adamw", "optim"), "checkpointing": (True, "gradient_checkpointing"),
            "offloaded": (False, "activation_offloading"), "autocast": (True, "bf16"), "padding": PADDED,
            "logits": WHOLE,
        },
        whole={"dtype": ("fp32", "a model given by name"), "adapter_dtype": PEFT_ADAPTER},
        quantised={
            "dtype": ("bf16", PREPARED), "adapter_dtype": ("bf16", PREPARED), "wide_norms": (True, PREPARED),
        },
    ),
    "peftbook": Stack(
        "peftbook's own loop", "peftbook", "0.1.0",
        always={
            "batch": (8, "Budget.batch_size"), "seq": (512, "Budget.max_length"), "padding": PADDED,
            "dtype": ("fp32", "weights that nothing rounds"), "autocast": (True, "Run.dtype"),
            "held": (True, "frozen matrices are there in bfloat16 too"), "adapter_dtype": ("fp32", "the loop"),
            "logits": ("whole", "at positions with a label alone: --labels"),
        },
        quantised={"held": (False, "the base is in 4 bits")}, full={"held": (False, "all is trained")},
    ),
    "litgpt": Stack(
        "LitGPT", "litgpt", "0.5.13",
        always={
            "batch": (1, f"{HUB}/lora.yaml, micro_batch_size"), "seq": (512, "max_seq_length"),
            "accumulated": (True, "global_batch_size 8"), "padding": PADDED,
            "dtype": ("bf16", "precision bf16-true; without such a file bf16-mixed: float32"),
            "adapter_dtype": ("bf16", "precision bf16-true"),
            "rank": (32, "lora_r"), "targets": (("q_proj", "v_proj"), "lora_query, lora_value"),
            "dropout": (True, "lora_dropout 0.05"), "logits": ("narrow", "chunked_cross_entropy"),
            "optimiser": foreach_on_a_gpu,
        },
        quantised={
            "batch": (2, f"{HUB}/qlora.yaml, micro_batch_size"), "double": (False, "quantize bnb.nf4"),
            "optimiser": ("paged_adamw", "bitsandbytes' PagedAdamW, with --quantize"),
        },
        full={"batch": (4, f"{HUB}/full.yaml, micro_batch_size")},
    ),
    "torchtune": Stack(
        "torchtune", "torchtune", "0.7.0",
        always={
            "batch": (2, "recipes/configs/llama3_1"), "seq": UNCUT,
            "accumulated": (True, "gradient_accumulation_steps 8"),
            "padding": PADDED, "dtype": ("bf16", "dtype"), "adapter_dtype": ("bf16", "dtype"),
            "checkpointing": (True, "enable_activation_checkpointing"),
            "offloaded": (False, "enable_activation_offloading"), "rank": (8, "lora_rank"),
            "targets": (
                ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                "lora_attn_modules, apply_lora_to_mlp",
            ),
            "logits": ("chunked", "LinearCrossEntropyLoss"),
        },
        full={
            "optimiser": ("paged_adamw_8bit", "8B_full_single_device"), "accumulated": (False, "optimizer_in_bwd"),
            "in_backward": (True, "optimizer_in_bwd"),
        },
    ),
    "axolotl": Stack(
        "Axolotl", "axolotl", "0.18.0",
        always={
            "batch": (1, "micro_batch_size"), "seq": (512, "sequence_len"), "padding": PADDED,
            "optimiser": ("adamw_torch_fused", "optimizer"), "checkpointing": (False, "gradient_checkpointing"),
            "offloaded": (False, "activation_offloading"), "dtype": ("bf16", "bf16: auto"),
            "autocast": (True, "bf16: auto"), "adapter_dtype": PEFT_ADAPTER,
            "logits": ("whole", "its CutCrossEntropyPlugin is --logits fused"),
        },
        uncounted="its LoRA kernels, on where there is no dropout, which keep less where nothing is checkpointed",
    ),
    "llamafactory": Stack(
        "LLaMA-Factory", "llamafactory", "0.9.5",
        always={
            "batch": (1, "examples/train_lora"), "seq": (2048, "cutoff_len"), "padding": PADDED, "optimiser": OPTIM,
            "accumulated": (True, "examples/train_lora, gradient_accumulation_steps 8"),
            "checkpointing": (True, "disable_gradient_checkpointing false"),
            "offloaded": (False, "use_unsloth_gc false"), "dtype": ("bf16", "examples/train_lora, bf16"),
            "autocast": (True, "examples/train_lora, bf16"),
            "adapter_dtype": ("fp32", "init_adapter, unless pure_bf16"),
            "rank": (8, "lora_rank"), "targets": (TARGETS, "lora_target all"), "logits": WHOLE,
        },
        full={"dtype": ("fp32", "init_adapter, unless pure_bf16")},
    ),
    "swift": Stack(
        "ms-swift", "ms_swift", "4.5.2",
        always={
            "batch": (1, "per_device_train_batch_size"), "seq": (1024, "max_length is the model's: give the longest"),
            "padding": PADDED, "optimiser": OPTIM, "checkpointing": (True, "gradient_checkpointing"),
            "offloaded": (False, "activation_cpu_offload"), "dtype": OF_CHECKPOINT, "autocast": (True, "bf16"),
            "adapter_dtype": PEFT_ADAPTER, "rank": (8, "lora_rank"), "targets": (TARGETS, "target_modules all-linear"),
            "dropout": (True, "lora_dropout 0.05"),
            "logits": ("whole", "use_logits_to_keep: at positions with a label alone, --labels"),
        },
    ),
    "unsloth": Stack(
        "Unsloth", "unsloth", "2026.8.19",
        always={
            "batch": ROWS, "seq": (2048, "max_seq_length"), "optimiser": OPTIM,
            "padding": (False, "padding-free batches"),
            "checkpointing": (True, 'use_gradient_checkpointing "unsloth"'),
            "offloaded": offloaded_by_unsloth, "dtype": ("bf16", "dtype None"),
            "autocast": (True, "bf16"), "adapter_dtype": ("fp32", "float32_mixed_precision"),
            "rank": (16, "get_peft_model, r"),
            "logits": ("fused", "unsloth_fused_ce_loss, whose chunks fill half of what is free; before 2025: in_place"),
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Assumption:
    """A setting that nobody gave. field: of the set-up.  source: where the library has it."""

    field: str
    value: Any
    source: str


def stack_of(name: str, stage: str = "sft") -> Stack:
    """A library's assumptions for a stage. Raises InputError for one that is not known, or has no such stage."""
    known = STACKS[meant("Stack", name, {name: name for name in STACKS})]
    stage = meant("Stage", stage, {name: name for name in STAGES})
    if stage == "sft":
        return known
    if not known.stages:
        raise InputError(f"{stage} is counted as TRL's own trainer has it, not for {known.title}: choose stack 'trl'.")
    return known.stages[stage]


def setup_in(stack: str, **asked: Any) -> tuple[Setup, tuple[Assumption, ...]]:
    """The set-up of a stack with what is asked for, and what was assumed beside that and makes a difference.

    asked: fields of `Setup`. Raises InputError for an unknown stack, or for settings that no step has.
    """
    known = stack_of(str(stack), asked.get("stage", "sft"))
    defaults = {one.name: one.default for one in fields(Setup)}
    if unknown := asked.keys() - defaults.keys():
        raise InputError(f"A step has no {', '.join(sorted(unknown))}: its settings are {', '.join(defaults)}.")
    assumed: dict[str, Assumption] = {}
    for name, given in known.given(asked.get("method", Setup.method), bool(asked.get("quantised"))).items():
        if name in asked:
            continue
        if callable(given):
            given = given(defaults | {one.field: one.value for one in assumed.values()} | asked)
        value, source = (given.value, given.source) if isinstance(given, Declared) else given
        value = OPTIMISER_NAMES.get(value, value) if name == "optimiser" else value
        assumed[name] = Assumption(name, value, source)
    values = defaults | {name: one.value for name, one in assumed.items()} | asked
    refused = {
        "padding": values["batch"] == 1 and values["stage"] != "dpo",
        "offloaded": not values["checkpointing"],
        "held": not (values["autocast"] and values["dtype"] == "fp32"),
    }
    made = [one for one in assumed.values() if not refused.get(one.field)]
    idle = Setup(**{one.field: one.value for one in made} | asked).idle
    made = [one for one in made if one.field not in idle]
    return Setup(**{one.field: one.value for one in made} | asked), tuple(made)
