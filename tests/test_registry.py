"""The registry: laws that hold for every method there is, because its file is there."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest
import torch
from matplotlib.lines import Line2D
from tiny import NumberTokenizer, random_examples, tiny_llama

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.memory import SHAPES, shape_from_config, training_step
from peftbook.methods import Method, arm_looks, get, kinds, look_of, preset, preset_method, presets, read, usual
from peftbook.runtime.resources import training_setup
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studio import pareto
from peftbook.training.forward import apply_method, causal_model, hidden_states, trainable_state
from peftbook.training.loop import train
from peftbook.views.slides import native

TINY = shape_from_config(tiny_llama().config.to_dict())
OFFERED = pytest.mark.parametrize("given", presets(), ids=lambda given: given.name)
TRAINED = pytest.mark.parametrize(
    "given", [given for given in presets() if given.method.trains], ids=lambda given: given.name
)
TASK = specs.Task(name="t", data_sha256="0" * 64)


def budget(given) -> specs.Budget | None:
    rate = learning_rate_for(given.name)
    return specs.Budget(tokens=60, batch_size=4, learning_rate=rate, warmup=0) if given.method.trains else None


def applied(method: Method) -> torch.nn.Module:
    return apply_method(tiny_llama(), method, 0, NumberTokenizer())


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, copied."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def stepped(given) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny model after some steps with a method, and what it held before."""
    model = applied(given.method)
    before = values(model)
    train(model, random_examples(12), budget(given), seed=0, pad_id=2, dtype="fp32",
          rate_factor=given.method.rate_factor)  # fmt: skip
    return model.eval(), before


@TRAINED
def test_a_step_changes_the_methods_own_parameters_and_no_other(given):
    """All frozen weights and buffers keep their bits, and something that the method trains has moved."""
    model, before = stepped(given)
    own = set(trainable_state(model))
    changed = {name for name, value in values(model).items() if not torch.equal(value, before[name])}
    tied = {"lm_head.weight"} if given.method.kind == "full" else set()
    assert changed and changed <= own | tied


@OFFERED
def test_as_many_numbers_are_trained_as_the_method_says(given):
    """What a chart or a plan says before there is a model is what there is afterwards."""
    trained = sum(value.numel() for value in trainable_state(applied(given.method)).values())
    assert trained == given.method.parameters(TINY) and (trained > 0) == given.method.trains


@TRAINED
def test_merging_changes_no_logit_or_the_method_says_why_not(given):
    """peft's merge for what is wrapped; plain tensors and whole models are part of the weights already."""
    model, _ = stepped(given)
    if given.method.unmerged:
        assert not hasattr(model, "merge_and_unload")
        return
    ids = torch.tensor([list(range(5, 17))])
    with torch.no_grad():
        wanted = causal_model(model).lm_head(hidden_states(model, ids))
        merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        torch.testing.assert_close(merged(ids).logits, wanted, rtol=1e-3, atol=1e-4)
    assert type(merged) is type(tiny_llama())


@OFFERED
def test_bytes_and_operations_are_known_before_a_model_is(given):
    """On the book's model; an adapter takes less memory than training every weight."""
    shape, run = SHAPES["smollm2-135m"], specs.Run(task=TASK, method=given.method, budget=budget(given))
    step = training_step(shape, training_setup(run, shape))
    every = specs.Run(task=TASK, method=get("full")(), budget=budget(preset("full")))
    most = training_step(shape, training_setup(every, shape))
    assert sum(step.numbers(step.flops).values()) > 0
    assert step.peak().total < most.peak().total or not given.method.efficient


@OFFERED
def test_a_method_is_read_back_from_its_canonical_text(given):
    """Its fields alone are in the text; what is known about it is not."""
    run = specs.Run(task=TASK, method=given.method, budget=budget(given))
    again = specs.Run.model_validate_json(run.canonical())
    assert again == run and again.key == run.key and type(again.method) is type(given.method)
    fields = json.loads(run.canonical())["method"]
    assert fields.keys() <= type(given.method).model_fields.keys() and read(fields) == given.method


@OFFERED
def test_the_rate_rests_on_a_sweep_of_the_book(given, tmp_path):
    """The study that a preset names chose it; without that study, or its runs, the preset's own number stands."""
    rate, alone = learning_rate_for(given.name), learning_rate_for(given.name, Store(tmp_path))
    assert alone == given.rate and (rate > 0) == (alone > 0) == given.method.trains
    if not given.swept:
        assert rate == alone
    else:
        assert 1 / 64 <= rate / alone <= 64
        assert rate == learning_rate_for(given.name, default_store())


def test_every_kind_is_found_by_its_file_and_by_its_name():
    """A file of the package defines each kind, and the kind is what a record's spec says; a preset of that name is its
    usual form.
    """
    for kind, method in kinds().items():
        assert get(kind) is method and method().kind == kind
        assert method.__module__.startswith("peftbook.methods.")
    assert len({given.name for given in presets()}) == len(presets())
    assert "lora" in usual() and all(type(method) is get(kind) for kind, method in usual().items())


def test_a_new_method_is_a_file(tmp_path):
    """Beside the others it is offered, read and counted, without a line elsewhere."""
    code = """
import peftbook.methods
peftbook.methods.__path__.append({folder!r})
from peftbook import methods
from peftbook.core import specs
found = methods.preset("nothing")
run = specs.Run(task=specs.Task(name="t", data_sha256=""), method={{"kind": "nothing"}},
                budget=specs.Budget(tokens=1, learning_rate=1))
print(run.method == found.method, "nothing" in methods.usual(), methods.arm_looks()["nothing"].label)
"""
    (tmp_path / "nothing.py").write_text(
        "from typing import Literal\n"
        "from peftbook.methods.method import Look, Method, Preset\n"
        "class Nothing(Method):\n"
        "    title = 'Nothing'\n"
        "    kind: Literal['nothing'] = 'nothing'\n"
        "PRESETS = (Preset('nothing', Nothing(), 'Does nothing.', look=Look('Nothing', 'o')),)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.format(folder=str(tmp_path))], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "Nothing"]


def test_looks_differ_and_every_chart_can_draw_them():
    """Marker or line tells methods apart without colour, and matplotlib, SVG and PowerPoint know each marker."""
    for name, look in arm_looks().items():
        assert look.marker in Line2D.markers and look.marker in pareto.MARKERS and look.marker in native.MARKERS
        assert look.line in native.DASHES
        assert all(re.fullmatch(r"#[0-9a-f]{6}", tone) for tone in (look.light, look.dark) if tone)
        assert look_of(preset(name).method) == look
    assert len({look.marker for look in arm_looks().values()}) == len({look.label for look in arm_looks().values()})
    assert look_of(read({"kind": "peft", "name": "BOFT"})).label == "BOFT"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lroa", ("'lroa'", "lora", "qlora")),
        ("peft", ("'peft'", "lora")),
        ("lroa:rank=4", ("'lroa'", "lora", "peft")),
        ("lora:rank", ("'rank'", "name=value")),
        ("lora:rank=0", ("LoRA", "rank = 0", "greater than or equal to 1")),
        ("lora:rnak=8", ("LoRA", "rnak", "8")),
        ("prompt:length=many", ("PromptTuning", "length = 'many'", "integer")),
    ],
)
def test_an_unknown_method_or_setting_is_told_in_one_sentence(name, said):
    """Never another method in its place."""
    with pytest.raises(InputError) as caught:
        preset(name)
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"kind": "lroa"}, {}, {"kind": ["lora"]}])
def test_a_record_of_an_unknown_method_is_refused(value):
    """An unknown kind is an error wherever it is read."""
    with pytest.raises(ValueError, match="Unknown method"):
        specs.Run.model_validate({"task": TASK.model_dump(), "method": value})


def test_settings_in_the_name_are_those_of_the_spec():
    """`lora:rank=8` is LoRA of rank 8 at LoRA's rate."""
    given = preset("lora:rank=8:dora=true")
    assert given.method == preset_method("lora", rank=8, dora=True) and learning_rate_for(
        "lora:rank=8"
    ) == learning_rate_for("lora")
    assert copy.deepcopy(given).method.label == "DoRA"
