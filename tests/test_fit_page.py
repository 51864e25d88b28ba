"""`peftbook fit` in the page: the answers of the command line, word for word and to the byte, and its refusals."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peftbook.core.errors import InputError
from peftbook.memory import SHAPES
from peftbook.memory.fit import CARDS
from peftbook.memory.names import TARGET_WORDS
from peftbook.memory.question import ON_OFF, Question, answer_fields
from peftbook.memory.setup import CHOICES, OPTIMISERS
from peftbook.memory.stacks import STACKS
from peftbook.memory.timeline import KINDS
from peftbook.views import figures
from peftbook.views.site import byte_model

ASSETS = Path(__file__).resolve().parents[1] / "book/assets"
CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "llama", "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632,
     "vocab_size": 32000, "num_attention_heads": 32, "num_key_value_heads": 4,
     "max_position_embeddings": 8192, "rope_theta": 10000.0},
    {"model_type": "gemma3", "text_config": {
        "num_hidden_layers": 12, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 2}},
    {"model_type": "qwen2", "num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864,
     "vocab_size": 151936, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
     "quantization_config": {
         "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False}},
    {"model_type": "olmo2", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
     "vocab_size": 100352, "num_attention_heads": 16},
)  # fmt: skip
OPTIONS: dict[str, tuple[Any, ...]] = {
    "batch": (1, 2, 3, 17), "seq": (100, 777, 2048), "rank": (1, 7, 300), "length": (5, 33), "devices": (2, 4, 8),
    "labels": ("25%", "7"), "quant": ("none", "nf4", "int8"), "dtype": ("bf16", "fp32"), "optimiser": OPTIMISERS,
    "attention": ("flash_attention_2", "eager"), "logits": CHOICES["logits"], "saved": (("embed_tokens", "lm_head"),),
    "targets": (*TARGET_WORDS.values(), ("down_proj", "o_proj")), "reserve": ("1GiB",), "single_quant": (True,),
    **dict.fromkeys(ON_OFF, (True, False)),
}  # fmt: skip
MEMORIES = (*(f"{size}GB" for size in CARDS), "24GiB", "180GiB", "288GiB")
OFTEN = ("batch", "seq", "checkpointing")


def drawn(draw: random.Random) -> dict[str, Any]:
    """A question that a reader could ask."""
    asked = {
        "model": draw.choice((*SHAPES, *["config.json"] * len(SHAPES))), "method": draw.choice([*byte_model.METHODS]),
        "stack": draw.choice([*STACKS]), "memory": draw.choice(MEMORIES),
    }  # fmt: skip
    for name, values in OPTIONS.items():
        if draw.random() < (0.5 if name in OFTEN else 0.1):
            asked[name] = draw.choice(values)
    return asked


def by_command(asked: dict[str, Any]) -> dict[str, Any]:
    """What the command line's function says, as JSON has it."""
    try:
        said = json.dumps({"answer": answer_fields(Question(**asked))})
    except InputError as error:
        said = json.dumps({"refused": str(error)})
    return json.loads(said.replace(", which is not installed,", ""))  # the page has the table's version there


class Page:
    """The page's worker in Node.js, which answers while Python does."""

    def __init__(self, questions: list[tuple[dict[str, Any], str]], folder: Path):
        (folder / "engine.js").write_text(byte_model.engine_source(), encoding="utf-8")
        (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        script = (
            'const { readFileSync } = require("node:fs"), [engine, questions] = process.argv.slice(1).map((path) => '
            'readFileSync(path, "utf8")), ask = new Function(`${engine}\\nreturn ask;`)();'
            "console.log(JSON.stringify(JSON.parse(questions).map((one) => ask(...one))));"
        )
        command = ["node", "-e", script, str(folder / "engine.js"), str(folder / "questions.json")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answers(self) -> list[dict[str, Any]]:
        """One for each question."""
        said, errors = self.process.communicate()
        assert self.process.returncode == 0, errors[-3000:]
        return json.loads(said)


def by_commands(questions: list[tuple[dict[str, Any], str]]) -> list[dict[str, Any]]:
    """What the command line says to each, in a folder with its config.json."""
    said = []
    for asked, text in questions:
        Path("config.json").write_text(text, encoding="utf-8")
        said.append(by_command(asked))
    return said


@pytest.mark.node
def test_the_page_answers_as_the_command_line_does(tmp_path, monkeypatch):
    """Fifty steps that there are, and some that are refused: every byte and every sentence is the same."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    questions = [(drawn(draw), json.dumps(draw.choice(CONFIGS))) for _ in range(84)]
    page, expected = Page(questions, tmp_path), by_commands(questions)
    for (asked, _), said, known in zip(questions, page.answers(), expected, strict=True):
        assert said == known, asked
    answers = [one["answer"] for one in expected if "answer" in one]
    assert 50 <= len(answers) < len(expected)
    assert {one["verdict"] for one in answers} == {"fits", "may fit", "does not fit"}


@pytest.mark.node
def test_the_page_refuses_as_the_command_line_does(tmp_path, monkeypatch):
    """Settings that are none: one sentence that names the value and what to give."""
    monkeypatch.chdir(tmp_path)
    whole = CONFIGS[0]
    wrong = [
        {"model_type": "bert"}, {}, [], 3, "llama", {"model_type": 5}, {"model_type": "llama"},
        whole | {"num_hidden_layers": 10**9}, whole | {"hidden_size": -1}, whole | {"vocab_size": 32000.0},
        whole | {"hidden_size": "wide"}, whole | {"num_attention_heads": 31}, whole | {"mlp_bias": "yes"},
        whole | {"head_dim": 1e30}, whole | {"layer_types": ["some"]}, whole | {"sliding_window": [1]},
        whole | {"quantization_config": {"quant_method": "gptq"}}, whole | {"model_type": "phi3", "rope_scaling": 7},
        {**CONFIGS[1], "text_config": {"model_type": []}},
    ]  # fmt: skip
    asked = {"model": "config.json", "memory": "24GiB"}
    questions = [(asked, text) for text in (*map(json.dumps, wrong), "null")]
    page = Page([*questions, (asked, "{"), (asked | {"model": "openai/gpt-oss-20b"}, "")], tmp_path)
    expected, said = by_commands(questions), page.answers()
    assert said[:-2] == expected and all("refused" in one for one in said)
    assert said[-2]["refused"].startswith("config.json is not JSON (")
    assert "gpt-oss is not covered" in said[-1]["refused"]


def test_every_term_has_its_part_of_the_bar():
    """And no term two."""
    terms = [term for terms in byte_model.PARTS.values() for term in terms]
    state = (
        "weights",
        "reference",
        "quantisation constants",
        "whole for a while",
        "adapter",
        "moments",
        "paged moments",
        "projections",
    )
    assert sorted(terms) == sorted({*KINDS, *state})


def test_the_controls_weigh_little_and_the_byte_model_waits():
    """Before a reader comes to them: kilobytes, and no part of the model."""
    shown = byte_model.fit_here(figures.lora.low_rank_update, name="one", alt="A.", caption="B.")
    numbers = shown.html.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(numbers) == json.loads(json.dumps(byte_model.offered()))
    assert shown.html.count("<img ") == 2 and byte_model.FILE in shown.html
    script = (ASSETS / "js/fit.js").read_bytes()
    assert len(gzip.compress(numbers.encode())) + len(gzip.compress(script)) < 15_000
    assert len(gzip.compress(byte_model.engine_source().encode())) < 60_000


FRAME = """<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Does it fit?</title>
<link rel="stylesheet" href="../_static/css/book.css"></head>
<body><main class="bd-content"><article class="bd-article"><p style="height: 300vh">Before.</p>{}</article></main>
</body></html>"""
SAYS = "document.querySelector('[role=status]').textContent"


@pytest.fixture
def page(tmp_path, browser):
    """A page from the disk on a phone, the controls far below; with what it asked for and complained about."""
    byte_model.write(tmp_path / byte_model.FOLDER)
    for name in ("css", "fonts", "js"):
        shutil.copytree(ASSETS / name, tmp_path / "_static" / name)
    (tmp_path / "book").mkdir()
    shown = byte_model.fit_here(figures.lora.low_rank_update, name="one", alt="A.", caption="B.")
    (tmp_path / "book/page.html").write_text(FRAME.format(shown.html), encoding="utf-8")
    with browser.new_page(viewport={"width": 360, "height": 740}) as page:
        page.asked, page.troubles = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda said: page.troubles.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.goto((tmp_path / "book/page.html").as_uri())
        yield page


@pytest.mark.browser
def test_a_page_from_the_disk_answers_to_the_byte(page, tmp_path):
    """The model comes when the controls come into sight; keys choose; a config.json is pasted, dropped or refused."""

    def bytes_shown() -> int:
        return int(page.locator(".fit-total td").last.inner_text().replace(",", ""))

    def answer(**asked: Any) -> dict[str, Any]:
        return answer_fields(Question(**(byte_model.START | asked)))

    assert not [url for url in page.asked if url.endswith(byte_model.FILE)]
    page.get_by_role("combobox", name="Model", exact=True).scroll_into_view_if_needed()
    page.wait_for_selector(".fit-total")
    assert bytes_shown() == answer()["peak_bytes"]
    assert answer()["conclusion"][0] in page.get_by_role("status").inner_text()
    page.get_by_role("combobox", name="Method", exact=True).press("f")  # full, by its letter
    page.get_by_role("spinbutton", name="Tokens a row").fill("300")
    expected = answer(method="full", seq=300)
    page.wait_for_function(
        f"document.querySelector('.fit-command code').textContent.trim() === {json.dumps(expected['command'])}"
    )
    assert bytes_shown() == expected["peak_bytes"]
    shown = page.locator(".fit-terms tbody tr td:last-child").all_inner_texts()
    assert sum(int(one.replace(",", "")) for one in shown[:-1]) == expected["peak_bytes"]

    page.get_by_text("Your own config.json").click()
    page.get_by_label("config.json", exact=True).fill('{"model_type": "bert"}')
    page.wait_for_function(f"{SAYS}.includes(\"model_type 'bert' is not covered\")")
    assert page.locator(".fit-terms").is_hidden()
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[0]))
    page.get_by_label("Choose a config.json").set_input_files(tmp_path / "config.json")
    page.wait_for_function(
        "document.querySelector('.explorer').dataset.verdict && !document.querySelector('.fit-told').hidden"
    )
    own = answer(model=str(tmp_path / "config.json"), method="full", seq=300)
    assert bytes_shown() == own["peak_bytes"] and page.get_by_role("combobox", name="Model", exact=True).evaluate(
        "(model) => model.selectedOptions[0].text"
    ) == "your config.json"  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert all(url.startswith(("file:", "blob:")) for url in page.asked) and not page.troubles


@pytest.mark.browser
def test_a_byte_model_that_does_not_come_is_told_in_a_sentence(page, tmp_path):
    """The controls stay, and the next change tries again."""
    script = tmp_path / byte_model.FOLDER / byte_model.FILE
    whole = script.read_bytes()
    script.write_bytes(whole[: len(whole) // 2])
    page.get_by_role("combobox", name="Model", exact=True).scroll_into_view_if_needed()
    page.wait_for_function(f"{SAYS}.includes('came incomplete')")
    script.write_bytes(whole)
    page.get_by_role("spinbutton", name="Tokens a row").fill("300")
    page.wait_for_selector(".fit-total")
