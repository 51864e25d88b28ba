"""How fast a page trains: a step of its engine in Node.js beside the same step by torch on one thread.

LoRA on q and v, four rows of 64 tokens of which the last four are labels, on the small Llama. Both start from the same
weights and the same A, take the same rows and compute logits at the labels alone; so their losses are compared too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from peftbook.core.errors import InputError

__all__ = ["live_bench", "node_steps", "table"]

SCRIPT = Path(__file__).with_name("steps.cjs")
ROWS, TOKENS, LABELS = 4, 64, 4
SKIPPED = 5  # first steps, in which either side warms up
RATE = 1e-3
RATIO = 1.6  # a step of the page against one of torch, at most
FIRST = 10  # steps whose losses are compared
AGREED = 1e-4  # nats per token between them


def node_steps(engine: Path, job: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Losses, processor seconds of each step, and wall seconds from the start of Node.js to the first loss.

    engine, weights: as `site.live` has them.  job: as in `steps.cjs`, without the engine.
    Raises InputError where Node.js or the engine is missing, and where the engine fails.
    """
    node = shutil.which("node")
    if node is None:
        raise InputError("The page's engine is timed in Node.js, and there is no `node` here: install Node.js 20.")
    if not engine.is_dir():
        raise InputError(f"The engine is part of the book, not of the package: there is no {str(engine)!r}.")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("job.json", "weights.json")]
        for path, content in zip(paths, (job | {"engine": str(engine)}, weights), strict=True):
            path.write_text(json.dumps(content), encoding="utf-8")
        done = subprocess.run([node, SCRIPT, *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"The page's engine failed: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
    return json.loads(done.stdout)


def live_bench(
    engine: Path, shipped: dict[str, Any], weights: dict[str, Any], rounds: int = 3, steps: int = 20
) -> list[dict[str, Any]]:
    """One row a round: seconds of a step by the page's engine and by torch, their ratio, seconds to the first loss.

    shipped: what a page is given, of `site.live.data`.
    Medians over the steps of a round after the first five. Raises InputError where steps are no more than these.
    """
    from peftbook.studies import live

    if steps <= SKIPPED:
        raise InputError(f"--steps {steps}: the first {SKIPPED} are left out, so ask for more.")
    job, ids = page_job(shipped, steps)
    rows = []
    for _ in range(rounds):
        page, torch = node_steps(engine, job, weights), torch_steps(live.probe("lora", RATE, 1).runs[0], ids, steps)
        own, other = (median(side["seconds"][SKIPPED:]) for side in (page, torch))
        pairs = zip(page["losses"][:FIRST], torch["losses"][:FIRST], strict=True)
        apart = max(abs(loss - expected) for loss, expected in pairs)
        rows.append({"page": own, "torch": other, "ratio": own / other, "first": page["first"], "apart": apart})
    return rows


def page_bench(rounds: int, steps: int) -> list[dict[str, Any]]:
    """The bench of the page as it ships."""
    from peftbook.core.records import default_store
    from peftbook.views.site.live import ENGINE, data, weights

    return live_bench(ENGINE, data(default_store()), weights("rows"), rounds, steps)


def page_job(shipped: dict[str, Any], steps: int) -> tuple[dict[str, Any], list[list[int]]]:
    """A training on full rows, and the rows' ids, (4, 65): 64 tokens and the last label."""
    vocabulary = shipped["task"]["config"]["vocab_size"]
    ids = [[3 + (7919 * row + 104729 * at) % (vocabulary - 3) for at in range(TOKENS + 1)] for row in range(ROWS)]
    rows = [{"ids": row, "start": TOKENS + 1 - LABELS} for row in ids]
    choice = shipped["arms"]["lora"]["choice"] | {"targets": ["q", "v"]}
    settings = {"choice": choice, "rate": RATE, "steps": steps, "seed": 1, "plan": [[*range(ROWS)]] * steps}
    return {
        "task": shipped["task"] | {"rows": rows, "length": TOKENS, "warmup": 0},
        "levels": shipped["levels"],
        "settings": settings,
        "steps": steps,
    }, ids


def torch_steps(run: Any, ids: Sequence[Sequence[int]], steps: int) -> dict[str, list[float]]:
    """Losses and processor seconds of the same steps by torch on one thread."""
    import torch

    from peftbook.methods.lora import LoRA
    from peftbook.training.forward import apply_method
    from peftbook.training.live_weights import round_base
    from peftbook.training.models import load_model

    method = LoRA(targets=("q_proj", "v_proj"))
    loaded = load_model(run.model, method, run.platform, run.dtype, run.weights)
    round_base(loaded.model, "rows")
    model = apply_method(loaded.model, method, run.seed, loaded.tokenizer).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    rows = torch.tensor(ids)
    inputs, targets = rows[:, :-1], rows[:, -LABELS:].flatten()
    losses, seconds, threads = [], [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(steps):
            began = time.process_time()
            logits = model(input_ids=inputs, logits_to_keep=LABELS).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - began)
            losses.append(loss.item())
    finally:
        torch.set_num_threads(threads)
    return {"losses": losses, "seconds": seconds}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rounds as text, and their medians held against what the book promises."""
    titles = ("page, s", "torch, s", "ratio", "first loss, s")
    lines = ["a step of LoRA on q and v, 4 × 64 tokens, processor seconds; one thread each", f"{'':<8}{cells(titles)}"]
    for at, row in enumerate(rows, 1):
        lines.append(f"{at:<8}{cells(numbers(row))}")
    middle = {name: median(row[name] for row in rows) for name in ("page", "torch", "ratio", "first")}
    apart = max(row["apart"] for row in rows)
    lines += [
        f"{'median':<8}{cells(numbers(middle))}",
        f"{held(middle['ratio'], RATIO)} {RATIO} times torch; the losses of the first steps, {FIRST} at most, are "
        f"{apart:.1e} nats per token apart, {held(apart, AGREED)} {AGREED:.0e}",
        "first loss: wall seconds from the start of Node.js, with reading and unpacking the weights",
    ]
    return "\n".join(lines)


def held(value: float, most: float) -> str:
    return "within" if value <= most else "beyond"


def numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{row['page']:.3f}", f"{row['torch']:.3f}", f"{row['ratio']:.2f}", f"{row['first']:.2f}"


def cells(texts: Sequence[str]) -> str:
    return "".join(f"{text:>15}" for text in texts)
