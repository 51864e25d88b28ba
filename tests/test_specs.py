"""Specs: the key names a run, nothing else does, and bad values get one sentence."""

from __future__ import annotations

import json
import math
import random
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from peftbook.core import specs
from peftbook.core.canonical import build
from peftbook.core.errors import InputError
from peftbook.methods import preset_method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned

positive = st.floats(1e-6, 10, allow_nan=False)
names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
lora_fields = {
    "rank": st.integers(1, 300),
    "alpha": positive,
    "targets": st.lists(names, min_size=1, max_size=4).map(tuple),
    "dropout": st.floats(0, 0.99),
}
methods = st.one_of(
    st.builds(Untuned, shots=st.integers(0, 8)),
    st.builds(Full),
    st.builds(LoRA, **lora_fields),
    st.builds(QLoRA, quant=st.sampled_from(["nf4", "fp4"]), double_quant=st.booleans(), **lora_fields),
    st.builds(PromptTuning, length=st.integers(1, 100), init=st.sampled_from(["random", "vocabulary", "text"])),
)
budgets = st.builds(
    specs.Budget,
    tokens=st.integers(1, specs.MOST_TOKENS - 1),
    batch_size=st.integers(1, 64),
    learning_rate=positive,
    warmup=st.floats(0, 0.99),
    weight_decay=st.floats(0, 1),
    max_length=st.integers(8, 4096),
)


@st.composite
def runs(draw) -> specs.Run:
    """Any valid run."""
    method = draw(methods)
    return specs.Run(
        model=specs.Model(name=draw(names), revision=draw(names)),
        task=specs.Task(name=draw(names), data_sha256="0" * 64),
        method=method,
        budget=None if isinstance(method, Untuned) else draw(budgets),
        evaluation=specs.Evaluation(n_loss=draw(st.integers(1, 500))),
        seed=draw(st.integers(0, 2**31)),
        dtype=draw(st.sampled_from(["bf16", "fp32"])),
    )


def leaves(tree: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field of a dumped spec that is not a spec itself."""
    found = []
    for name, value in tree.items():
        found += leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]
    return found


OTHER = {  # another legal value of each field that has few
    "split": {"validation": "test", "test": "validation"},
    "dtype": {"bf16": "fp32", "fp32": "bf16"},
    "platform": {"cpu": "cuda", "cuda": "cpu"},
    "purpose": {"quality": "timing", "timing": "quality"},
    "quant": {"nf4": "fp4", "fp4": "nf4"},
    "init": {"random": "vocabulary", "vocabulary": "text", "text": "random"},
}


def another(name: str, value):
    """A legal value of this field that is not the one it has."""
    if name in OTHER:
        return OTHER[name][value]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, list):
        return [*value, "another"]
    return value + "x"


def reordered(tree, rng: random.Random):
    """The same tree with the fields of every level in another order."""
    if not isinstance(tree, dict):
        return tree
    items = [(name, reordered(value, rng)) for name, value in tree.items()]
    rng.shuffle(items)
    return dict(items)


@given(runs(), st.integers(0, 1000))
def test_the_key_does_not_depend_on_the_order_of_fields(run, seed):
    """A spec written by hand, by a study or read from a record is the same run."""
    shuffled = reordered(run.model_dump(mode="json"), random.Random(seed))
    assert specs.Run.model_validate(shuffled).key == run.key


@settings(deadline=None)
@given(runs())
def test_every_field_changes_the_key(run):
    """A field that did not would let two different runs share a record; new fields are covered without a new test."""
    tree = run.model_dump(mode="json")
    for path in leaves(tree):
        if path[-1] == "kind" or path == ("budget",):
            continue
        changed = deepcopy(tree)
        place = changed
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = another(path[-1], place[path[-1]])
        assert specs.Run.model_validate(changed).key != run.key, path


@given(runs(), runs())
def test_two_runs_share_a_key_exactly_if_they_are_equal(one, other):
    """The key is a function of the spec, and the spec can be read back from the key's text."""
    assert (one == other) == (one.key == other.key)
    assert specs.Run.model_validate_json(one.canonical()) == one


def test_how_a_run_is_held_in_memory_changes_the_key_where_it_is_said():
    """A run in float32 without checkpoints keeps the text that it had before there was a choice."""
    plain = a_run()
    assert plain == a_run(weights="fp32", checkpointing=False)
    assert not {"weights", "checkpointing"} & json.loads(plain.canonical()).keys()
    others = [a_run(weights="bf16"), a_run(checkpointing=True), a_run(weights="bf16", checkpointing=True)]
    assert len({plain.key, *(run.key for run in others)}) == 4
    assert all(specs.Run.model_validate_json(run.canonical()) == run for run in others)


def test_an_order_of_answers_in_an_older_spec_keeps_its_key():
    """The field has no effect any more; a spec without it has the text that it always had."""
    plain, ordered = (a_run(evaluation=specs.Evaluation(order=order)) for order in ("length", "random"))
    assert "order" not in plain.canonical() and plain.key != ordered.key
    assert specs.Run.model_validate_json(ordered.canonical()) == ordered


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"weights": "bf16", "dtype": "fp32"}, "multiplied there: choose dtype"),
        ({"weights": "bf16", "dtype": "fp16"}, "multiplied there: choose dtype"),
        ({"weights": "bf16", "evaluation": specs.Evaluation(n_generate=1)}, "and generation_dtype 'bf16'"),
        ({"weights": "bf16", "method": Full()}, "most of their steps are rounded away: choose weights 'fp32'"),
        (
            {"weights": "bf16", "method": preset_method("norm")},
            "most of their steps are rounded away: choose weights 'fp32'",
        ),
        ({"weights": "bf16", "method": preset_method("adapter")}, "compute in float32: choose weights 'fp32'"),
        (
            {"weights": "bf16", "method": preset_method("qlora", init="loftq")},
            "rounded from float32: choose weights 'fp32'",
        ),
        ({"weights": "bf16", "method": Untuned(quant="nf4"), "budget": None}, "rounded from float32"),
        (
            {"checkpointing": True, "method": preset_method("prefix")},
            "drops a prefix where layers are checkpointed: choose no",
        ),
        (
            {"checkpointing": True, "method": preset_method("peft:PREFIX_TUNING:num_virtual_tokens=3")},
            "drops a prefix where layers are checkpointed",
        ),
        ({"checkpointing": True, "method": Untuned(), "budget": None}, "no backward pass: choose no checkpointing"),
    ],
)
def test_what_cannot_be_held_so_is_refused(fields, words):
    """Two keys for one result, or a training that does not train what it says."""
    task, budget = specs.Task(name="t", data_sha256=""), specs.Budget(tokens=1, learning_rate=1)
    with pytest.raises(InputError, match=words):
        build(specs.Run, **{"task": task, "method": LoRA(), "budget": budget} | fields)


def test_the_kind_of_method_changes_the_key():
    """LoRA and QLoRA share every LoRA field."""
    task, budget = specs.Task(name="t", data_sha256="0" * 64), specs.Budget(tokens=1, learning_rate=1)
    keys = {specs.Run(task=task, method=m, budget=budget).key for m in (LoRA(), QLoRA(), Full())}
    assert len(keys) == 3


def test_equal_numbers_give_equal_keys_whatever_they_are_written_as():
    """alpha = 32 in a study and 32.0 in its record are one run."""
    assert LoRA(alpha=32) == LoRA(alpha=32.0)
    assert LoRA(alpha=32).model_dump_json() == LoRA(alpha=32.0).model_dump_json()


def test_the_canonical_text_is_sorted_json_without_spaces():
    """Anyone can recompute a key from a record with a JSON library and SHA-256."""
    text = a_run().canonical()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()


def a_run(**fields) -> specs.Run:
    values = {
        "task": specs.Task(name="t", data_sha256="0" * 64),
        "method": LoRA(),
        "budget": specs.Budget(tokens=10, learning_rate=1e-3),
    }
    return specs.Run(**values | fields)


@pytest.mark.parametrize("spec", [a_run(), LoRA(), specs.Budget(tokens=1, learning_rate=1), specs.Model()])
def test_specs_are_frozen_and_closed(spec):
    """A spec that changed after its key was taken would file a result under the wrong name."""
    name = next(iter(type(spec).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(spec, name, getattr(spec, name))
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(spec).model_validate({**spec.model_dump(), "rnak": 4})


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: preset_method("qlora", quant="nf3"), ("QLoRA", "quant", "'nf3'", "'nf4'")),
        (lambda: preset_method("prompt", length=-1), ("PromptTuning", "length", "-1")),
        (lambda: build(specs.Budget, tokens=0, learning_rate=1), ("Budget", "tokens", "0")),
        (lambda: build(specs.Budget, tokens=1, learning_rate=math.nan), ("Budget", "learning_rate", "nan")),
        (lambda: build(specs.Budget, tokens=1, learning_rate=math.inf), ("learning_rate = inf",)),
        (lambda: build(specs.Budget, tokens=10**12, learning_rate=1), ("Budget", "tokens", "1000000000000")),
        (lambda: build(specs.Budget, tokens=1), ("Budget", "learning_rate", "required")),
        (lambda: build(specs.Budget, tokens=1, learning_rate=1, max_length=4), ("Budget", "max_length", "4")),
    ],
)
def test_bad_values_get_one_sentence_that_names_value_and_fix(make, named):
    """The command line prints it as it is."""
    with pytest.raises(InputError) as caught:
        make()
    message = str(caught.value)
    assert all(part in message for part in named), message
    assert message.endswith(".") and "\n" not in message and len(message) < 250


def test_a_budget_belongs_to_every_run_that_trains_and_to_no_other():
    """An untuned run with a budget would have two keys for one result."""
    budget = specs.Budget(tokens=1, learning_rate=1)
    for method, wrong in [(Untuned(), budget), (LoRA(), None), (Full(), None)]:
        with pytest.raises(InputError, match="untuned run takes no budget"):
            build(specs.Run, task=specs.Task(name="t", data_sha256=""), method=method, budget=wrong)
