"""Answer the test rows without and with the adapter, and with solved examples in the prompt; say which is best.

    python evaluate.py
    python evaluate.py --adapter adapter-low --rows 200

It needs peftbook beside the packages in requirements.txt (and `peftbook prepare` once, for the encoder of BERTScore),
for its measures and its rule: differences row by row, with intervals. ROUGE-L decides, the others stand beside it. The
answers stay in answers/, and the table is written into the card in the adapter's folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from train import HERE, RECIPE, TEMPLATE, load_model, load_tokenizer, read_rows

from peftbook.evidence.metrics import exact_match, rouge
from peftbook.evidence.outside import decide
from peftbook.training.scoring import bertscore

MEASURES = ("rougeL", "bertscore_f1", "exact_match")
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
            files[f"with {args.examples} examples"] = answered("examples", shots)
    table = table_of(files, rows)
    print(table)
    card = args.adapter / "README.md"
    before = card.read_text(encoding="utf-8").partition(RESULTS)[0] if card.is_file() else ""
    card.write_text(f"{before}{RESULTS}\n{table}\n", encoding="utf-8")


def positive(text: str) -> int:
    """A whole number above zero."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def table_of(files: dict[str, list[Path]], rows: list[dict]) -> str:
    """A line for each measure and each other way: both scores, what the adapter gains, and what that says."""
    lines = ["| | other | its score | tuned | tuned − other, 95 % | |", "|---|---|---|---|---|---|"]
    group = "group" if all("group" in row for row in rows) else ""  # an author's rows are no independent ones
    for measure in MEASURES:
        decided = decide(files, measure=measure, key="id", group=group, margin=RECIPE["margin"])
        scores = {arm.name: arm.score.mean for arm in decided.arms}
        for pair in decided.pairs:
            if pair.first == "tuned":
                gain = f"{pair.difference.mean:+.2f} [{pair.difference.low:+.2f}, {pair.difference.high:+.2f}]"
                both = f"{scores[pair.second]:.2f} | {scores['tuned']:.2f}"
                lines.append(f"| {measure} | {pair.second} | {both} | {gain} | {pair.outcome} |")
    words = f"{len(rows)} test rows, one training; intervals over rows alone: another seed may differ."
    return f"{words}\n\n" + "\n".join(lines)


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


if __name__ == "__main__":
    main()
