"""Loss on held-out data while a run trains."""

from __future__ import annotations

import math

from peftbook import specs
from peftbook.tasks import prose
from peftbook.training.encode import Encoded, encode_plain
from peftbook.training.execute import Trainee, prepare
from peftbook.training.loop import losses
from peftbook.training.probes import Findings

__all__ = ["learning_curve", "prose_pieces"]

PROSE_PIECES = 1
PROSE_TOKENS = 256


def learning_curve(probe: specs.Probe) -> Findings:
    """Validation loss before, during and after the one run of the probe, at the steps of settings["steps"].

    With settings["prose"] the loss on general text (public-domain prose) is taken at the same moments; `per_example`
    then holds `prose_nats_<step>`, the summed nats of each piece, and `prose_tokens`, the label tokens of each.
    """
    (run,) = probe.runs
    trainee = prepare(run)
    sets = {"validation": trainee.graded}
    if probe.settings.get("prose"):
        sets["prose"] = prose_pieces(trainee.tokenizer)
    wanted = {int(step) for step in probe.numbers("steps")}
    curve: dict[str, list[float]] = {"step": [], "tokens": [], **{f"{name}_loss_nats": [] for name in sets}}
    per_example: dict[str, list[float] | list[str]] = {}

    def note(step: int, tokens: int) -> None:
        curve["step"].append(float(step))
        curve["tokens"].append(float(tokens))
        for name, data in sets.items():
            nats, counts = held_out_losses(trainee, data, run)
            curve[f"{name}_loss_nats"].append(round(math.fsum(nats) / sum(counts), 6))
            if name == "prose":
                per_example[f"prose_nats_{step}"] = [round(value, 6) for value in nats]
                per_example["prose_tokens"] = [float(count) for count in counts]

    note(0, 0)
    trained = trainee.train(lambda progress: note(progress.step, progress.tokens) if progress.step in wanted else None)
    if trained is not None and curve["step"][-1] != len(trained.losses):
        note(len(trained.losses), trained.tokens)
    curve["train_loss_nats"] = [round(value, 6) for value in trained.losses] if trained else []
    return Findings(
        measurements={
            "trainable_parameters": trainee.trainable,
            "train_tokens": int(curve["tokens"][-1]),
            "loss_before_nats": curve["validation_loss_nats"][0],
            "loss_after_nats": curve["validation_loss_nats"][-1],
        },
        curve=curve,
        per_example=per_example,
    )


def mean_loss(trainee: Trainee, data: list[Encoded], run: specs.Run) -> float:
    """Nats per label token over the data; the model goes back to training afterwards."""
    nats, counts = held_out_losses(trainee, data, run)
    return math.fsum(nats) / sum(counts)


def held_out_losses(trainee: Trainee, data: list[Encoded], run: specs.Run) -> tuple[list[float], list[int]]:
    """Summed nats and label tokens of each example; the model goes back to training afterwards."""
    nats = losses(trainee.model, data, pad_id=trainee.tokenizer.pad_token_id, dtype=run.dtype, platform=run.platform)
    trainee.model.train()
    return nats


def prose_pieces(tokenizer, each: int = PROSE_PIECES, tokens: int = PROSE_TOKENS) -> list[Encoded]:
    """The first `each` stretches of `tokens` tokens of every text; every token after a stretch's first is a label."""
    pieces = []
    for text in prose.load():
        ids = encode_plain(tokenizer, text.target)
        pieces += [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)][:each]
    return [Encoded(tuple(ids), 1, False) for ids in pieces]
