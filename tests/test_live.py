"""Training in the page: the engine's pieces against the package's, its losses against PyTorch's."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import AGREED, first_losses, lowest, start

from peftbook.memory import shape_from_config
from peftbook.records import default_store
from peftbook.site import live as site
from peftbook.studies import live
from peftbook.tasks import file_sha256
from peftbook.training.forward import trainable_state
from peftbook.training.live_weights import BASES, round_base
from peftbook.training.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "book/assets/live"


def test_the_vendored_files_are_those_that_the_notice_names():
    """Nothing of another's code was changed, and none came without its licence."""
    named = dict(re.findall(r"live/jax/(\S+\.cjs) +([0-9a-f]{64})", (ROOT / "NOTICE").read_text(encoding="utf-8")))
    there = {path.name: file_sha256(path) for path in (ENGINE / "jax").glob("*.cjs")}
    assert there == named and len(named) == 2
    assert "MIT License" in (ENGINE / "jax/LICENSE").read_text(encoding="utf-8")


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


@pytest.mark.node
@pytest.mark.slow
@pytest.mark.parametrize("name", live.ARMS)
def test_the_engine_has_the_losses_of_pytorch(files, name):
    """Ten steps of forward, backward, clipping, warm-up and AdamW from the same start on the same batches."""
    arm = live.ARMS[name]
    script = ROOT / "tests/live/losses.cjs"
    arguments = (files / "data.json", files / f"{arm.base}.json", name, lowest(name), 1, live.ENDS)
    result = subprocess.run(["node", script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout)["losses"] == pytest.approx(first_losses(name), abs=AGREED)


@pytest.mark.node
@pytest.mark.parametrize("used", [0, 2, 3])
def test_the_page_finds_the_singular_values_of_the_update(used):
    """Those of γ B A by torch, at the start, where B is zero, and where some directions of the rank are not in use."""
    d_in, d_out, rank, wide, gamma = 12, 9, 3, 5, 2.0
    draw = torch.Generator().manual_seed(used)
    A, B = torch.zeros(d_in, wide), torch.zeros(wide, d_out)
    A[:, :rank] = torch.randn(d_in, rank, generator=draw)
    B[:used] = torch.randn(used, d_out, generator=draw)
    found = node(
        "const { singularValues } = require(`${engine}/spectrum.js`);"
        "const [A, B, wide, rank, gamma] = JSON.parse(process.argv[1]);"
        "console.log(JSON.stringify(singularValues(Float32Array.from(A), Float32Array.from(B), wide, rank, gamma)));",
        json.dumps([A.flatten().tolist(), B.flatten().tolist(), wide, rank, gamma]),
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
