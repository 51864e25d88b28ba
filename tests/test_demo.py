"""The demonstration: its file is what its sentences make, and its session ends with a decision."""

import csv
import io
import re
from pathlib import Path

import pytest
import tickets_build as build

from peftbook import cli
from peftbook.tasks.tickets import PATH

PRINTED = Path(__file__).resolve().parents[1] / "book/assets/demo.txt"  # in *Quick start*


def sayings(printed: str) -> str:
    """What a demonstration says on every machine: not its scores and costs, what it ran on, or where lines break.

    And not the marks before the rows: whether soft prompts beat the untuned model is a near thing.
    """
    text = printed.replace(str(PATH.parent), "").replace("src/peftbook/data", "").replace("/tickets", "tickets")
    text = re.sub(r"^[★▲ ]+", "", text, flags=re.M)
    text = re.sub(r"memory are of .*?, and", "memory are of a machine, and", text, flags=re.S)
    text = re.sub(r"-\s+", "-", " ".join(text.split()))
    return re.sub(r"((?<![\w.=-])[+\N{MINUS SIGN}]?\d[\d.,]*( (GB|MB|kB|s|min)\b)? ?)+", "N ", text)


def test_the_shipped_tickets_are_what_the_sentences_make(capsys):
    """To the byte; each is a message of its own customer, for its own team."""
    build.write()
    assert capsys.readouterr().out == PATH.read_text(encoding="utf-8")
    rows = [*csv.DictReader(io.StringIO(PATH.read_text(encoding="utf-8")))]
    assert len(rows) == build.CUSTOMERS * build.EACH and len({row["customer"] for row in rows}) == build.CUSTOMERS
    for row in rows:
        texts = [text.format(product=product) for text in build.TROUBLES[row["team"]] for product in build.PRODUCTS]
        assert any(text in row["message"] for text in texts)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_session_ends_with_a_decision(capsys, tmp_path):
    """The command that it stands for, a row for each method, what to take, and a page."""
    assert cli.main(["demo", "--home", str(tmp_path / "home"), "--report", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("peftbook compare ") and "--home" not in said
    scores = {name: float(re.search(rf"^\W*{name}\s+([01]\.\d+)", said, re.M)[1]) for name in ("Untuned", "LoRA")}
    assert scores["LoRA"] > scores["Untuned"] + 0.2
    assert sayings(said) == sayings(PRINTED.read_text(encoding="utf-8"))
    assert "Take LoRA: it is the clear winner" in said
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
