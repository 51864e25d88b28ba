"""How a model is trained, as far as its memory depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftbook.core.errors import InputError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAVED = ("embed_tokens", "lm_head")
IA3_TARGETS = ("k_proj", "v_proj", "down_proj")
METHODS = ("full", "lora", "prompt", "prefix", "ia3")
STAGES = ("sft", "dpo", "grpo")
OPTIMISERS = (
    "adamw", "adamw_foreach", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "galore_adamw", "galore_adamw_8bit",
    "sgd",
)  # fmt: skip
BYTES = {"bf16": 2, "fp32": 4}
CHUNKS = 8  # parts of the positions that are computed one after the other, where logits are chunked (torchtune 0.7)
CHUNK = 128  # positions of a part of each row, where logits are narrow (LitGPT 0.5)
TILE = (4096, 32768)  # positions and words that there is room for at a time, where logits are tiled (TRL 1.16)
BLOCK, OUTER_BLOCK = 64, 256  # 4-bit weights that share a constant; constants that share one of theirs
CHOICES = {
    "stage": (*STAGES, "prefill", "decode"), "method": METHODS, "optimiser": OPTIMISERS, "dtype": tuple(BYTES),
    "adapter_dtype": tuple(BYTES),
    "saved_dtype": ("", *BYTES), "magnitude_dtype": ("", *BYTES), "quantised": ("", "nf4", "fp4", "int8"),
    "attention": ("sdpa", "flash_attention_2", "eager"), "device": ("cpu", "cuda"),
    "logits": (
        "whole", "shifted", "held", "loop", "in_place", "narrow", "chunked", "compiled", "tiled", "liger", "fused",
    ),
}  # fmt: skip

SWITCHES = (
    "dropout", "freeze_a", "dora", "double", "autocast", "held", "padding", "packed", "checkpointing", "keeps_inputs",
    "wide_norms", "offloaded", "accumulated", "in_backward", "host_weights", "reference",
)  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """A training step.

    method: full, lora, prompt, prefix or ia3; rank, targets, dropout: of LoRA; freeze_a: only its B is trained
    (LoRA-FA); dora: the length of each row of W + γBA is trained beside (DoRA), in magnitude_dtype, or if that is empty
    in the adapter's.  saved: embed_tokens, lm_head or both,
    of which LoRA and (IA)³ train a whole copy (peft's modules_to_save), in saved_dtype, or if that is empty in the
    model's.  length: virtual tokens of a prompt or a prefix.  dtype: of the weights that are not quantised.
    adapter_dtype: of what an adapter trains.  quantised: nf4 or fp4 for the decoder's matrices, which are multiplied in
    bfloat16, int8 for 8 bits (LLM.int8), empty for none; double: the constants of a quantisation to 4 bits are
    quantised too.
    autocast: matrix products in bfloat16.  held: frozen matrices are there in bfloat16 beside float32, so that autocast
    need not copy them in every forward pass (the book's own loop).  attention: sdpa (fused), eager, or
    flash_attention_2, which keeps what sdpa does and caps scores too.
    padding: rows of different length, so that attention gets a mask.  packed: the products see no padding (the book's
    own loop, which then has no more bytes than are counted here, of padded rows).  checkpointing: only the input of
    each layer is kept and the rest computed again.  batch, seq: rows of a micro-batch and tokens of a row.
    accumulated: gradients of earlier micro-batches are there, and new ones are added to them.
    labels: positions of a micro-batch whose logits are computed, as in the book's own loop; 0: all.
    logits: how they become a loss, see `peftbook.memory.loss`: whole, as in transformers and the book's own loop;
    the others as elsewhere.  offloaded: what checkpoints keep is on the
    host.  wide_norms: gains of norms are float32, and so what they and frozen 4-bit matrices after them hand on (what
    prepare_model_for_kbit_training leaves of a model whose embedding and head are brought back to bfloat16).
    keeps_inputs: a 4-bit matrix keeps its input (bitsandbytes before 0.43.2).
    optimiser: adamw (fused), adamw_foreach (torch's own choice on a GPU, which takes the roots of all second moments at
    once), with moments in 8 bits, or with moments in pages that the host can take, which are counted all the same;
    galore_adamw, whose moments of a layer's matrices have no more than `rank` rows; or sgd.  in_backward: it moves a
    weight as soon as that has its gradient, which is then let go (torchtune's optimizer_in_bwd).
    devices: cards that share the model (FSDP), each with its own rows: every one holds its share of each weight, of its
    gradient and its moments, and decoder layers are whole only while they compute.  host_weights: the host holds all of
    that, and a layer is on the card while it computes (FSDP's and ZeRO-3's offload).
    stage: sft; dpo, whose batch counts pairs of rows, chosen and rejected; or grpo.  reference: the log-probabilities
    of the model as it was are computed too, with the adapter switched off, or in full fine-tuning by a copy.
    completion: tokens of a row that grpo generates, 0 for all.  rollouts: rows that it generates at once, 0 for the
    batch.  prefill and decode are the two moments of a generation: prompts are read, and the last token is computed.
    """

    method: str = "lora"
    rank: int = 16
    targets: tuple[str, ...] = TARGETS
    dropout: bool = False
    freeze_a: bool = False
    dora: bool = False
    magnitude_dtype: str = ""
    saved: tuple[str, ...] = ()
    saved_dtype: str = ""
    length: int = 20
    dtype: str = "bf16"
    adapter_dtype: str = "fp32"
    quantised: str = ""
    double: bool = True
    autocast: bool = False
    held: bool = False
    attention: str = "sdpa"
    padding: bool = False
    packed: bool = False
    checkpointing: bool = False
    batch: int = 1
    seq: int = 512
    labels: int = 0
    logits: str = "whole"
    keeps_inputs: bool = False
    wide_norms: bool = False
    offloaded: bool = False
    accumulated: bool = False
    optimiser: str = "adamw"
    in_backward: bool = False
    device: str = "cuda"
    devices: int = 1
    host_weights: bool = False
    stage: str = "sft"
    reference: bool = False
    completion: int = 0
    rollouts: int = 0

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                words = ", ".join(repr(value) for value in known if value)
                raise InputError(f"{name} is {getattr(self, name)!r}: choose one of {words}.")
        for name in ("rank", "length", "batch", "seq", "devices"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} is {value!r}: give a whole number of at least 1.")
        for name in ("completion", "rollouts"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise InputError(f"{name} is {value!r}: give a whole number, or 0.")
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}: it is True or False.")
        for name in ("targets", "saved"):
            value = getattr(self, name)
            if isinstance(value, str) or len({*value}) != len(value):
                raise InputError(f"{name} is {value!r}: give a tuple of names, each once.")
            object.__setattr__(self, name, tuple(value))
        if type(self.labels) is not int or not 0 <= self.labels <= self.rows * self.seq:
            raise InputError(
                f"labels is {self.labels!r}: give a whole number up to {self.rows} × {self.seq}, 0 for all of them."
            )
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise InputError(f"targets {', '.join(unknown) or '()'} are none of a layer's: {', '.join(TARGETS)}.")
        for refused, why in self.refusals():
            if refused:
                raise InputError(why)

    def refusals(self) -> list[tuple[object, str]]:
        """What no step has, each as whether this is it, and why."""
        method, devices, named = self.method, self.devices, f"{self.method!r} on {self.devices}"
        unknown = [name for name in self.saved if name not in SAVED]
        galore = self.optimiser.startswith("galore")
        alone = self.saved or self.dora or self.in_backward or galore
        host = self.device == "cuda" and self.quantised != "int8" and method in ("full", "lora") and not alone
        return [
            (method == "full" and self.quantised,
             f"Weights in {self.bits} bits are not trained: choose an adapter, or no quantisation."),
            (devices > 1 and self.quantised == "int8",
             "bitsandbytes cannot cut int8 matrices for several devices: choose nf4, or devices 1."),
            (unknown, f"saved {', '.join(unknown)} cannot be copied and trained: choose of {', '.join(SAVED)}."),
            (self.saved and (method not in ("lora", "ia3") or devices > 1),
             f"A trained copy of {' and '.join(self.saved)} goes with LoRA and (IA)³ on one device, not with {named}: "
             "leave saved empty there."),
            (self.dora and (method != "lora" or devices > 1),
             f"DoRA is LoRA with magnitudes, counted on one device, not {named}: choose method 'lora' and devices 1, "
             "or no dora."),
            (self.host_weights and not host,
             "Weights on the host are counted for full fine-tuning and LoRA over 16 or 4 bits on a GPU, without DoRA, "
             "trained copies, GaLore or in_backward: leave host_weights out."),
            (self.stage != "sft" and (self.host_weights or method in ("prompt", "prefix")),
             f"{self.stage} is counted for full fine-tuning, LoRA and (IA)³ with weights on the device: choose one of "
             "these methods, without host_weights, or stage 'sft'."),
            (self.stage == "grpo" and (devices > 1 or method == "ia3"),
             f"grpo is counted for full fine-tuning and LoRA on one device, not for {named}: choose method 'lora' and "
             "devices 1."),
            (galore and (method != "full" or devices > 1),
             f"GaLore projects the gradients of whole matrices on one device, not of {named}: choose method 'full' "
             "and devices 1, or optimiser 'adamw_8bit'."),
            (self.in_backward and (method != "full" or self.accumulated),
             "in_backward moves a weight when it has its gradient: choose method 'full' and nothing accumulated."),
            (self.held and not (self.autocast and self.dtype == "fp32"),
             "held keeps bfloat16 copies for autocast: choose autocast and dtype 'fp32' with it."),
            (self.wide_norms and (method == "full" or not self.quantised),
             "wide_norms are those of a model prepared for training over few bits: choose quantised."),
            (self.offloaded and not self.checkpointing,
             "offloaded moves to the host what checkpoints keep: choose checkpointing with it."),
            (self.logits in ("narrow", "chunked", "compiled") and self.autocast,
             f"Logits that are {self.logits} come with no autocast: leave one of the two out."),
            (method == "prefix" and self.checkpointing,
             "transformers drops a prefix where layers are checkpointed: choose a soft prompt, or no checkpointing."),
            (devices > 1 and method not in ("full", "lora"),
             f"Several devices share the model in full fine-tuning and LoRA, not in {method!r}: choose devices 1, as "
             "each holds all of it there."),
            (method == "ia3" and self.quantised and self.dtype == "bf16" and not self.autocast,
             f"peft's (IA)³ over {self.bits}-bit matrices computes keys in float32 and queries not: choose dtype "
             "'fp32' (prepare_model_for_kbit_training), or autocast."),
        ]  # fmt: skip

    @property
    def idle(self) -> frozenset[str]:
        """Names of the fields that have no effect, given the values of the others."""
        lora, four = self.method == "lora", self.quantised in ("nf4", "fp4")
        used = {
            "rank": lora or self.optimiser.startswith("galore"), "targets": lora, "dropout": lora,
            "adapter_dtype": self.method != "full", "length": self.method in ("prompt", "prefix"),
            "double": four, "keeps_inputs": four,
            "offloaded": self.checkpointing, "held": self.autocast and self.dtype == "fp32",
            "wide_norms": self.dtype == "bf16", "saved_dtype": bool(self.saved), "freeze_a": lora,
            "magnitude_dtype": self.dora, "packed": False, "reference": self.stage in ("dpo", "grpo"),
            "completion": self.stage == "grpo", "rollouts": self.stage == "grpo",
        }  # fmt: skip
        return frozenset(name for name, needed in used.items() if not needed)

    @property
    def name(self) -> str:
        """The method's name; a variant of LoRA has a name of its own."""
        return "dora" if self.dora else "lora_fa" if self.method == "lora" and self.freeze_a else self.method

    @property
    def rows(self) -> int:
        """Rows that go through the model at once."""
        return 2 * self.batch if self.stage == "dpo" else self.batch

    @property
    def generates(self) -> bool:
        """Whether keys and values are cached for the tokens that follow."""
        return self.stage in ("prefill", "decode")

    @property
    def bits(self) -> int:
        """Of a number in a quantised matrix."""
        return 8 if self.quantised == "int8" else 4

    @property
    def symbols(self) -> dict[str, int]:
        """The symbols of the byte model that the set-up gives."""
        virtual = self.length if self.method in ("prompt", "prefix") else 0
        tokens = 1 if self.stage == "decode" else self.seq
        positions = tokens + virtual * (self.method == "prompt")
        keys = positions + virtual * (self.method == "prefix")
        if self.stage == "decode":  # the last token is drawn, and nobody reads it
            keys = max(1, self.seq - 1)
        symbols = {
            "b": self.rows, "s": tokens, "n": self.labels, "t": positions, "k": keys, "r": self.rank, "P": virtual,
            "two": 2,
        }  # fmt: skip
        if self.logits == "tiled":
            symbols["T"] = min(self.labels or self.rows * positions, TILE[0])
        if self.logits == "narrow":
            symbols["q"] = self.rows * min(positions, CHUNK)
        if self.logits in ("chunked", "compiled"):
            symbols["q"] = math.ceil((self.labels or self.rows * positions) / CHUNKS)
        return symbols
