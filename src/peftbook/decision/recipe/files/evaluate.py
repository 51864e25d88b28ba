"""Answer the test rows without and with the adapter, and with solved examples in the prompt; say which is best.

    python evaluate.py
    python evaluate.py --adapter adapter-low --rows 200

It needs peftbook beside the packages in requirements.txt (and `peftbook prepare` once, for the encoder of BERTScore),
for its measures and its rule: differences row by row, with intervals. The first metric in recipe.yaml decides, or
ROUGE-L without one; the others stand beside it. Of preference pairs it also counts those whose chosen answer gained
more than the rejected one. The answers stay in answers/, and the table is written into the card beside the adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import HERE, RECIPE, TEMPLATE, load_model, load_tokenizer, read_rows, tokens_of
from peft import PeftModel

from peftbook.core.errors import InputError
from peftbook.decision.own_metrics import declared, own_scores
from peftbook.decision.shares import ends_of_share
from peftbook.evidence.metrics import exact_match, rouge
from peftbook.evidence.outside import decide
from peftbook.evidence.stats import score_interval
from peftbook.training.scoring import bertscore

OWN = {said["name"]: declared(said) for said in RECIPE["metrics"]}
MEASURES = (*OWN, "rougeL", "bertscore_f1", "exact_match")
RESULTS = "## Results\n"


def main(argv: list[str] | None = None) -> None:
    """Generate, score, decide."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapter", type=Path, default=HERE / "adapter")
    options.add_argument("--rows", type=positive, default=None, help="of the test split (default: all)")
    options.add_argument("--examples", type=int, default=5, help="solved in the prompt of the untuned model; 0: none")
    options.add_argument("--batch", type=positive, default=RECIPE["micro_batch"])
    options.add_argument("--out", type=Path, default=HERE / "answers")
    args = options.parse_args(argv)
    if not (args.adapter / "adapter_config.json").is_file():
        raise SystemExit(f"{args.adapter} holds no adapter: run train.py first, or name one with --adapter.")
    rows = read_rows("test")[: args.rows]
    solved = [row["prompt"] + row["completion"] for row in read_rows("train")[: args.examples]]
    shots = [turn for turns in solved for turn in turns if turn["role"] != "system"]
    bertscore(["a"], ["a"])  # says at once if its encoder is not here
    tokenizer = load_tokenizer()
    tokenizer.padding_side = "left"
    model = PeftModel.from_pretrained(load_model(), str(args.adapter)).eval()
    args.out.mkdir(exist_ok=True)

    def answered(name: str, before: list[dict]) -> list[Path]:
        return [write(args.out / f"{name}.jsonl", rows, answers(model, tokenizer, rows, before, args.batch))]

    files = {"tuned": answered("tuned", [])}
    with model.disable_adapter():
        files["untuned"] = answered("untuned", [])
        if shots:
            files[f"untuned + {args.examples} examples"] = answered("examples", shots)
    table, decision = table_of(files, rows)
    if RECIPE["stage"] == "dpo":
        decision = f"{preferences(model, tokenizer, rows)}\n\n{decision}"
    results = f"{table}\n\n{unmoved(files)}\n\n{decision}"
    print(f"\n{results}\n")
    card = args.adapter / "README.md"
    before = card.read_text(encoding="utf-8").partition(RESULTS)[0] if card.is_file() else ""
    card.write_text(f"{before}{RESULTS}\n{results}\n", encoding="utf-8")


def positive(text: str) -> int:
    """A whole number above zero."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def table_of(files: dict[str, list[Path]], rows: list[dict]) -> tuple[str, str]:
    """A line for each measure and other way: both scores and what the adapter gains; and what the first decides."""
    lines = ["| | other | its score | tuned | tuned − other, 95 % | |", "|---|---|---|---|---|---|"]
    group = "group" if all("group" in row for row in rows) else ""  # an author's rows are no independent ones
    said = [f"Decision by {MEASURES[0]}:", ""]
    for measure in MEASURES:
        margin = OWN[measure].margin if measure in OWN else RECIPE["margin"]
        decided = decide(files, measure=measure, key="id", group=group, margin=margin)
        scores = {arm.name: arm.score.mean for arm in decided.arms}
        for pair in decided.pairs:
            if pair.first == "tuned":
                gain = f"{pair.difference.mean:+.2f} [{pair.difference.low:+.2f}, {pair.difference.high:+.2f}]"
                both = f"{scores[pair.second]:.2f} | {scores['tuned']:.2f}"
                lines.append(f"| {measure} | {pair.second} | {both} | {gain} | {pair.outcome} |")
                verdict = f"- tuned against {pair.second}: {' '.join(decided.verdict(pair))}"
                said += [verdict] * (measure == MEASURES[0])
    words = f"{len(rows)} test rows, one training; intervals over rows alone: another seed may differ."
    return f"{words}\n\n" + "\n".join(lines), "\n".join(said)


def unmoved(files: dict[str, list[Path]]) -> str:
    """How many answers the training left as they were, and what helps where it is most of them."""
    tuned, untuned = (
        [json.loads(line)["output"] for line in files[name][0].read_text(encoding="utf-8").split("\n") if line]
        for name in ("tuned", "untuned")
    )
    same = sum(map(str.__eq__, tuned, untuned))
    words = f"{same} of {len(tuned)} answers are the untuned model's, letter for letter"
    if 2 * same <= len(tuned):
        return f"{words}."
    return f"{words}: the training hardly moved it. Train longer, on more rows, or at a higher learning rate."


def preferences(model: PeftModel, tokenizer, rows: list[dict]) -> str:
    """The share of test pairs whose chosen answer gained more log-probability than the rejected one, with its interval.

    The gain is over the untuned model; TRL logs the same share as rewards/accuracies.
    """
    pair = ("completion", "rejected")
    gains = [[gained(model, tokenizer, row["prompt"], row[name]) for name in pair] for row in rows]
    right = np.array([[float(chosen > rejected) for chosen, rejected in gains]])
    groups = [row["group"] for row in rows] if all("group" in row for row in rows) else ()
    found = score_interval(right, None, groups)
    low, high = ends_of_share(found, right, groups)
    chosen = sum(gain for gain, _ in gains) / len(gains)
    return (
        f"Preference accuracy {found.mean:.2f} [{low:.2f}, {high:.2f}]: the share of test pairs whose chosen answer "
        f"gained more log-probability than the rejected one (0.5 by chance). The chosen ones gained {chosen:+.2f} nats."
    )


@torch.inference_mode()
def gained(model: PeftModel, tokenizer, prompt: list[dict], answer: list[dict]) -> float:
    """What the adapter adds to an answer's log-probability, in nats."""
    asked = tokens_of(prompt, tokenizer, add_generation_prompt=True)
    whole = tokens_of(prompt + answer, tokenizer)
    start = next((at for at, pair in enumerate(zip(asked, whole, strict=False)) if len({*pair}) > 1), len(asked))
    ids = torch.tensor([whole], device=model.device)

    def log_probability() -> float:
        logits = model(ids).logits[0, start - 1 : -1].float()
        return logits.log_softmax(-1).gather(-1, ids[0, start:, None]).sum().item()

    tuned = log_probability()
    with model.disable_adapter():
        return tuned - log_probability()


@torch.inference_mode()
def answers(model: PeftModel, tokenizer, rows: list[dict], before: list[dict], batch: int) -> Iterator[str]:
    """The likeliest continuation of each prompt, token by token. before: turns that stand before each."""
    for at in range(0, len(rows), batch):
        prompts = [with_examples(row["prompt"], before) for row in rows[at : at + batch]]
        given = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True, **TEMPLATE
        ).to(model.device)
        written = model.generate(
            **given,
            max_new_tokens=RECIPE["max_new_tokens"],
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends(model, tokenizer),
        )
        yield from tokenizer.batch_decode(written[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        print(f"{min(at + batch, len(rows))} of {len(rows)} answers", file=sys.stderr)


def with_examples(prompt: list[dict], examples: list[dict]) -> list[dict]:
    """The turns of a prompt with solved examples before them, after what the system says."""
    first = int(prompt[0]["role"] == "system")
    return prompt[:first] + examples + prompt[first:]


def ends(model: PeftModel, tokenizer) -> list[int]:
    """What ends an answer: the model's own tokens for it, and the one that the template writes after an answer."""
    own = model.generation_config.eos_token_id
    mark = "\u2603"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    tail = tokenizer.apply_chat_template(turns, tokenize=False, **TEMPLATE).rpartition(mark)[2].strip()
    after = tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]), *after} - {None})


def write(path: Path, rows: list[dict], texts: Iterator[str]) -> Path:
    """A line for each row: its answer, the target, and the scores between the two."""
    outputs, targets = [text.strip() for text in texts], [row["completion"][0]["content"] for row in rows]
    own = (own_scores(metric, [outputs], targets)[0] for metric in OWN.values())
    found = (*own, rouge(outputs, targets)["rougeL"], bertscore(outputs, targets), exact_match(outputs, targets))
    scores = dict(zip(MEASURES, found, strict=True))
    with path.open("w", encoding="utf-8") as stream:
        for place, row in enumerate(rows):
            line = {"id": row["id"], "output": outputs[place], "target": targets[place]}
            line |= {name: scores[name][place] for name in MEASURES} | (
                {"group": row["group"]} if "group" in row else {}
            )
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(str(error)) from None
