"""Loss on held-out data while a run trains."""

from __future__ import annotations

import math

from peftbook.core import specs
from peftbook.core.errors import Diverged, InputError
from peftbook.tasks import prose
from peftbook.training.encode import Encoded, encode_plain
from peftbook.training.execute import Trainee, prepare
from peftbook.training.loop import Progress, reordered
from peftbook.training.probes import Findings, positive
from peftbook.training.small_llama import known_pieces, unknown_pieces

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
            nats, counts = held_out_losses(trainee, data)
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


def frontier(probe: specs.Probe) -> Findings:
    """What the one run has gained and forgotten at the steps of settings["steps"] and at its end.

    The target loss is on the examples of the run's evaluation, the general loss on settings["each"] pieces of
    settings["window"] tokens of every source that was held out when the small Llama was trained (`unknown_pieces`).
    settings["replay"]: the share of all training tokens that are replayed: pieces of settings["piece"] tokens of the
    texts that it was trained on, on top of the target batches, which stay the same.
    per_example: `target_nats_<step>` and `general_nats_<step>`, summed over each example's label tokens, whose numbers
    are `target_tokens` and `general_tokens`; `general_source`. An untuned run has step 0 alone; of one that diverged
    there is no more than measurements["diverged"] = 1.
    """
    (run,) = probe.runs
    trainee, share = prepare(run), probe.number("replay")
    general, sources = unknown_pieces(trainee.tokenizer, *positive(probe, "each", "window"))
    sets = {"target": trainee.graded, "general": general}
    per_example: dict[str, list[float] | list[str]] = {"general_source": sources}
    wanted = {int(step) for step in probe.numbers("steps")}

    def note(step: int) -> None:
        for name, data in sets.items():
            nats, counts = held_out_losses(trainee, data)
            per_example[f"{name}_nats_{step}"] = [round(value, 6) for value in nats]
            per_example[f"{name}_tokens"] = [float(count) for count in counts]

    def watch(progress: Progress) -> None:
        if progress.step in wanted or progress.step == progress.steps:
            note(progress.step)

    pieces: list[Encoded] = []
    if share and run.budget is not None:
        needed = math.ceil(share / (1 - share) * run.budget.tokens) + run.budget.max_length
        pieces = known_pieces(trainee.tokenizer, needed, probe.whole("piece"), run.seed)
    try:
        trained = trainee.train(watch, replay=pieces, share=share)
    except Diverged:
        return Findings({"diverged": 1})
    if trained is None:
        note(0)
        return Findings(curve={"step": [0.0]}, per_example=per_example)
    last = len(trained.losses)
    return Findings(
        measurements={
            "trainable_parameters": trainee.trainable,
            "train_tokens": trained.tokens,
            "train_label_tokens": trained.label_tokens,
        },
        curve={
            "step": [float(step) for step in sorted({*wanted, last}) if step <= last],
            "train_loss_nats": [round(value, 6) for value in trained.losses],
        },
        per_example=per_example,
    )


def prose_loss(probe: specs.Probe) -> Findings:
    """The loss on general text of what the one run of the probe trains, of settings["tokens"] tokens of each text."""
    (run,) = probe.runs
    if probe.word("data") != prose.DATA_SHA256:
        raise InputError(f"The probe's prose is {probe.word('data')[:12]}…, not the one at hand: measure it again.")
    trainee = prepare(run)
    trainee.train()
    return prose_findings(trainee, probe)


def prose_findings(trainee: Trainee, probe: specs.Probe) -> Findings:
    """The same of a model that is trained already. per_example: summed nats of each text, and their label tokens."""
    data = prose_pieces(trainee.tokenizer, 1, *positive(probe, "tokens"))
    with reordered(trainee.model, trainee.run.dtype):
        nats, counts = held_out_losses(trainee, data)
    return Findings(
        measurements={"loss_nats": math.fsum(nats) / sum(counts), "tokens": sum(counts)},
        per_example={"loss_nats": [round(value, 6) for value in nats], "label_tokens": [float(one) for one in counts]},
    )


def mean_loss(trainee: Trainee, data: list[Encoded]) -> float:
    """Nats per label token over the data; the model goes back to training afterwards."""
    nats, counts = held_out_losses(trainee, data)
    return math.fsum(nats) / sum(counts)


def held_out_losses(trainee: Trainee, data: list[Encoded]) -> tuple[list[float], list[int]]:
    """Summed nats and label tokens of each example; the model goes back to training afterwards."""
    found = trainee.losses(data)
    trainee.model.train()
    return found


def prose_pieces(tokenizer, each: int = PROSE_PIECES, tokens: int = PROSE_TOKENS) -> list[Encoded]:
    """The first `each` stretches of `tokens` tokens of every text; every token after a stretch's first is a label."""
    pieces = []
    for text in prose.load():
        ids = encode_plain(tokenizer, text.target)
        pieces += [ids[at : at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)][:each]
    return [Encoded(tuple(ids), 1, False) for ids in pieces]
