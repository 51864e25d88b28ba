"""Contestants: who trains, with which settings, what all of them share, and what each leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BATCH = 8
LEARNING_RATE = 2e-4
WARMUP = 0.1
MAX_LENGTH = 512
SEED = 0


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


def named(name: str) -> Contestant:
    """The contestant of this name."""
    return next(contestant for contestant in CONTESTANTS if contestant.name == name)


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
