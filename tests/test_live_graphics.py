"""Training in the page on a graphics processor: its kernels against the engine's loops, and which of the two trains.

The graphics processor here is SwiftShader, Chromium's own in software: right, and slow.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from live_trainings import AGREED
from test_live import job, node

from peftbook.core.records import default_store
from peftbook.studies import live
from peftbook.training.live_weights import BLOCK, stored
from peftbook.views.site import live as site

SOFTWARE = ("--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
STEPS = 6  # two of each batch
ENGINE = site.bundled(
    site.MODULES[:-1] + site.GRAPHICS,
    "Object.assign(globalThis, load('trainer.js'), load('weights.js'), load('webgpu.js'));",
)
CONFIG = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "vocab_size": 70, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip


def tiny_weights(base: str) -> dict[str, Any]:
    """A Llama of a few thousand numbers, no side of which is a whole number of tiles, as a page gets it."""
    draw = torch.Generator().manual_seed(3)
    width, inner, wide, narrow = 32, 40, 40, 20
    sides = {
        "self_attn.q_proj": (wide, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, wide), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    shapes = {f"layers.{at}.{name}": side for at in range(CONFIG["num_hidden_layers"]) for name, side in sides.items()}
    shapes |= {"embed_tokens": (CONFIG["vocab_size"], width), "norm": (width,)}
    values = {
        f"model.{name}.weight": 0.3 * torch.randn(side, generator=draw) + (len(side) == 1)
        for name, side in shapes.items()
    }
    content, entries = stored(values, base)
    text = base64.b64encode(content).decode("ascii")
    return {"text": text, "length": len(content), "block": BLOCK, "entries": entries}


def tiny_job(name: str, shipped: dict[str, Any]) -> dict[str, Any]:
    """A training of an arm's kind on six rows of different lengths, three or two a step; some ids come twice."""
    draw = torch.Generator().manual_seed(5)
    lengths = (9, 12, 7, 12, 10, 8)
    rows = [{"ids": torch.randint(1, 70, (n,), generator=draw).tolist(), "start": n - 2 - n % 3} for n in lengths]
    choice = shipped["arms"][name]["choice"] | {"start": [4, 9, 4]}
    choice |= {"rank": 3, "alpha": 6} if choice["method"] == "lora" else {}
    settings = {"choice": choice, "rate": 0.01, "steps": STEPS, "seed": 1, "plan": [[0, 1, 2], [3, 4], [5, 0, 4]] * 2}
    task = {"config": CONFIG, "rows": rows, "length": max(lengths), "end": 0, "most": 1.0, "warmup": 0.3}
    asked = [[3, 5, 3], [7, 1, 2, 9]]
    return {"task": task, "levels": shipped["levels"], "settings": settings, "steps": STEPS, "asked": asked}


@pytest.fixture(scope="module")
def shipped():
    """What a page is given."""
    return site.data(default_store())


@pytest.fixture(scope="module")
def page(chromium, tmp_path_factory):
    """A page from the disk with the engine in it, in a browser whose graphics processor is software."""
    from playwright.sync_api import sync_playwright

    path = tmp_path_factory.mktemp("graphics") / "page.html"
    path.write_text(f"<!DOCTYPE html><title>engines</title><script>{ENGINE}</script>", encoding="utf-8")
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium, args=SOFTWARE
    ) as browser:  # fmt: skip
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(path.as_uri())
        yield page


TRAINED = """
async ([job, file, own]) => {
  globalThis.card ??= graphics();
  const training = trainer(job.task, own ? undefined : (await card).space)
    .start(tensorsOf(file, job.levels), job.settings);
  const losses = [];
  for (let step = 0; step < job.steps; step += 1) losses.push(await training.next());
  if (!job.asked) return { losses };
  return { losses, answers: await training.answers(job.asked, 3), spectrum: await training.spectrum() };
}
"""


@pytest.mark.browser
@pytest.mark.parametrize("name", live.ARMS)
def test_a_graphics_processor_trains_as_webassembly_does(page, shipped, name):
    """Six steps of every method, each a list of kernels: losses, greedy answers, singular values."""
    request, weights = tiny_job(name, shipped), tiny_weights(live.ARMS[name].base)
    own, other = (page.evaluate(TRAINED, [request, weights, own]) for own in (True, False))
    assert other["losses"] == pytest.approx(own["losses"], abs=AGREED)
    assert own["losses"][0] - own["losses"][-1] > 100 * AGREED
    assert other["answers"] == own["answers"]
    assert other["spectrum"] == pytest.approx(own["spectrum"], rel=1e-3)


@pytest.mark.browser
@pytest.mark.slow
def test_a_graphics_processor_trains_the_small_llama(page):
    """Its sizes, over its shortest rows: two losses, the second behind a whole step, beside those of WebAssembly."""
    request, weights = job("lora", 2), site.weights("rows")
    rows = request["task"]["rows"]
    shortest = sorted(range(len(rows)), key=lambda at: len(rows[at]["ids"]))
    request["settings"]["plan"] = [shortest[:1], shortest[1:2]]
    own, other = (page.evaluate(TRAINED, [request, weights, own])["losses"] for own in (True, False))
    assert other == pytest.approx(own, abs=AGREED)


WORKER = """
([before, engine, request]) => new Promise((resolve) => {
  const told = [];
  const worker = new Worker(URL.createObjectURL(new Blob([...before, engine], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => {
    if (data === "ready") worker.postMessage(request);
    else told.push(data);
    if (["done", "failed"].includes(data.kind)) {
      worker.terminate();
      resolve(told);
    }
  };
})
"""
READY = """
const offered = self.peftbookGraphics?.();
self.peftbookGraphics &&= () => offered;
Promise.resolve(offered).then(() => setTimeout(() => postMessage("ready")));
"""
# time passes in WebAssembly alone, so that whatever else there is is faster
CLOCK = """
const Real = WebAssembly.Instance;
let now = 0;
performance.now = () => now;
const wait = setTimeout;
self.setTimeout = (then, after) => (after ? undefined : wait(then));
WebAssembly.Instance = function (...given) {
  const { multiply } = new Real(...given).exports;
  return { exports: { multiply: (...all) => { now += 1; multiply(...all); } } };
};
"""
LOST = """
let device, left = 8;
const ask = GPUAdapter.prototype.requestDevice, map = GPUBuffer.prototype.mapAsync;
GPUAdapter.prototype.requestDevice = async function (...given) { return device = await ask.apply(this, given); };
GPUBuffer.prototype.mapAsync = function (...given) {
  left -= 1;
  if (left === 0) device.destroy();
  return map.apply(this, given);
};
"""
WRONG = """
const make = GPUDevice.prototype.createShaderModule;
GPUDevice.prototype.createShaderModule = function ({ code }) {
  return make.call(this, { code: code.replace("share -= 1.0", "share -= 0.9") });
};
"""
CARD, PROCESSOR = "the graphics processor (WebGPU)", "the processor (WebAssembly)"


@pytest.mark.browser
@pytest.mark.slow
def test_the_faster_engine_trains_and_the_losses_are_the_same(page, shipped):
    """Whichever is faster; one that is lost, or wrong in a kernel, gives way to WebAssembly."""
    request = tiny_job("lora", shipped)
    message = {
        "kind": "train", "task": request["task"], "base": "rows", "file": tiny_weights("rows"), "limit": 3,
        "levels": request["levels"], "settings": request["settings"], "questions": [[3, 5, 3]], "tests": [],
    }  # fmt: skip

    def told(*before: str) -> tuple[list[float], str]:
        messages = page.evaluate(WORKER, [[*before, READY], site.engine_source(), message])
        assert [one["kind"] for one in messages] == ["answers", *["step"] * STEPS, "answers", "tested", "done"], (
            messages
        )
        return [one["loss"] for one in messages if one["kind"] == "step"], messages[-1]["by"]

    card = site.graphics_source()
    losses, by = told()
    assert by == PROCESSOR
    for before, says in (
        ((card,), PROCESSOR), ((CLOCK, card), CARD), ((CLOCK, WRONG, card), PROCESSOR), ((CLOCK, LOST, card), "failed"),
    ):  # fmt: skip
        same, by = told(*before)
        assert says in by and same == pytest.approx(losses, abs=AGREED)


RACES = """
const { raced } = require(`${engine}/race.js`);
let now = 0;
performance.now = () => now;
function fake(each, { wrong = 0, strays = 0, fails = Infinity } = {}) {
  let at = 0, made = 0;
  return {
    async next() {
      if (at >= fails) throw new Error("lost");
      [at, made, now] = [at + 1, made + 1, now + each];
      return 1 / at + wrong;
    },
    state: async () => ({ at, values: [Float32Array.of(at + strays * at, 1)] }),
    resume: (from) => { at = from.at; },
    answers: async () => { if (at >= fails) throw new Error("lost"); return each; },
    spectrum: async () => [],
    made: () => made,
  };
}
async function race([each, other]) {
  let refusals = 0;
  const own = fake(100), training = raced(own, async () => other && fake(each, other), () => { refusals += 1; });
  const losses = [];
  await training.answers();
  for (let step = 0; step < 50; step += 1) losses.push(await training.next());
  const asked = await training.answers();
  const right = losses.every((loss, at) => loss === 1 / (at + 1));
  return { right, by: training.by(), refusals, own: own.made(), asked };
}
(async () => {
  const found = [];
  for (const one of JSON.parse(process.argv[1])) found.push(await race(one));
  console.log(JSON.stringify(found));
})();
"""


@pytest.mark.node
def test_an_engine_has_to_agree_and_to_be_faster():
    """Else WebAssembly trains. Where the other fails after step 45, it makes again what came after the copy at 40."""
    cases = [
        (10, None), (10, {}), (100, {}), (10, {"wrong": 1e-3}), (10, {"strays": 0.06}), (10, {"strays": 0.04}),
        (10, {"fails": 45}), (10, {"fails": 1}), (10, {"fails": 50}),
    ]  # fmt: skip
    found = node(RACES, json.dumps(cases))
    assert all(one["right"] for one in found)
    assert [one["own"] for one in found] == [50, 2, 50, 50, 50, 2, 12, 50, 12]
    assert [one["refusals"] for one in found] == [0, 0, 0, 1, 1, 0, 1, 1, 1]
    assert [one["asked"] for one in found] == [100, 10, 100, 100, 100, 10, 100, 100, 100]
    assert "up to step 45" in found[6]["by"] and "up to step 50" in found[8]["by"]


def test_what_a_graphics_processor_needs_is_small():
    """It is a script of its own, which nobody else loads."""
    assert len(json.dumps(site.graphics_source())) < 30_000
    assert "createShaderModule" not in site.engine_source()
    assert all(Path(site.ENGINE / name).is_file() for name in site.GRAPHICS)
