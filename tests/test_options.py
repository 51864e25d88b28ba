"""Options are said once: command line, form and plan have the same fields, bounds and defaults, and the same runs."""

from __future__ import annotations

import argparse
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_plan import SMALL, TASK

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.core.options import Bound, add_options, check_bounds, listed, read_options, words_of
from peftbook.methods import presets
from peftbook.methods.lora import LoRA
from peftbook.studio.pages.form import number_of
from peftbook.studio.plan import plan, run_alone
from peftbook.studio.settings import Guessed, Judging, Reading, Settings, Single, rates_named
from peftbook.tasks.rows import Caps

COMMANDS = {"train": (Guessed, Single), "compare": (Guessed, Settings, Judging), "studio": (Caps,)}
GIVEN = {"train": ["x.csv", "--input", "a", "--target", "b", "--out", "y"],
         "compare": ["x.csv", "--input", "a", "--target", "b"], "studio": []}  # fmt: skip
NAMES = st.text("abcdefghij ", min_size=1).filter(str.strip)
MODELS = [(name, model) for name, models in COMMANDS.items() for model in models]


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_a_command_without_options_has_the_defaults_of_the_model(name, model):
    """Nothing is said twice that could drift."""
    args = cli.build_parser().parse_args([name, *GIVEN[name]])
    made = read_options(model, args)
    assert made == (Guessed("a", "b") if model is Guessed else model())
    check_bounds(made)


def test_a_field_of_the_form_that_is_empty_is_no_number_where_none_is_usual():
    """And a number everywhere else, where an empty field is refused."""
    asked = {"rank": ("", None), "prompt_length": ("4.0", 4), "tokens": ("0", 0), "epochs": ("0.5", 0.5)}
    assert {name: number_of(name, text) for name, (text, _) in asked.items()} == {
        name: number for name, (_, number) in asked.items()
    }
    with pytest.raises(InputError, match="The field for tokens is empty"):
        number_of("tokens", " ")


@given(
    st.builds(
        Reading, NAMES, NAMES, st.none() | NAMES, st.just("{input}") | NAMES, st.none() | NAMES, st.integers(0, 99),
        st.tuples(*[st.floats(0.01, 0.9)] * 3),
    )
)  # fmt: skip
def test_the_words_of_a_reading_are_read_as_that_reading(reading):
    """The command that a report prints is the command that was given."""
    parser = argparse.ArgumentParser()
    add_options(parser, Reading)
    assert read_options(Reading, parser.parse_args(list(words_of(Reading, reading)))) == reading


def test_words_repeat_what_was_said_and_nothing_else():
    """Once for each value of an option that may be given again."""
    said = ["--seeds", "2", "--learning-rate", "lora=0.001", "--learning-rate", "full=0.1", "--epochs", "3"]
    args = cli.build_parser().parse_args(["compare", *GIVEN["compare"], *said])
    assert list(words_of(Settings, args)) == [
        "--seeds",
        "2",
        "--learning-rate",
        "lora=0.001",
        "--learning-rate",
        "full=0.1",
    ]
    assert read_options(Settings, args).learning_rates == {"lora": 1e-3, "full": 0.1}


def test_a_field_that_is_false_is_a_switch():
    """It takes no word, and its words are those that were given."""
    given = ["--weights", "bf16", "--checkpointing"]
    args = cli.build_parser().parse_args(["train", *GIVEN["train"], *given])
    single = read_options(Single, args)
    assert single.checkpointing is True and list(words_of(Single, args)) == given
    run = run_alone(TASK, dataclasses.replace(single, model=SMALL))
    assert (run.weights, run.checkpointing, run.dtype) == ("bf16", True, "bf16")


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
@pytest.mark.parametrize("change", [
    {}, {"tokens": 777, "test_examples": 3}, {"epochs": 0.5, "max_length": 64}, {"platform": "cuda", "dtype": "bf16"},
])  # fmt: skip
def test_train_computes_the_run_that_compare_does(name, change):
    """The same file with the same settings is the same key."""
    single = Single(model=SMALL, method=name, seed=0 if name in ("untuned", "fewshot") else 2, **change)
    runs = plan(TASK, Settings(models=(SMALL,), methods=(name,), seeds=3, **change))
    assert run_alone(TASK, single).key in {run.key for run in runs}


def test_a_method_with_settings_is_named_in_lists_and_rates():
    """Commas within brackets and the first signs belong to the method; peft's names keep their letters."""
    boft = 'peft:BOFT:target_modules=["q_proj","v_proj"]:boft_block_size=4'
    assert listed(f"untuned, {boft},lora:rank=4") == ("untuned", boft, "lora:rank=4")
    assert rates_named([f"{boft} = 1e-3", "LoRA=4e-4"]) == {boft: 1e-3, "lora": 4e-4}
    with pytest.raises(InputError, match=r"'0\.1' is no learning rate"):
        rates_named(["0.1"])


def test_a_rank_that_a_method_does_not_have_is_refused():
    """Of several methods each takes what it has; of one that has none it must be a mistake."""
    assert run_alone(TASK, Single(model=SMALL, rank=16)).method == LoRA()
    with pytest.raises(InputError, match="A rank of 4 is chosen, which 'prompt' does not take: leave it out"):
        run_alone(TASK, Single(model=SMALL, method="prompt", rank=4))


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.text())
def test_a_bound_lets_through_whole_numbers_within_it_and_nothing_else(value):
    """Each refusal is one sentence."""
    inside = type(value) in (int, float) and 1 <= value <= 9 and value % 1 == 0
    try:
        Bound("{} things are chosen", 1, 9).check(value)
    except InputError as error:
        assert not inside and str(error).endswith("things are chosen: choose a whole number from 1 to 9.")
    else:
        assert inside
