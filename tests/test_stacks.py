"""What libraries assume: the tables against the libraries that are here, and the byte model against their trainers."""

import dataclasses
import importlib.util
from dataclasses import replace
from importlib.metadata import version

import pytest
from tiny import watched_steps

from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.memory import Configuration, DecoderShape, Setup
from peftbook.memory import loss as losses
from peftbook.memory.defaults import classes_in
from peftbook.memory.names import OPTIMISER_NAMES
from peftbook.memory.stacks import STACKS, Declared, setup_in, stack_of
from peftbook.memory.step import structure
from peftbook.memory.walk import walked
from peftbook.training import random_model
from peftbook.training.probes import memory as probes

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # calls of peft and TRL

SHAPE = DecoderShape(layers=4, hidden=256, ffn=768, heads=4, kv_heads=2, vocab=4096, tied=True)
STEP = {"rank": 8, "batch": 2, "seq": 128, "device": "cpu"}
TABLES = STACKS | {stage: stack_of("trl", stage) for stage in ("dpo", "grpo")}
DECLARED = [
    (stack, field, given)
    for stack, known in TABLES.items()
    for field, given in known.given("lora", True).items()
    if isinstance(given, Declared)
]


def real_class(given: Declared) -> type:
    """The class that a table names first."""
    if given.classes[0].startswith("trl/"):
        return getattr(pytest.importorskip("trl"), given.classes[0].rpartition(":")[2])
    from transformers import TrainingArguments

    return TrainingArguments


@pytest.mark.parametrize(
    ("stack", "field", "given"), DECLARED, ids=[f"{stack}-{field}" for stack, field, _ in DECLARED]
)
def test_a_default_is_that_of_the_installed_class(stack, field, given):
    """Read from its source without an import, it is the dataclass's own, and in the named version the table's."""
    own = {one.name: one.default for one in dataclasses.fields(real_class(given))}[given.name]
    own = getattr(own, "value", own)
    assert given.value == (given.if_none if own is None else own)
    package = given.classes[0].partition("/")[0]
    tables = {known.version for known in TABLES.values() if known.package == package}
    if version(package) in tables:
        assert (given.if_none if given.fallback is None else given.fallback) == given.value


def test_what_trl_takes_none_for():
    """bf16 is on unless fp16 is, and a length is cut where it is given (`SFTConfig.__post_init__`)."""
    trl = pytest.importorskip("trl")
    args = trl.SFTConfig(use_cpu=True, report_to="none")
    setup, _ = setup_in("trl")
    assert (args.bf16, args.max_length, args.gradient_checkpointing) == (setup.autocast, setup.seq, setup.checkpointing)
    assert args.per_device_train_batch_size == setup.batch and OPTIMISER_NAMES[args.optim] == setup.optimiser


def test_without_the_library_the_table_says_its_version(monkeypatch):
    """And the same set-up, as long as the version that is here is that of the table."""
    here = {name: setup_in(name)[0] for name in STACKS}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    classes_in.cache_clear()
    try:
        assert {name: setup_in(name)[0] for name in STACKS} == here
    finally:
        classes_in.cache_clear()
    missing = [known for known in STACKS.values() if known.package == "litgpt"]
    assert all(known.version in known.named and "not installed" in known.named for known in missing)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("fields", [{}, {"quantised": "nf4"}, {"method": "full"}, {"method": "prompt"}], ids=str)
def test_every_stack_is_a_set_up_with_its_assumptions(stack, fields):
    """What was assumed is in the set-up, what was asked for stays, and what is left is the default of a set-up."""
    setup, assumed = setup_in(stack, **fields)
    assert all(getattr(setup, one.field) == one.value and one.source for one in assumed)
    assert all(getattr(setup, name) == value for name, value in fields.items())
    said = {one.field: one.value for one in assumed} | fields
    assert setup == Setup(**said)
    batch = 2 * setup.batch
    assert setup_in(stack, **fields, batch=batch)[0].batch == batch
    assert not any(one.field == "batch" for one in setup_in(stack, **fields, batch=batch)[1])


def test_what_goes_together_goes_together():
    """One row has no padding; without checkpoints nothing moves to the host; copies are for autocast over float32."""
    assert setup_in("trl")[0].padding and not setup_in("trl", batch=1)[0].padding
    assert not setup_in("unsloth", checkpointing=False)[0].offloaded
    assert not setup_in("peftbook", dtype="bf16")[0].held
    assert setup_in("TRL") == setup_in("trl")
    assert setup_in("unsloth", seq=512)[0].offloaded and not setup_in("unsloth", seq=511)[0].offloaded
    assert setup_in("peft")[0].optimiser != setup_in("peft", device="cpu")[0].optimiser == "adamw"
    with pytest.raises(InputError, match="no foo: its settings are method"):
        setup_in("trl", foo=1)
    with pytest.raises(InputError, match="'None' is not known"):
        setup_in(None)
    with pytest.raises(InputError, match="nearest name is 'trl'"):
        setup_in("tlr")


@pytest.mark.model
@pytest.mark.parametrize(
    ("library", "fields"),
    [("trl", {}), ("trl", {"method": "full"}), ("trl", {"quantised": "nf4"}), ("trainer", {"quantised": "nf4"})],
    ids=["trl-lora", "trl-full", "trl-qlora", "trainer-qlora"],
)
def test_a_trainers_own_step_needs_what_its_stack_says(library, fields, monkeypatch, tmp_path):
    """The second step of a training by the library itself: the peak of torch's allocator.

    TRL's kernels, and products of bfloat16 that are summed in float32, which a CPU does not have, are taken to need
    nothing beside the tile that they are given.
    """
    pytest.importorskip("trl")
    from trl.kernels import chunked_logprob

    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(chunked_logprob, name, lambda *given, **more: None)
    monkeypatch.setattr(losses, "TILE_COPIES", 0.0)
    for cached in (structure, walked):
        cached.cache_clear()
    setup = replace(setup_in(library, **STEP, **fields)[0], padding=False)
    step = Configuration(SHAPE, setup).step
    predicted = step.peak().total - sum(step.numbers(step.state).values())
    measured = trained_by(library, setup, tmp_path)
    for cached in (structure, walked):
        cached.cache_clear()
    assert measured / predicted == pytest.approx(1, abs=0.02)


def trained_by(library: str, setup: Setup, folder) -> int:
    """Bytes that torch's allocator had handed out at most, in a trainer's second step."""
    import peft
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, TrainingArguments, default_data_collator
    from trl import SFTConfig, SFTTrainer

    model = random_model.random_model(SHAPE, setup, 0)
    config = peft.LoraConfig(r=setup.rank, target_modules=list(setup.targets), task_type="CAUSAL_LM")
    config = None if setup.method == "full" else config
    ids = random_model.random_ids(SHAPE, replace(setup, batch=3 * setup.batch), 0)
    rows = [{"input_ids": row, "labels": row, "attention_mask": [1] * setup.seq} for row in ids.tolist()]
    watch, traces = watched_steps()
    given = {"output_dir": str(folder), "use_cpu": True, "per_device_train_batch_size": setup.batch, "max_steps": 2,
             "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(DATA / "small_llama")
    data = Dataset.from_list(rows)
    if setup.method == "full":
        model.requires_grad_(True)
    if library == "trl":
        trainer = SFTTrainer(
            model=model, args=SFTConfig(**given), train_dataset=data, peft_config=config, processing_class=tokenizer,
            callbacks=[watch],
        )  # fmt: skip
    else:
        if setup.quantised:
            model = peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        model = peft.get_peft_model(model, config) if config else model
        trainer = Trainer(
            model=model, args=TrainingArguments(**given), train_dataset=data, data_collator=default_data_collator,
            callbacks=[watch],
        )  # fmt: skip
    trainer.train()
    return probes.peak_of(traces[1])
