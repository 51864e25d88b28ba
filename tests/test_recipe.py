"""The recipe: its choices by the byte model's own laws, and its scripts run for real, in the TRL that is pinned."""

import importlib.util
import json
import re
import runpy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import watched_steps

from peftbook.cli import main
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.decision.recipe.choice import (
    BATCH,
    KEPT,
    PLANS,
    SPARE,
    STEP,
    RowTokens,
    choose,
    fields_of,
    longest_kept,
    rate_for,
)
from peftbook.decision.recipe.folder import PAGES, SCRIPTS, write_folder
from peftbook.decision.recipe.rows import count_rows, guess_row, row_of
from peftbook.evidence.literature import published
from peftbook.memory import Configuration, DecoderShape, Setup, read_shape
from peftbook.memory import loss as losses
from peftbook.memory.architecture import FAMILIES
from peftbook.memory.fit import GPU_RESERVE
from peftbook.memory.step import structure
from peftbook.memory.walk import walked
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.tasks import TaskData, TaskExample, get_task
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import read_file, task_from_table
from peftbook.training import random_model
from peftbook.training.models import load_tokenizer, prepare_embedded
from peftbook.training.probes import memory as probes

GIB = 2**30
TICKETS = DATA / "tickets.csv"
ROWS = {
    name: [RowTokens(200, 100), RowTokens(250, 60)] * count
    for name, count in (("train", 400), ("validation", 50), ("test", 60))
}
MODELS = ("llama-3.1-8b", "qwen2.5-7b", "gemma-2-9b", "mistral-7b", "phi-3-mini", "mixtral-8x7b", "llama-3.2-1b")


SHRUNK = {
    name: DecoderShape(3, 192, 512, 6, 2, 8192, context=2048, family=name, **FAMILIES[name])
    for name in ("llama", "qwen2", "gemma", "mistral")
}


@pytest.fixture(scope="module")
def task():
    _, table = read_file(TICKETS)
    return task_from_table(table, Columns("message", "team"))


# --- choices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", [8, 16, 24, 48, 80])
def test_what_is_advised_surely_fits_and_nothing_simpler_does(name, memory):
    """The peak with the larger reserve is within the card; a later method is taken only where no earlier one fits."""
    shape = read_shape(name)
    fitting = [method for method, again in PLANS if surely_fits(shape, method, again, memory * GIB)]
    if not fitting:
        with pytest.raises(InputError, match=f"{name} does not surely fit in {memory} GiB"):
            choose(shape, name, ROWS, memory * GIB)
        return
    recipe = choose(shape, name, ROWS, memory * GIB)
    assert recipe.method == fitting[0]
    assert recipe.band[1] <= memory * GIB
    assert recipe.micro_batch * recipe.accumulation == BATCH
    assert recipe.peak == Configuration(shape, recipe.setup).step.peak().total
    assert (recipe.setup.batch, recipe.setup.seq) == (recipe.micro_batch, recipe.max_length)
    assert recipe.setup.accumulated == (recipe.accumulation > 1)
    assert {name.rpartition(".")[2] for name in recipe.modules} == {*shape.adapted(recipe.setup.targets)}
    assert recipe.method not in [label.lower() for label, _ in recipe.ruled_out]


def surely_fits(shape: DecoderShape, method: str, checkpointing: bool, memory: float) -> bool:
    """One row of the longest, held against the card by the definition of a reserve."""
    fields = fields_of(method, shape) | {"checkpointing": checkpointing, "autocast": True, "logits": "tiled"}
    seq = longest_kept([row.tokens for row in ROWS["train"]])
    setup = Setup(**fields, batch=1, seq=seq, labels=100, accumulated=True)
    peak = Configuration(shape, setup).step.peak().total
    return peak + GPU_RESERVE[1].beside(peak) <= memory


def test_rows_beyond_the_context_are_refused():
    shape = read_shape("llama-2-7b")
    long = {name: [RowTokens(shape.context, 10)] for name in ROWS}
    with pytest.raises(InputError, match="No training row has at most the 4,096 tokens"):
        choose(shape, "llama-2-7b", long, 80 * GIB)


def test_another_models_tokenizer_is_given_a_quarter_more():
    shape, lengths = read_shape("llama-3.1-8b"), {name: [RowTokens(900, 100)] * 300 for name in ROWS}
    own, other = (choose(shape, "llama-3.1-8b", lengths, 24 * GIB, own) for own in (True, False))
    assert own.max_length >= 1000 and other.max_length >= 1250


@pytest.mark.model
@pytest.mark.parametrize("name", ["docstrings", "sql", "spam", "tickets"])
def test_without_a_tokenizer_rows_are_guessed_a_little_too_long(name):
    """With the quarter that is added no row is longer than guessed, and few are less than half as long."""
    tokenizer, task = load_tokenizer(str(prepare_embedded())), get_task(name)
    rows = [(guess_row(task, one), row_of(tokenizer, task, one)) for one in task.splits["test"][:100]]
    assert all(counted.tokens <= SPARE * guessed.tokens <= 2.2 * counted.tokens for guessed, counted in rows)


def test_more_memory_never_asks_for_more_rounding():
    shape, order = read_shape("llama-3.1-8b"), [method for method, _ in PLANS]
    recipes = [choose(shape, "llama-3.1-8b", ROWS, memory * GIB) for memory in (12, 16, 24, 40, 80)]
    ranks = [order.index(recipe.method) for recipe in recipes]
    assert ranks == sorted(ranks, reverse=True) and len({*ranks}) > 1


def test_the_length_holds_nearly_all_rows_and_no_outlier_makes_it():
    ordinary = [100 + n % 50 for n in range(1000)]
    assert longest_kept([300]) == 320
    assert longest_kept(ordinary) == STEP * -(-max(ordinary) // STEP)
    assert longest_kept([*ordinary, 4000]) == longest_kept(ordinary)
    lengths = list(range(1, 1001))
    assert sum(n <= longest_kept(lengths) for n in lengths) >= KEPT * len(lengths)


def test_the_rate_is_the_records_at_its_own_width_and_falls_by_the_fitted_power():
    own = read_shape("smollm2-135m")
    assert rate_for(own)[0] == float(f"{learning_rate_for('lora'):.1e}")
    for name, family in (("llama-3.1-8b", "llama"), ("qwen2.5-7b", "qwen"), ("gemma-7b", "llama")):
        shape = read_shape(name)
        power = float(published(f"schulman2025-rate-exponent-{family}").value)
        rate, reason = rate_for(shape)
        assert rate * shape.hidden**power == pytest.approx(learning_rate_for("lora") * own.hidden**power, rel=0.05)
        assert ("none is fitted for gemma" in reason) == (name == "gemma-7b")


# --- the folder -----------------------------------------------------------------------------------------------


def written(shape: DecoderShape, setup: Setup, folder, task):
    """A recipe's folder for a random model of a shape, as a set-up has it; and its train.py as a module."""
    from transformers import AutoTokenizer

    base = folder / "base"
    random_model.random_model(shape, replace(setup, quantised=""), 0).save_pretrained(base)
    AutoTokenizer.from_pretrained(DATA / "small_llama").save_pretrained(base)
    model = specs.Model(name=str(base), revision="")
    recipe = choose(shape, str(base), count_rows(task, model).splits, 24 * GIB)
    recipe = replace(recipe, setup=replace(recipe.setup, quantised=setup.quantised), micro_batch=2, accumulation=1)
    write_folder(folder / "out", recipe, task, model, str(base), "tickets.csv", "peftbook recipe …")
    return recipe, module_of(folder / "out" / "train.py")


def module_of(path):
    spec = importlib.util.spec_from_file_location("train", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "quantised"), [*((name, "") for name in SHRUNK), ("llama", "nf4")])
def test_the_script_trains_every_family_in_the_bytes_that_were_predicted(
    family, quantised, task, tmp_path, monkeypatch
):
    """The second step of the written train.py: torch's allocator against the recipe's set-up on the same tokens.

    TRL's kernels, and products of bfloat16 that are summed in float32, which a CPU does not have, are taken to need
    nothing beside the tile that they are given; without them it scores every position, not those with a label alone.
    """
    pytest.importorskip("trl")
    from trl.kernels import chunked_logprob

    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
        monkeypatch.setattr(chunked_logprob, name, lambda *given, **more: None)
    monkeypatch.setattr(losses, "TILE_COPIES", 0.0)
    same = replace(task, splits={name: (rows[0],) * 6 for name, rows in task.splits.items()})
    recipe, train = written(SHRUNK[family], Setup(quantised=quantised), tmp_path, same)
    trainer = train.trainer_of(
        train.load_model(), train.load_tokenizer(), train.parser().parse_args(["--max-steps", "2"])
    )
    (watch, traces), seen = watched_steps(), []
    collate = trainer.data_collator
    monkeypatch.setattr(trainer, "data_collator", lambda rows: seen.append(collate(rows)) or seen[-1])
    trainer.add_callback(watch)
    trainer.train()
    labels = seen[0]["labels"]
    for cached in (structure, walked):
        cached.cache_clear()
    setup = replace(
        recipe.setup, batch=2, seq=labels.shape[1], labels=0, padding=False,
        accumulated=False, device="cpu",
    )  # fmt: skip
    step = Configuration(SHRUNK[family], setup).step
    predicted = step.peak().total - sum(step.numbers(step.state).values())
    for cached in (structure, walked):
        cached.cache_clear()
    assert probes.peak_of(traces[1]) / predicted == pytest.approx(1, abs=0.05)
    assert all(weight.dtype.itemsize == 4 for weight in trainer.model.parameters() if weight.requires_grad)
    (answer,) = {train.load_tokenizer().decode(row[row != -100]) for row in labels}
    assert answer.strip() == f"{same.splits['train'][0].target}{train.load_tokenizer().eos_token}"


def test_rows_reach_the_trainer_as_they_were(tmp_path):
    """Dates stay texts, a separator of lines that is none in JSON divides nothing, and groups go along."""
    pytest.importorskip("trl")
    targets = ["2024-05-01", "2024-05-01T10:00:00", "one\u2028two", "17", "null", "true", '{"a": 1}', "$left"]
    rows = "".join(
        f"{json.dumps({'q': f'{n} {text}', 'a': text, 'who': f'w{n // 4}'})}\n" for n, text in enumerate(targets * 8)
    )
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    _, table = read_file(tmp_path / "rows.jsonl")
    odd = task_from_table(table, Columns("q", "a", group="who"), instruction="Say $what: {input}")
    _, train = written(SHRUNK["llama"], Setup(), tmp_path, odd)
    for split, examples in odd.splits.items():
        found = train.read_rows(split)
        assert [row["completion"][0]["content"] for row in found] == [one.target for one in examples]
        assert [row["group"] for row in found] == [one.group for one in examples]
        kept = train.rows_of(split, train.load_tokenizer())
        assert [row["completion"] for row in kept] == [row["completion"] for row in found]
    assert "Say $what" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_every_answer_of_a_chat_has_a_loss_and_nothing_else(tmp_path):
    """By TRL's masks where the template has marks, by rendering turn by turn where it has none: the same labels."""
    pytest.importorskip("trl")
    said = ("system", "Be brief."), ("user", "1?"), ("assistant", "two"), ("user", "3?")
    rows = tuple(TaskExample(f"{n}", f"{n}", f"four {n}", turns=said) for n in range(4))
    chats = TaskData("own", 1, "{input}", dict.fromkeys(("train", "validation", "test"), rows), (), "")
    recipe, train = written(SHRUNK["llama"], Setup(), tmp_path, chats)
    tokenizer = train.load_tokenizer()
    assert recipe.every_answer and "{% generation" not in tokenizer.chat_template
    marked = train.load_tokenizer()
    marked.chat_template = MARKED
    asked, found = train.parser().parse_args([]), []
    for each in (tokenizer, marked):
        row = train.trainer_of(train.load_model(), each, asked).train_dataset[0]
        found.append((row["input_ids"], row["labels"]))
    assert found[0] == found[1]
    graded = [token for token in found[0][1] if token != -100]
    assert tokenizer.decode(graded) == "two<|im_end|>\nfour 0<|im_end|>\n"
    tokenizer.chat_template = MARKED.replace("{% generation %}", "{% if loop.last %}>{% endif %}").replace(
        "{% endgeneration %}", ""
    )
    with pytest.raises(SystemExit, match="has no generation marks, TRL has none for it"):
        train.rows_of("train", tokenizer)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_the_folder_trains_answers_and_says_which_is_better(tmp_path, capfd, monkeypatch):
    """The small Llama on the shipped tickets, by the two scripts as a reader starts them; the card has the table.

    The first has the requirements alone, and imports nothing else; the second has peftbook too.
    """
    pytest.importorskip("trl")
    out = tmp_path / "mine"
    asked = ["recipe", str(TICKETS), "--model", specs.SMALL_MODEL, "--memory", "4GiB", "--out", str(out)]
    assert main([*asked, "--instruction", "Which team? {input}"]) == 0
    assert "Ruled out:" in capfd.readouterr().out
    assert not re.search(r"^\s*(import|from) peftbook", (out / "train.py").read_text(encoding="utf-8"), re.MULTILINE)
    monkeypatch.syspath_prepend(out)  # what Python does for a script
    try:
        for name, *words in (("train.py", "--max-steps", "20"), ("evaluate.py", "--rows", "24", "--examples", "2")):
            monkeypatch.setattr(sys, "argv", [name, *words])
            runpy.run_path(str(out / name), run_name="__main__")
    finally:
        train = sys.modules.pop("train")
    table = (out / "adapter" / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
    assert "24 test rows" in table and "| rougeL | untuned |" in table and "| exact_match | with 2 examples |" in table
    texts = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (out / "answers").iterdir()}
    assert {*texts} == {"tuned", "untuned", "examples"}
    tests = (out / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    targets = [json.loads(line)["completion"][0]["content"] for line in tests]
    assert all([json.loads(line)["target"] for line in lines] == targets for lines in texts.values())
    right = {name: sum(json.loads(line)["exact_match"] for line in lines) for name, lines in texts.items()}
    assert right["tuned"] > right["untuned"]
    with pytest.raises(SystemExit, match="exists: name a new one"):
        train.main(["--out", str(out / "adapter")])
    with pytest.raises(SystemExit, match="has no checkpoint"):
        train.main(["--out", str(tmp_path / "b"), "--resume"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for major, dtype in ((7, torch.float16), (8, torch.bfloat16)):  # a T4, an A100
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, major=major: SimpleNamespace(major=major))
        assert train.compute_dtype() is dtype


def test_the_folder_is_whole_and_nothing_is_overwritten(task, tmp_path, capsys):
    """Scripts as they ship, every placeholder filled, every row once; a folder that is there stays as it is."""
    model = specs.Model()
    recipe = choose(read_shape("smollm2-135m"), model.name, ROWS, 8 * GIB)
    out = tmp_path / "a" / "recipe"
    write_folder(out, recipe, task, model, "somewhere", "tickets.csv", "peftbook recipe tickets.csv", "CC BY 4.0")
    assert {path.name for path in out.iterdir()} == {*SCRIPTS, *PAGES, "recipe.json", "requirements.txt", "data"}
    assert not any("$" in (out / page).read_text(encoding="utf-8") for page in PAGES)
    assert "CC BY 4.0" in (out / "README.md").read_text(encoding="utf-8")
    lines = {name: (out / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in task.splits}
    assert {name: len(rows) for name, rows in lines.items()} == {name: len(rows) for name, rows in task.splits.items()}
    before = (out / "recipe.json").read_bytes()
    again = ["recipe", str(TICKETS), "--model", model.name, "--memory", "8GiB", "--out", str(out)]
    assert main(again) == 2
    assert "exists: name a new one" in capsys.readouterr().err
    assert (out / "recipe.json").read_bytes() == before and [*tmp_path.iterdir()] == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "much"], "'much' is no size of memory"),
        (["--model", "llama-3.1-9b"], "neither a folder nor a hub id"),
        (["--memory", "4GiB", "--model", "llama-3.1-8b"], "meta-llama/Llama-3.1-8B-Instruct does not surely fit in 4"),
        (["--memory", "4GiB", "--model", "meta-llama/Llama-3.1-8B-Instruct"], "does not surely fit in 4 GiB"),
        (["--input", "nothing", "--target", "team"], "no column 'nothing'"),
    ],
)
def test_bad_input_is_a_sentence_and_writes_nothing(words, said, tmp_path, capsys):
    asked = [
        "recipe",
        str(TICKETS),
        "--model",
        specs.EMBEDDED_MODEL,
        "--memory",
        "8GiB",
        "--out",
        str(tmp_path / "new"),
    ]
    assert main([*asked, *words]) == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
