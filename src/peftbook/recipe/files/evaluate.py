"""Answer the test rows with the untuned model and with the adapter, score both, and say which is better.

    python evaluate.py
    python evaluate.py --adapter adapter-low --rows 200

It needs peftbook beside the packages in requirements.txt (pip install peftbook, then `peftbook prepare` once for the
encoder of BERTScore), for its measures and its rule: differences row by row, with intervals. The answers stay in
answers/, and the table is written into the card beside the adapter.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from train import HERE, RECIPE, load_model, load_tokenizer, read_rows

from peftbook.decision.outside import Outside, decide
from peftbook.metrics import exact_match, rouge
from peftbook.training.scoring import bertscore

MEASURES = ("rougeL", "bertscore_f1", "exact_match")
RESULTS = "## Results\n"
THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)  # what some templates write before an answer, empty or not


def main(argv: list[str] | None = None) -> None:
    """Generate, score, decide."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapter", type=Path, default=HERE / "adapter")
    options.add_argument("--rows", type=int, default=None, help="of the test split (default: all)")
    options.add_argument("--batch", type=int, default=RECIPE["micro_batch"])
    options.add_argument("--out", type=Path, default=HERE / "answers")
    args = options.parse_args(argv)
    rows = read_rows("test")[: args.rows]
    tokenizer = load_tokenizer()
    tokenizer.padding_side = "left"
    model = PeftModel.from_pretrained(load_model(), str(args.adapter)).eval()
    args.out.mkdir(exist_ok=True)
    tuned = write(args.out / "tuned.jsonl", rows, answers(model, tokenizer, rows, args.batch))
    with model.disable_adapter():
        untuned = write(args.out / "untuned.jsonl", rows, answers(model, tokenizer, rows, args.batch))
    group = "group" if all("group" in row for row in rows) else ""  # an author's rows are no independent ones
    files = {"tuned": [tuned], "untuned": [untuned]}
    table = "\n".join(["| | untuned | tuned | tuned − untuned, 95 % interval | tuned is |", "|---|---|---|---|---|"])
    for measure in MEASURES:
        table += "\n" + row_of(measure, decide(files, measure=measure, key="id", group=group, margin=RECIPE["margin"]))
    print(f"{len(rows)} test rows\n{table}")
    card = args.adapter / "README.md"
    before = card.read_text(encoding="utf-8").partition(RESULTS)[0] if card.is_file() else ""
    card.write_text(f"{before}{RESULTS}\nOn {len(rows)} test rows:\n\n{table}\n", encoding="utf-8")


@torch.inference_mode()
def answers(model: PeftModel, tokenizer, rows: list[dict], batch: int) -> Iterator[str]:
    """The likeliest continuation of each prompt, token by token."""
    for at in range(0, len(rows), batch):
        prompts = [row["prompt"] for row in rows[at : at + batch]]
        given = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        written = model.generate(
            **given, max_new_tokens=RECIPE["max_new_tokens"], do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(written[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        yield from (THOUGHT.sub("", text) for text in texts)
        print(f"{min(at + batch, len(rows))} of {len(rows)} answers", file=sys.stderr)


def write(path: Path, rows: list[dict], texts: Iterator[str]) -> Path:
    """A line for each row: its answer, the target, and the scores between the two."""
    outputs, targets = [text.strip() for text in texts], [row["completion"][0]["content"] for row in rows]
    found = (rouge(outputs, targets)["rougeL"], bertscore(outputs, targets), exact_match(outputs, targets))
    scores = dict(zip(MEASURES, found, strict=True))
    with path.open("w", encoding="utf-8") as stream:
        for place, row in enumerate(rows):
            line = {"id": row["id"], "output": outputs[place], "target": targets[place]}
            line |= {name: scores[name][place] for name in MEASURES} | (
                {"group": row["group"]} if "group" in row else {}
            )
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def row_of(measure: str, decided: Outside) -> str:
    """A measure's line of the table."""
    tuned, untuned = (arm.score.mean for arm in decided.arms)
    (pair,) = decided.pairs
    gap = pair.difference
    between = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    return f"| {measure} | {untuned:.3f} | {tuned:.3f} | {between} | {pair.outcome} |"


if __name__ == "__main__":
    main()
