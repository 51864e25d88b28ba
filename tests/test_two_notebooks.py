"""The chapter on the two notebooks: its figures count what they say, and its recipe for a GPU runs on a small model."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.tasks import get_task
from peftbook.tasks.hub import _one_example_a_test_input, _task
from peftbook.views.figures import notebooks

PAGE = (Path(__file__).resolve().parents[1] / "book/two-notebooks.md").read_text(encoding="utf-8")


def block(words: str) -> str:
    """The only code block of the page that holds these words."""
    cells = re.findall(
        r"^```(?:python|\{code-cell\} ipython3)\n(?::[^\n]*\n)*(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
    (cell,) = [each for each in cells if words in each]
    return cell


def test_the_text_about_systems_without_a_model_is_true():
    """Exact match calls a right query wrong, ROUGE-L a wrong one perfect, and copies earn over half of its points."""
    scores = notebooks.sql_scores()
    assert scores["wrapped"]["exact match"] == 0 and scores["wrapped"]["execution match"] == 1
    assert scores["turned"]["ROUGE-L"] == 1 and scores["turned"]["execution match"] < 0.6
    assert scores["copied"]["ROUGE-L"] > 0.5 and scores["copied"]["execution match"] == 0
    assert scores["everything"]["ROUGE-L"] > 0.5


def test_the_name_beats_the_untuned_model():
    """The chapter says so; intervals do not even overlap."""
    from peftbook.evidence.results import quantity

    name = notebooks.summary_scores()["the function's name"]
    assert name.low > (quantity("methods.untuned_rougeL").high or 0)


def test_the_notebooks_rate_lies_between_the_best_ones():
    """What was not wrong: 3e-2 between the best rates of 5 and 20 tokens."""
    from peftbook.evidence.results import quantity

    low, high = (quantity(f"prompt_length.vocabulary_{length}_best_rate").value for length in (5, 20))
    assert low < notebooks.NOTEBOOK_RATE < high


def test_double_quantisation_is_the_smallest_change_and_checkpointing_the_largest():
    """The sentence beside the memory figure."""
    peaks = {name: sum(notebooks.bytes_by_part(setup).values()) for name, setup in notebooks.SETUPS.items()}
    names = list(peaks)[2:]
    saved = [peaks[larger] - peaks[smaller] for larger, smaller in itertools.pairwise(names)]
    assert saved[0] == min(saved) > 0 and saved[-1] == max(saved)
    assert saved[0] == pytest.approx(0.302e9, rel=0.01)


def test_torch_has_no_gradient_where_nothing_is_graded():
    """The loss is nan and the gradient exactly zero, so that nothing stops."""
    logits = torch.randn(3, 5, requires_grad=True)
    loss = functional.cross_entropy(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.isnan() and not logits.grad.any()


def invented(name: str):
    """A few rows as the hub's tasks would have them."""
    rows = [
        (f"Which {thing} is red? Columns: {thing}, colour", f"SELECT {thing} FROM t")
        for thing in ("car", "hat", "cup", "pen", "tea", "sea", "map")
    ]
    return _task(name, *_one_example_a_test_input({"train": rows, "validation": rows[:2], "test": rows[2:4]}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # peft and transformers announce changes of their own
def test_the_recipe_for_a_gpu_runs_on_the_small_model(tmp_path, monkeypatch):
    """The printed lines with another model, platform and data: sweeps, finals and rivals have records."""
    namespace: dict[str, object] = {"get_task": get_task}
    exec(block("def recipe("), namespace)
    recipe = namespace["recipe"]
    recipe.__kwdefaults__.update(platform="cpu", model=str(DATA / "small_llama"), tokens=150)  # type: ignore[attr-defined]
    monkeypatch.setattr("peftbook.tasks.hub.load_hub", invented)
    monkeypatch.setattr(specs, "Evaluation", lambda **fields: EVALUATION(**(fields | {"max_new_tokens": 2})))
    monkeypatch.chdir(tmp_path)
    exec(block("RECIPES = "), namespace)
    from peftbook.core.records import Store

    records = Store(tmp_path / "runs").all()
    kinds = [record.spec.method.kind for record in records]
    assert kinds.count("prompt") == kinds.count("qlora") == 6 and kinds.count("untuned") == 4
    assert sum((tmp_path / f"{name}-{seed}").is_dir() for name in ("wikisql", "tweetsumm") for seed in (1, 2, 3)) == 6


EVALUATION = specs.Evaluation
