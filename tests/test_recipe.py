"""The recipe: its choices by the byte model's own laws, and its scripts run for real, in the TRL that is pinned."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from peft import AutoPeftModelForCausalLM
from tiny import watched_steps
from transformers import AutoTokenizer

from peftbook.cli import main
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.decision.own_metrics import parse_metric
from peftbook.decision.recipe.choice import (
    KEPT,
    PLANS,
    SPARE,
    STEP,
    RowTokens,
    choose,
    fields_of,
    longest_kept,
)
from peftbook.decision.recipe.folder import COMMENTS, PAGES, SCRIPTS, commented, requirements, settings_of, write_folder
from peftbook.decision.recipe.rows import count_rows, guess_row, row_of
from peftbook.decision.recipe.stages import BATCH, STAGES, SWEPT, choose_stage, rate_for
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


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("memory", [16, 24, 80])
def test_a_stage_is_advised_in_the_bytes_of_its_own_step(stage, memory):
    """What is advised surely fits; pairs take more than plain rows, answers that the model writes no less."""
    shape = read_shape("llama-3.1-8b")
    recipe = choose(shape, "llama-3.1-8b", ROWS, memory * GIB, stage=stage)
    assert recipe.setup.stage == stage.name and recipe.band[1] <= memory * GIB
    assert recipe.micro_batch * recipe.accumulation == stage.rows
    plain = replace(
        recipe.setup, stage="sft", completion=0, rollouts=0, reference=False, padding=recipe.micro_batch > 1
    )
    more = recipe.peak / Configuration(shape, plain).step.peak().total
    assert more > 1 if stage.name == "dpo" else more >= 1


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


def test_a_rate_stands_beside_those_that_others_take():
    """Ours, the authors' table, the common default; of stages that we have not tuned TRL's, and it is said."""
    shape = read_shape("llama-3.1-8b")
    swept, usual = published("tinkercookbook2026-llama-8b"), published("trl-sft-lora-rate")
    _, reason = rate_for(shape, "meta-llama/Llama-3.1-8B-Instruct")
    assert SWEPT["Llama-3.1-8B-Instruct"] == float(swept.value)
    assert f"table has {float(swept.value):g} for this model" in reason and f"default is {usual}" in reason
    for stage in ("dpo", "grpo"):
        rate, reason = rate_for(shape, stage=stage)
        assert rate == float(published(f"trl-{stage}-lora-rate").value) and "None is ours" in reason


# --- stages ---------------------------------------------------------------------------------------------------


def pairs_of(task: TaskData) -> TaskData:
    """The task's rows as preference pairs."""
    given = task.splits.items()
    return replace(
        task, splits={name: tuple(replace(row, rejected="Who knows?") for row in rows) for name, rows in given}
    )


def test_pairs_are_for_dpo_and_a_reward_for_grpo(task):
    """Said where nobody asked; a stage that rows or metrics cannot feed is refused, and so is a wrong metric."""
    pairs, right = pairs_of(task), parse_metric("team=regex:[a-z]+")
    stage, rows, said = choose_stage("", pairs, ())
    assert (stage.name, rows) == ("dpo", pairs) and "preference pairs" in said
    assert choose_stage("", task, ()) == (STAGES["sft"], task, "")
    assert choose_stage("sft", pairs, ()) == (STAGES["sft"], task, "")
    same = {**pairs.splits, "test": tuple(replace(row, rejected=row.target) for row in pairs.splits["test"])}
    for rows in (task, replace(pairs, splits=same)):
        with pytest.raises(InputError, match="needs preference pairs"):
            choose_stage("dpo", rows, ())
    with pytest.raises(InputError, match="needs a reward"):
        choose_stage("grpo", task, ())
    with pytest.raises(InputError, match="itself no right answer"):
        choose_stage("grpo", task, (right, parse_metric("none=number:")))
    assert choose_stage("grpo", task, (right,))[0].name == "grpo"


def test_a_step_of_grpo_has_whole_groups_of_answers():
    """As long as they may become; a step of all cards divides into them."""
    recipe = choose(read_shape("llama-3.1-8b"), "8B", ROWS, 24 * GIB, stage=STAGES["grpo"])
    settings = settings_of(recipe, "8B", "", ())
    assert recipe.micro_batch * recipe.accumulation == STAGES["grpo"].rows == BATCH * settings["generations"]
    assert recipe.max_length >= max(row.before for row in ROWS["train"]) + recipe.max_new_tokens


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
    """A script of a folder, which imports its neighbour as it does when Python starts it."""
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        common = sys.modules.pop("common", None)
    module.common = common
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
        train.common.load_model(),
        train.common.load_tokenizer(),
        train.common.parser("").parse_args(["--max-steps", "2"]),
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
    (answer,) = {train.common.load_tokenizer().decode(row[row != -100]) for row in labels}
    assert answer.strip() == f"{same.splits['train'][0].target}{train.common.load_tokenizer().eos_token}"


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
        kept = train.rows_of(split, train.common.load_tokenizer())
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
    tokenizer = train.common.load_tokenizer()
    assert recipe.every_answer and "{% generation" not in tokenizer.chat_template
    marked = train.common.load_tokenizer()
    marked.chat_template = MARKED
    asked, found = train.common.parser("").parse_args([]), []
    for each in (tokenizer, marked):
        row = train.trainer_of(train.common.load_model(), each, asked).train_dataset[0]
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
def test_tune_goes_on_after_a_kill_and_ends_with_the_decision(tmp_path, capfd, monkeypatch):
    """The narrowest Llama on the shipped tickets, by one command; the model card has the table, the adapter answers.

    train.py has the requirements alone, and imports nothing else.
    """
    pytest.importorskip("trl")
    out = tmp_path / "mine"
    asked = ["recipe", str(TICKETS), "--model", f"{specs.SMALL_MODEL}-64", "--memory", "4GiB", "--out", str(out)]
    assert main([*asked, "--instruction", "Which team? {input}"]) == 0
    assert "Ruled out:" in capfd.readouterr().out
    for name in ("train.py", "common.py"):
        assert not re.search(r"^\s*(import|from) peftbook", (out / name).read_text(encoding="utf-8"), re.MULTILINE)
    edit(out, epochs=1.0, checkpoints=5)
    checkpoints = out / "adapter-checkpoints"
    with subprocess.Popen([sys.executable, "train.py"], cwd=out) as stopped:
        while stopped.poll() is None and not (checkpoints / "checkpoint-6" / "trainer_state.json").is_file():
            time.sleep(0.05)
        time.sleep(0.1)
        stopped.send_signal(signal.SIGKILL)
    assert not (out / "adapter").exists()
    before = json.loads((checkpoints / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
    assert main(["tune", str(out / "recipe.yaml")]) == 0
    said = capfd.readouterr()
    told, _, decision = said.out.partition("Decision by rougeL:\n\n- tuned against untuned: ")
    assert "of 30 answers are the untuned model's" in told and "- tuned against untuned + 5 examples: " in decision
    assert said.out.splitlines()[-1].startswith(f"The adapter and its model card: {out / 'adapter' / 'README.md'}")
    history = json.loads((checkpoints / "checkpoint-30" / "trainer_state.json").read_text())["log_history"]
    assert before and history[: len(before)] == before  # with the seconds that it took
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert [*losses] == [6, 12, 18, 24, 30] and losses[30] < losses[6]
    table = (out / "adapter" / "README.md").read_text(encoding="utf-8").partition("## Results")[2]
    assert all(words in table for words in ("30 test rows", "| rougeL | untuned |", "| untuned + 5 examples |"))
    texts = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (out / "answers").iterdir()}
    tests = (out / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    targets = [json.loads(line)["completion"][0]["content"] for line in tests]
    assert all([json.loads(line)["target"] for line in lines] == targets for lines in texts.values())
    assert main(["chat", str(out / "adapter"), "--message", "Hello", "--max-new-tokens", "4"]) == 0
    monkeypatch.setattr(subprocess, "run", None)  # all is done: nothing is started again
    assert main(["tune", str(out)]) == 0 and "Decision by rougeL" in capfd.readouterr().out


def edit(folder, **settings) -> None:
    """Change values in a recipe.yaml by hand."""
    path = folder / "recipe.yaml"
    text = path.read_text(encoding="utf-8")
    for name, value in settings.items():
        text, count = re.subn(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
        assert count == 1
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_a_stage_trains_resumes_and_answers(stage, task, tmp_path, capsys):
    """Twenty steps of the narrowest Llama, stopped at ten: what was learnt is what the stage asks for."""
    pytest.importorskip("trl")
    from transformers import TrainerCallback

    metric = parse_metric("plain=regex:[a-z ]*")
    name = f"{specs.SMALL_MODEL}-64"
    out, data = tmp_path / stage, tmp_path / "rows.jsonl"
    rows = [row for split in pairs_of(task).splits.values() for row in split]
    said = [{"prompt": row.input, "chosen": row.target, "rejected": row.rejected} for row in rows]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in said), encoding="utf-8")
    asked = ["recipe", str(data), "--model", name, "--memory", "4GiB", "--out", str(out), "--metric"]
    asked += [f"{metric.name}=regex:{metric.pattern}", *(["--stage", "grpo"] if stage == "grpo" else [])]
    assert main(asked) == 0 and f"by TRL's {stage.upper()}Trainer" in capsys.readouterr().out
    edit(out, learning_rate="1e-3", max_new_tokens=8, accumulation=1, checkpoints=2)  # a rate that YAML reads as text
    train = module_of(out / "train.py")

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **others):
            if state.global_step == 10:
                raise KeyboardInterrupt

    built = train.trainer_of
    train.trainer_of = lambda *given: (trainer := built(*given)).add_callback(Stop()) or trainer
    with pytest.raises(KeyboardInterrupt):
        train.main(["--max-steps", "20"])
    train.trainer_of = built
    train.main(["--max-steps", "20", "--resume"])
    assert "the adapter is in" in capsys.readouterr().out
    state = json.loads((out / "adapter-checkpoints" / "checkpoint-20" / "trainer_state.json").read_text())
    key = "rewards/accuracies" if stage == "dpo" else "reward"
    assert [entry["step"] for entry in state["log_history"] if key in entry] == [10, 20]
    first, last = (entry[key] for entry in state["log_history"] if key in entry)
    assert last > first
    if stage == "dpo":
        evaluate = module_of(out / "evaluate.py")
        evaluate.main(["--rows", "8", "--examples", "0"])
        card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
        assert "Preference accuracy" in card.partition(f"Decision by {metric.name}:")[0]
    adapter, merged = out / "adapter", tmp_path / "merged"
    assert main(["chat", str(adapter), "--message", "Hello", "--max-new-tokens", "4"]) == 0
    AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="float32").merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(merged)
    assert main(["same", str(adapter), str(merged)]) == 0, capsys.readouterr().out


def test_scripts_refuse_at_once_what_cannot_be_done(task, tmp_path, monkeypatch):
    """A folder that is there, nothing to resume, a reporter that is not, groups and cards that share no step, a gated
    model.
    """
    pytest.importorskip("trl")
    from huggingface_hub.errors import GatedRepoError

    _, train = written(SHRUNK["llama"], Setup(), tmp_path, task)
    common = train.common

    def args(*words: str):
        return common.parser("").parse_args(words)

    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as refusal:
            common.check(args(*words))
        return str(refusal.value)

    assert "exists: name a new one" in refused("--out", str(tmp_path / "base"))
    assert "has no checkpoint" in refused("--resume")
    assert "pip install wandb" in refused("--report-to", "wandb")
    monkeypatch.setattr(common, "PROCESSES", 3)
    assert "accumulation: 1 in recipe.yaml cannot be shared by 3 cards" in refused()
    monkeypatch.setattr(common, "PROCESSES", 2)
    monkeypatch.setitem(common.RECIPE, "accumulation", 8)
    assert common.shared_settings(args())["gradient_accumulation_steps"] == 4
    monkeypatch.setitem(common.RECIPE, "generations", 3)
    assert "generations: 3 in recipe.yaml do not divide the 16 answers" in refused()

    def refuse(*given, **more):
        answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise OSError("You are trying to access a gated repo.") from GatedRepoError("gated", response=answer)

    monkeypatch.setattr(common.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(SystemExit, match=r"\(403\): accept its terms .* `hf auth login`"):
        common.load_tokenizer()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for major, dtype in ((7, torch.float16), (8, torch.bfloat16)):  # a T4, an A100
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, major=major: SimpleNamespace(major=major))
        assert common.compute_dtype() is dtype


def test_tune_refuses_a_folder_that_is_no_recipe(tmp_path, capsys):
    assert main(["tune", str(tmp_path)]) == 2
    assert "has no recipe.yaml: name a folder that `peftbook recipe --out` wrote" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_settings_read_back_as_they_were_and_each_says_what_it_does(stage):
    """A rate of 1e-06 is a number to YAML 1.1 only with a point in it."""
    recipe = choose(read_shape("llama-3.1-8b"), "8B", ROWS, 24 * GIB, stage=STAGES[stage])
    settings = settings_of(replace(recipe, learning_rate=1e-6), "1e5", "0123", (parse_metric("a=regex:[#: ]'\""),))
    text = commented(settings)
    assert yaml.safe_load(text) == settings
    assert all(f"# {COMMENTS[name]}\n{name}:" in text for name in settings)


def test_requirements_hold_beside_those_of_vllm():
    """vLLM 0.33.0 on PyPI: torch==2.14.0, transformers<5.21.0,>=5.16.1; all have an upper bound."""
    recipe = choose(read_shape("llama-3.1-8b"), "8B", ROWS, 16 * GIB)
    found = {one.name: one.specifier for one in map(Requirement, requirements(recipe).splitlines())}
    assert recipe.setup.quantised and "bitsandbytes" in found
    assert all("<" in str(versions) for versions in found.values())
    for name, versions in (("torch", ["2.14.0"]), ("transformers", ["5.16.1", "5.20.0"])):
        assert all(found[name].contains(version) for version in versions)


def test_the_folder_is_whole_and_nothing_is_overwritten(task, tmp_path, capsys):
    """Scripts as they ship, every placeholder filled, every row once; a folder that is there stays as it is."""
    model = specs.Model()
    recipe = choose(read_shape("smollm2-135m"), model.name, ROWS, 8 * GIB)
    out = tmp_path / "a" / "recipe"
    write_folder(out, recipe, task, model, "somewhere", "tickets.csv", "peftbook recipe tickets.csv", "CC BY 4.0")
    assert {path.name for path in out.iterdir()} == {*SCRIPTS, *PAGES, "recipe.yaml", "requirements.txt", "data"}
    assert not any("{{" in (out / page).read_text(encoding="utf-8") for page in PAGES)
    assert "CC BY 4.0" in (out / "README.md").read_text(encoding="utf-8")
    lines = {name: (out / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in task.splits}
    assert {name: len(rows) for name, rows in lines.items()} == {name: len(rows) for name, rows in task.splits.items()}
    before = (out / "recipe.yaml").read_bytes()
    again = ["recipe", str(TICKETS), "--model", model.name, "--memory", "8GiB", "--out", str(out)]
    assert main(again) == 2
    assert "exists: name a new one" in capsys.readouterr().err
    assert (out / "recipe.yaml").read_bytes() == before and [*tmp_path.iterdir()] == [tmp_path / "a"]


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
