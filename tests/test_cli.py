"""The command line: bad input is one sentence with the fix, exit status 2, and nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import subprocess
import sys

import pytest

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, default_store
from peftbook.core.specs import Model, Run
from peftbook.memory import read_shape, training_step
from peftbook.memory.fit import GPU_RESERVE
from peftbook.memory.question import option
from peftbook.memory.setup import CHOICES
from peftbook.memory.stacks import STACKS, setup_in
from peftbook.studies import NAMES

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100}
CONFIG = {"model_type": "llama", "num_attention_heads": 4, **SIZES}


def refused(capsys, *argv: str) -> str:
    """Run a command that must be refused; returns the sentence."""
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("peftbook: ") and err.count("\n") == 1, err
    assert "Traceback" not in err + out
    return err


@pytest.fixture
def pairs(tmp_path):
    """A file of twenty good rows."""
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer\n" + "".join(f"What is {n} plus one?,{n + 1}\n" for n in range(20)))
    return path


def train(pairs, tmp_path, *more: str) -> list[str]:
    words = f"train {pairs} --input question --target answer --out {tmp_path / 'out'} --home {tmp_path / 'home'}"
    return [*words.split(), *more]


def compare(pairs, tmp_path) -> list[str]:
    """The same file for `compare`."""
    return ["compare", *train(pairs, tmp_path)[1:6], "--home", str(tmp_path / "home")]


def fit_command(words: str) -> list[str]:
    """`peftbook fit` of a Llama of 8B in 24 GiB, unless the words say another."""
    return f"fit --model llama-3.1-8b --memory 24GiB {words}".split()


def fit(capsys, words: str) -> dict:
    """What it prints as JSON; its status says whether it fits."""
    status = cli.main(fit_command(f"--json {words}"))
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["fits"] else 1)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [("run nonsense", "methods"), ("run", "--all"), ("run --key zzzz", "peftbook status -v")],
)
def test_run_without_a_known_study_or_key_says_what_there_is(capsys, words, said):
    assert said in refused(capsys, *words.split())


READINGS = {
    "comma": (",", "utf-8"), "semicolon": (";", "utf-8"), "tab": ("\t", "utf-8"), "UTF-16": (";", "utf-16"),
    "Excel on Windows": (";", "cp1252"), "mark": (",", "utf-8-sig"),
}  # fmt: skip


@pytest.mark.parametrize(("delimiter", "encoding"), READINGS.values(), ids=READINGS)
def test_train_reads_what_compare_reads(delimiter, encoding, tmp_path, monkeypatch, capsys):
    """However the program that wrote it spells a table, it is the same examples, and nothing is guessed by its name."""
    from peftbook.studio import own_file

    given = []

    def stop(task, runs, *_):
        assert {run.model for run in runs} == {Model()}  # which a reader gets who names none
        given.append(task)
        raise InputError("far enough")

    monkeypatch.setattr(own_file, "worker_ahead", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(own_file, "refuse_misfits", stop)
    rows = [("question", "answer"), *((f"Größe {n}?", f"{n}, oder {n + 1}; né") for n in range(20))]
    for name, sign, code in (("plain.csv", ",", "utf-8"), ("other.txt", delimiter, encoding)):
        stream = io.StringIO()
        csv.writer(stream, delimiter=sign).writerows(rows)
        (tmp_path / name).write_bytes(stream.getvalue().encode(code))
        for words in (train(tmp_path / name, tmp_path), compare(tmp_path / name, tmp_path)):
            assert cli.main(words) == 2
            assert f"{name}: 20 rows (train 16, validation 2, test 2)." in capsys.readouterr().err
    assert given[0].splits == given[1].splits == given[2].splits == given[3].splits
    assert given[0] == given[1] and given[2] == given[3]


def test_missing_file_is_named(capsys, tmp_path):
    assert "nowhere.csv" in refused(capsys, *train(tmp_path / "nowhere.csv", tmp_path))


def test_missing_model_folder_is_named_and_nothing_is_left(capsys, pairs, tmp_path):
    said = refused(capsys, *train(pairs, tmp_path, "--model", str(tmp_path / "no-model")))
    assert "no-model" in said
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.csv"}


def test_an_interrupted_demo_goes_on_and_a_finished_one_leaves_nothing(tmp_path, monkeypatch):
    """Its runs are kept until it has ended."""
    from peftbook.studio import compare as module

    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path))
    statuses, homes = [130, 0], []

    def once(args) -> int:
        homes.append(args.home)
        args.home.mkdir(exist_ok=True)
        return statuses.pop(0)

    monkeypatch.setattr(module, "compare_file", once)
    assert cli.main(["demo"]) == 130 and homes[0].is_dir()
    assert cli.main(["demo"]) == 0 and homes[0] == homes[1] and not homes[0].exists()


def test_existing_output_folder_is_never_overwritten(capsys, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    assert "exists" in refused(capsys, *train(pairs, tmp_path))


UNWRITABLE = {
    "train": "train {rows} --input question --target answer --out {at}/out",
    "train home": "train {rows} --input question --target answer --out {free} --home {at}/home",
    "report": "compare {rows} --input question --target answer --report {at}/r.html",
    "gguf": "export --model small-llama --gguf {at}/m.gguf",
    "recipe": "recipe {rows} --model small-llama --memory 4GiB --input question --target answer --out {at}/r",
    "run": "run --all --export {at}/x.zip",
}  # fmt: skip


@pytest.mark.parametrize("name", UNWRITABLE)
@pytest.mark.parametrize("at", ["/proc", "{file}"])
def test_an_unwritable_place_is_found_before_anything_is_computed(capsys, pairs, tmp_path, name, at):
    """/proc, where even root can make nothing, and below a file; nothing is left behind."""
    place = at.format(file=pairs)
    words = UNWRITABLE[name].format(rows=pairs, at=place, free=tmp_path / "out")
    said = refused(capsys, *words.split())
    assert "cannot be written" in said and place in said
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.csv"}


def test_corrupted_record_is_named_with_the_fix(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path))
    (tmp_path / "0123456789ab.json").write_text("{")
    said = refused(capsys, "status")
    assert "0123456789ab.json" in said and "peftbook run" in said


def test_edited_record_is_stale(capsys, tmp_path, monkeypatch):
    """A record whose spec was changed by hand no longer matches its key."""
    record = next(iter(default_store().all()))
    body = record.model_dump(mode="json")
    body["spec"]["seed"] += 1
    other = "1" if record.key[11] == "0" else "0"  # no name of a shipped record
    (tmp_path / f"{record.key[:11]}{other}.json").write_text(json.dumps(body))
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path))
    assert "stale" in refused(capsys, "status")


def test_a_record_of_no_study_is_counted_and_listed_when_asked_for(capsys, tmp_path, monkeypatch):
    used = next(one for one in default_store().all() if isinstance(one.spec, Run))
    run = used.spec.model_copy(update={"seed": 90210})
    mine = Store(tmp_path).save(Record(key=run.key, spec=run))
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path))
    assert cli.main(["status"]) == 0
    assert "belong to no study any more; --verbose lists" in (short := capsys.readouterr().out)
    assert mine.key[:12] not in short
    assert cli.main(["status", "--verbose"]) == 0
    assert re.search(rf"stale +{mine.key[:12]} .*seed 90210", capsys.readouterr().out)


def test_status_and_claims_read_the_shipped_records(capsys):
    assert cli.main(["status"]) == 0
    assert ", 0 of them diverged" not in capsys.readouterr().out
    assert cli.main(["claims", "--json"]) == 0
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("[\n") :])
    said = {row["study"]: (row["own"], bool(row["regime"])) for row in rows}
    assert said["methods"] == (False, False) and said["bases_hqq"] == (False, True) and said["costs"] == (True, False)
    assert cli.main(["claims"]) == 0
    assert capsys.readouterr().out.count("\n") == len(NAMES) + 6
    assert cli.main(["claims", "rank", "dora"]) == 0
    assert capsys.readouterr().out.count("\n  Refuted if: ") == 2
    assert cli.main(["claims", "rnak"]) == 2


def test_a_reader_that_leaves_early_gets_no_traceback():
    """`peftbook claims | head -1` must not end in a broken pipe's traceback."""
    command = [sys.executable, "-m", "peftbook.cli", "status"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, "")


def test_fit_says_what_a_step_needs_and_what_would_help(capsys, tmp_path):
    """Status 1 where it does not fit, 0 where it does; a config.json is as good as a name; --json computes again."""
    assert cli.main(["fit", "--model", "llama-2-7b", "--method", "full", "--memory", "24GiB"]) == 1
    assert "It does not fit: tensors take" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    said = fit(capsys, f"--model {tmp_path} --memory 2GiB")
    assert said["fits"] and said["peak_bytes"] == round(sum(said["terms_bytes"].values()))


def test_fit_says_what_a_stack_assumes(capsys):
    """Each assumption is printed as the option that says it; with all of them said the answer is the same."""

    def said(*given: str) -> str:
        assert cli.main(["fit", "--model", "llama-3.1-8b", "--method", "qlora", "--memory", "24GiB", *given]) in (0, 1)
        return capsys.readouterr().out

    for stack in STACKS:
        text = said("--stack", stack)
        options = [line.split("  ")[1].split() for line in text.splitlines() if line.startswith("  --")]
        found = said("--stack", stack, *(word for words in options for word in words))
        if stack != "peftbook":  # its copies of frozen matrices have no option
            assert found.partition("With all else")[0] == text.partition("With all else")[0], stack
    assert said() == said("--stack", "trl")


def test_fit_takes_names_in_capitals_as_in_small_letters(capsys):
    """Every paper writes QLoRA."""
    assert fit(capsys, "--method QLoRA") == fit(capsys, "--method qlora") != fit(capsys, "--method lora")
    assert fit(capsys, "--stack TRL") == fit(capsys, "--stack trl")
    assert fit(capsys, "--saved lm_head,lm_head") == fit(capsys, "--saved lm_head")
    named = fit(capsys, "--model unsloth/Meta-Llama-3.1-8B-bnb-4bit")
    assert named["terms_bytes"] == fit(capsys, "--quant nf4")["terms_bytes"]


@pytest.mark.parametrize("stack", STACKS)
def test_advice_is_what_its_options_say(capsys, stack):
    """A change brings with it what the library does then: its option gives the very same bytes."""
    for method in ("lora", "full"):
        asked = f"--stack {stack} --memory 18GiB --seq 600 --method {method}"
        for change in fit(capsys, asked)["changes"]:
            given = asked
            for field, value in change["settings"].items():
                words = ",".join(value) if isinstance(value, list) else value
                given += " " + option(field, tuple(value) if field == "targets" else words)
            assert fit(capsys, given)["needed_bytes"] == change["needed_bytes"], (method, change["change"])


def test_fit_says_which_options_do_nothing(capsys):
    """They are taken, and named."""
    for method, words in (
        ("lora", "--length 30"),
        ("prompt", "--rank 4"),
        ("full", "--rank 4"),
        ("lora", "--single-quant"),
    ):
        cli.main(["fit", "--model", "llama-3.1-8b", "--method", method, "--memory", "80GiB", *words.split()])
        assert f"Without effect here: {words}." in capsys.readouterr().out
    cli.main(["fit", "--model", "llama-3.1-8b", "--memory", "80GiB", "--rank", "4"])
    assert "Without effect" not in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 12])
def test_the_largest_batch_does_not_depend_on_the_one_that_is_asked_for(capsys, batch):
    """One row has no padding, and more have."""
    found = fit(capsys, f"--stack trl --method qlora --memory 26GiB --batch {batch}")
    one, more = (
        training_step(
            read_shape("llama-3.1-8b"), setup_in("trl", quantised="nf4", batch=found["largest_batch"] + extra)[0]
        )
        for extra in (0, 1)
    )
    room = GPU_RESERVE[1].room(26 * 2**30)
    assert one.peak().total <= room < more.peak().total


def test_fit_answers_where_a_gpu_has_no_fused_attention(capsys):
    """Trainer's QLoRA of one row is in float32, over grouped heads and without a mask: torch's own kernel stands in."""
    words = fit_command("--stack trainer --method qlora --batch 1")
    assert cli.main(words) == 0
    assert "--attention eager" in capsys.readouterr().out
    assert "no fused attention" in refused(capsys, *words, "--attention", "sdpa")


def test_fits_help_names_every_stack_and_every_way_to_compute_the_loss(capsys):
    """They are written out there, so that help needs no byte model."""
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    said = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {*STACKS, *CHOICES["logits"]} <= said


def test_fit_understands_the_names_of_other_tools(capsys, tmp_path):
    """An id of the hub, transformers' optimisers and attention, peft's targets, sizes as others write them."""
    ours = fit(capsys, "--batch 1 --seq 512 --method qlora --labels 128")
    theirs = fit(
        capsys,
        "--batch 1 --seq 512 --method qlora --labels 25% --model meta-llama/Llama-3.1-8B-Instruct --memory 24Gi"
        " --targets all-linear --optimiser adamw_torch_fused --attention flash_attention_2",
    )
    assert ours | {"assumed": {}} == theirs | {"assumed": {}}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": four}))
    small = f"--model {tmp_path} --seq 512 --memory 1GiB --reserve"
    own = fit(capsys, f"{small} 0GiB")
    assert own == fit(capsys, f"{small} 0 --quant nf4 --single-quant")
    qlora = fit(capsys, f"{small} 0 --method qlora")
    assert qlora["peak_bytes"] == own["peak_bytes"]  # its own constants, not those that qlora has elsewhere
    assert own["peak_bytes"] != fit(capsys, f"{small} 0 --memory 2GiB --quant none")["peak_bytes"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (("--reserve", "9000GiB"), "reserve"),
        (("--attention", "flash"), "flash_attention_2"),
        (("--labels", "9000"), "up to 8,192"),
        (("--method", "full", "--dtype", "fp16"), "choose --dtype fp32 --autocast"),
        (("--model", "openai/gpt-oss-20b"), "gpt-oss is not covered"),
        (("--labels", "some"), "a share like 30%"),
        (("--labels", "0%"), "0 for all"),
        (("--stack", "tlr"), "nearest name is 'trl'"),
        (("--method", "qlora", "--quant", "none"), "leave --quant none out"),
        (("--model", "someone/a..b"), "someone/a..b"),
    ],
)
def test_fit_refuses_what_it_cannot_compute(capsys, wrong, word):
    given = {"--model": "llama-2-7b", "--memory": "24GiB"}
    rest = [one for pair in given.items() if pair[0] not in wrong for one in pair]
    assert word in refused(capsys, "fit", *rest, *wrong)
