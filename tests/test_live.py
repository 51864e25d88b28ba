"""Training in the page: the engine's pieces against the package's, its losses against PyTorch's."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.live import node_steps
from live_trainings import AGREED, lowest, recorded_losses, start
from scipy import stats

from peftbook.core.errors import InputError
from peftbook.core.records import default_store
from peftbook.memory import shape_from_config
from peftbook.studies import live
from peftbook.tasks import get_task
from peftbook.training.encode import encode_prompt
from peftbook.training.forward import trainable_state
from peftbook.training.live_weights import BASES, round_base
from peftbook.training.models import load_model
from peftbook.views.site import live as site

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "book/assets/live"


def node(script: str, *arguments: object) -> Any:
    """What a script prints in Node.js, with `engine` as the folder of the modules."""
    command = ["node", "-e", f"const engine = {json.dumps(str(ENGINE))};\n{script}", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data and weights as the page gets them, each in a file."""
    folder = tmp_path_factory.mktemp("live")
    for name, content in (("data", site.data(default_store())), *((base, site.weights(base)) for base in BASES)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.node
def test_the_page_draws_the_a_that_peft_draws():
    """Bit by bit, of every adapted matrix: Mersenne Twister, skipped words, bound."""
    drawn = list(trainable_state(start("lora").model).values())
    matrices = drawn[::2]
    sides = [(a.shape[1], b.shape[0]) for a, b in zip(matrices, drawn[1::2], strict=True)]
    hashes = node(
        'const { startsOfA } = require(`${engine}/random.js`), { createHash } = require("node:crypto");'
        "const all = startsOfA(JSON.parse(process.argv[1]), Number(process.argv[2]), Number(process.argv[3]));"
        'console.log(JSON.stringify(all.map((A) => createHash("sha256").update(A).digest("hex"))));',
        json.dumps(sides), live.ARMS["lora"].method.rank, 1,
    )  # fmt: skip
    assert hashes == [hashlib.sha256(value.detach().numpy().tobytes()).hexdigest() for value in matrices]


@pytest.mark.node
@pytest.mark.parametrize("base", BASES)
def test_the_page_unpacks_the_weights_that_pytorch_trains(files, base):
    """Bit by bit, of every tensor, from base64 to float32; a file that is cut is refused."""
    unpack = (
        'const { tensorsOf } = require(`${engine}/weights.js`), { readFileSync } = require("node:fs");'
        "const [data, file] = process.argv.slice(1).map((path) => JSON.parse(readFileSync(path)));"
        'const { createHash } = require("node:crypto");'
    )
    hashes = node(
        unpack + "console.log(JSON.stringify(Object.fromEntries(Object.entries(tensorsOf(file, data.levels))"
        '.map(([name, { data }]) => [name, createHash("sha256").update(data).digest("hex")]))));',
        files / "data.json", files / f"{base}.json",
    )  # fmt: skip
    model = round_base(load_small().model, base)
    assert hashes == {
        name: hashlib.sha256(value.detach().numpy().tobytes()).hexdigest() for name, value in model.named_parameters()
    }
    said = node(
        unpack + "file.text = file.text.slice(0, -400); try { tensorsOf(file, data.levels); }"
        "catch (error) { console.log(JSON.stringify(error.message)); }",
        files / "data.json", files / f"{base}.json",
    )  # fmt: skip
    assert "bytes instead of" in said


def load_small():
    """The small Llama as it is shipped."""
    run = live.probe("lora", 1e-3, 1).runs[0]
    return load_model(run.model, run.method, run.platform, run.dtype, run.weights)


@pytest.mark.node
@pytest.mark.parametrize("name", live.ARMS)
def test_the_page_counts_what_a_method_trains(files, name):
    """The numbers whose bytes of state the page prints are those that the method has."""
    count = node(
        "const { trainedNumbers } = require(`${engine}/methods.js`);"
        'const data = JSON.parse(require("node:fs").readFileSync(process.argv[1])), name = process.argv[2];'
        "const choice = { ...data.arms[name].choice, start: data.starts[1] };"
        "console.log(trainedNumbers(data.task.config, choice));",
        files / "data.json", name,
    )  # fmt: skip
    assert count == live.ARMS[name].method.parameters(shape_from_config(load_small().model.config.to_dict()))


def job(name: str, steps: int, **others: Any) -> dict[str, Any]:
    """Of an arm at its lowest rate, seed 1, over the plan's first steps or as many as it takes again from its start."""
    data = site.data(default_store())
    plan = (data["plans"][1] * (1 + steps // len(data["plans"][1])))[:steps]
    choice = data["arms"][name]["choice"] | {"start": data["starts"][1]}
    settings = {"choice": choice, "rate": lowest(name), "steps": data["lengths"][100][1], "seed": 1, "plan": plan}
    return {"task": data["task"], "levels": data["levels"], "settings": settings | others, "steps": steps}


@pytest.mark.node
@pytest.mark.slow
@pytest.mark.parametrize("name", live.ARMS)
def test_the_engine_has_the_losses_of_pytorch(name):
    """Its record: ten steps of forward, backward, clipping, warm-up and AdamW from one start on the same batches."""
    found = node_steps(ENGINE, job(name, live.ENDS), site.weights(live.ARMS[name].base))
    assert found["losses"] == pytest.approx(recorded_losses(name)[: live.ENDS], abs=AGREED)


@pytest.mark.node
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_rate_of_ten_ends_in_numbers_or_in_a_sentence(name):
    """Never in a curve of numbers that are none; a rate at which there are none left says what to do."""
    weights = site.weights("rows")
    assert all(map(math.isfinite, node_steps(ENGINE, job(name, 4, rate=10.0), weights)["losses"]))
    with pytest.raises(InputError, match=r"diverged at step \d+: lower the learning rate"):
        node_steps(ENGINE, job(name, 4, rate=1e30), weights)


PRODUCTS = """
const { space } = require(`${engine}/arrays.js`), memory = space();
console.log(JSON.stringify(JSON.parse(process.argv[1]).map(({ sides, turned, adds }) => {
  const [rows, columns, terms] = sides;
  memory.reset();
  const a = turned === "a" ? memory.array(terms, rows) : memory.array(rows, terms);
  const b = turned === "b" ? memory.array(columns, terms) : memory.array(terms, columns);
  const c = memory.array(rows, columns), beyond = memory.array(1, 16);
  memory.settled(rows, columns);
  for (const { data } of [a, b]) data.forEach((_, at) => { data[at] = Math.sin(at); });
  c.data.fill(adds ? 1 : NaN);
  memory.product(c, a, b, turned, adds);
  return [[...c.data], beyond.data.every((value) => value === 0)];
})));
"""


@pytest.mark.node
def test_a_product_is_torchs_whatever_its_sides():
    """Tiles that end in the middle, more terms than are packed at once, either factor transposed, added or not."""
    cases = [
        {"sides": sides, "turned": turned, "adds": adds}
        for sides in ((1, 1, 1), (2, 16, 4), (5, 3, 7), (13, 29, 301), (4, 56, 513), (1, 76, 64))
        for turned in ("", "a", "b")
        for adds in (False, True)
    ]
    for case, (found, untouched) in zip(cases, node(PRODUCTS, json.dumps(cases)), strict=True):
        rows, columns, terms = case["sides"]
        a, b = (torch.arange(side * terms, dtype=torch.float64).sin().float() for side in (rows, columns))
        a = a.view(terms, rows).T if case["turned"] == "a" else a.view(rows, terms)
        b = b.view(columns, terms).T if case["turned"] == "b" else b.view(terms, columns)
        expected = a.double() @ b.double() + case["adds"]
        assert untouched
        torch.testing.assert_close(torch.tensor(found).view(rows, columns).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.node
@pytest.mark.model
def test_the_engine_answers_as_transformers_does(files):
    """Greedily, four prompts of different lengths together, each as if it were alone."""
    data, loaded = site.data(default_store()), load_small()
    asked, limit, end = [one["ids"] for one in data["questions"]], data["limit"], data["task"]["end"]
    answers = node(
        "const { trainer } = require(`${engine}/trainer.js`), { tensorsOf } = require(`${engine}/weights.js`);"
        'const [job, file] = process.argv.slice(1).map((path) => JSON.parse(require("node:fs").readFileSync(path)));'
        "const training = trainer(job.task).start(tensorsOf(file, job.levels), job.settings);"
        "training.answers(job.asked, job.limit).then((answers) => console.log(JSON.stringify(answers)));",
        written(files / "asked.json", job("lora", 1) | {"asked": asked, "limit": limit}), files / "rows.json",
    )  # fmt: skip
    model = round_base(loaded.model, "rows").eval()
    for ids, answer in zip(asked, answers, strict=True):
        made = model.generate(torch.tensor([ids]), max_new_tokens=limit, do_sample=False, eos_token_id=end)[0].tolist()
        assert answer == [token for token in made[len(ids) :] if token != end]


def written(path: Path, content: Any) -> Path:
    """The path, with that content as JSON."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.node
@pytest.mark.slow
def test_a_hundred_steps_take_no_more_memory_than_twenty(files):
    """Neither in arrays nor in objects; steps of one short row, which take the same way as steps of four."""
    request = job("lora", 100)
    rows = request["task"]["rows"]
    shortest = sorted(range(len(rows)), key=lambda at: len(rows[at]["ids"]))
    request["settings"]["plan"] = [[shortest[step % 10]] for step in range(100)]
    early, late = node(
        "const { trainer } = require(`${engine}/trainer.js`), { tensorsOf } = require(`${engine}/weights.js`);"
        'const [job, file] = process.argv.slice(1).map((path) => JSON.parse(require("node:fs").readFileSync(path)));'
        'require("node:v8").setFlagsFromString("--expose-gc");'
        'const collect = require("node:vm").runInNewContext("gc"), found = [];'
        "const training = trainer(job.task).start(tensorsOf(file, job.levels), job.settings);"
        "(async () => {"
        "for (let step = 1; step <= job.steps; step += 1) {"
        "  await training.next();"
        "  if (step === 20 || step === job.steps) {"
        "    for (let once = 0; once < 8; once += 1) collect();"  # code that has aged goes with the last ones
        "    await new Promise((freed) => { setTimeout(freed, 50); });"
        "    const { heapUsed, external, arrayBuffers } = process.memoryUsage();"
        "    found.push(heapUsed + external + arrayBuffers);"
        "  }"
        "}"
        "console.log(JSON.stringify(found));"
        "})();",
        written(files / "long.json", request), files / "rows.json",
    )  # fmt: skip
    assert late - early < 6e5


@pytest.mark.node
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_batch_of_another_size_takes_the_plans_rows_in_their_order(rows):
    """As many steps; after the last row the first one comes again."""
    plan = site.data(default_store())["plans"][1]
    made = node(
        "const { batches } = require(`${engine}/../js/live.js`), [plan, rows] = process.argv.slice(1).map(JSON.parse);"
        "console.log(JSON.stringify(batches(plan, rows)));",
        json.dumps(plan), rows,
    )  # fmt: skip
    order = [row for batch in plan for row in batch]
    assert [len(batch) for batch in made] == [rows] * len(plan)
    taken = [row for batch in made for row in batch]
    assert taken == [order[at % len(order)] for at in range(len(taken))]


@pytest.mark.node
@pytest.mark.parametrize("used", [0, 2, 3])
def test_the_page_finds_the_singular_values_of_the_update(used):
    """Those of γ B A by torch, at the start, where B is zero, and where some directions of the rank are not in use."""
    d_in, d_out, rank, gamma = 12, 9, 3, 2.0
    draw = torch.Generator().manual_seed(used)
    A, B = torch.randn(d_in, rank, generator=draw), torch.zeros(rank, d_out)
    B[:used] = torch.randn(used, d_out, generator=draw)
    found = node(
        "const { singularValues } = require(`${engine}/spectrum.js`);"
        "const [A, B, rank, gamma] = JSON.parse(process.argv[1]);"
        "console.log(JSON.stringify(singularValues(Float32Array.from(A), Float32Array.from(B), rank, gamma)));",
        json.dumps([A.flatten().tolist(), B.flatten().tolist(), rank, gamma]),
    )  # fmt: skip
    expected = torch.linalg.svdvals((gamma * A @ B).double())[:rank].tolist()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-5)


@pytest.mark.node
def test_the_page_agrees_by_the_rule_of_the_study():
    """The record itself agrees; an early loss or the late mean beyond its margin does not, nor does a shorter curve."""
    rule = {"ends": live.ENDS, "first": live.FIRST_MARGIN, "last": live.LAST_MARGIN}
    recorded = [3 / (1 + step) for step in range(40)]
    early, late = recorded.copy(), recorded.copy()
    early[3] += 1.01 * live.FIRST_MARGIN
    late[-1] += 1.01 * live.LAST_MARGIN * live.ENDS
    within = [loss + 0.9 * live.FIRST_MARGIN for loss in recorded]
    said = node(
        "const { agreement } = require(`${engine}/../js/live.js`);"
        "const [rule, recorded, ...curves] = process.argv.slice(1).map(JSON.parse);"
        "console.log(JSON.stringify(curves.map((own) => agreement(own, recorded, rule).agrees)));",
        *map(json.dumps, (rule, recorded, recorded, within, early, late, recorded[:-1])),
    )
    assert said == [True, True, False, False, False]


@pytest.mark.node
def test_the_page_reads_token_ids_as_the_tokenizer_does(files):
    """Every token of the vocabulary, letters beyond ASCII in two tokens too, with spaces as a browser shows them."""
    tokenizer = load_small().tokenizer
    rows = [[index] for index in range(3, len(tokenizer))] + [tokenizer.encode("naïve – 3 €, Müller’s")]
    texts = node(
        'const { textOf } = require(`${engine}/../js/live.js`), { readFileSync } = require("node:fs");'
        "const { tokens } = JSON.parse(readFileSync(process.argv[1]));"
        "console.log(JSON.stringify(JSON.parse(process.argv[2]).map((ids) => textOf(ids, tokens))));",
        files / "data.json", json.dumps(rows),
    )  # fmt: skip
    assert texts == [re.sub(r"[ \t\n\v\f\r]+", " ", text).strip(" ") for text in tokenizer.batch_decode(rows)]


@pytest.mark.node
def test_the_page_asks_a_readers_message_as_the_tokenizer_writes_it(files):
    """Every message of the task, and letters, signs and spaces that none of them has, in the frame of a prompt."""
    tokenizer, task = load_small().tokenizer, get_task(live.TASK)
    examples = [one for split in task.splits.values() for one in split]
    odd = ("It's 3 €  naïve—isn't\n it?! 日本", "a", "I'll've they'd", "x" * 40, "  two  spaces, \t a tab")
    examples += [replace(examples[0], input=text.strip()) for text in odd]
    made = node(
        'const { idsOf } = require(`${engine}/../js/live.js`), { readFileSync } = require("node:fs");'
        "const { tokens, frame } = JSON.parse(readFileSync(process.argv[1]));"
        "console.log(JSON.stringify(JSON.parse(process.argv[2])"
        ".map((text) => [...frame[0], ...idsOf(text, tokens), ...frame[1]])));",
        files / "data.json", json.dumps([one.input for one in examples]),
    )  # fmt: skip
    assert made == [encode_prompt(tokenizer, task, one) for one in examples]


@pytest.mark.node
@pytest.mark.parametrize("right", [0, 1, 37, 60])
def test_the_interval_of_right_answers_is_wilsons(right):
    """By scipy, also where none or all are right."""
    said = node(
        "const { wilson } = require(`${engine}/../js/live.js`);"
        "console.log(JSON.stringify(wilson(Number(process.argv[1]), 60)));",
        right,
    )
    expected = stats.binomtest(right, 60).proportion_ci(method="wilson")
    assert said == pytest.approx([expected.low, expected.high], abs=1e-6)
