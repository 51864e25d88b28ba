"""Logs of other tools: the files in tests/logs, which the tools wrote, have the scores that the tools print of them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.evidence.logs import read_log
from peftbook.evidence.outside import decide

LOGS = Path(__file__).parent / "logs"
PROMPTFOO = json.loads((LOGS / "promptfoo.json").read_text(encoding="utf-8"))
PASSED = {
    one["provider"]: one["metrics"]["testPassCount"] / 24 for one in PROMPTFOO["results"]["prompts"]
}  # by promptfoo's own count


def files(*names: str) -> dict[str, list[Path]]:
    """Each under the name of its file."""
    return {Path(name).stem: [LOGS / name] for name in names}


def means(found) -> dict[str, float]:
    """Model → mean score."""
    return {arm.name: pytest.approx(arm.score.mean, abs=5e-4) for arm in found.arms}


def changed(folder: Path, change) -> Path:
    """promptfoo's output after `change(its results)`."""
    body = json.loads(json.dumps(PROMPTFOO))
    change(body["results"]["results"])
    (path := folder / "changed.json").write_text(json.dumps(body), encoding="utf-8")
    return path


def test_lm_evaluation_harness():
    """The first metric that it names; accuracy as it printed it."""
    found = decide(files("lm_eval_embedded.jsonl", "lm_eval_small.jsonl"))
    assert (found.measure, found.arms[0].score.examples) == ("acc", 40)
    assert means(found) == {"lm_eval_embedded": 0.275, "lm_eval_small": 0.1}


def test_inspect_without_its_packages(tmp_path):
    """Accuracy as the log's own header has it, whether a run has summaries yet or its samples alone."""
    ((_, rows),) = read_log(LOGS / "inspect_popularity.eval").items()
    with zipfile.ZipFile(LOGS / "inspect_popularity.eval") as archive:
        metrics = json.loads(archive.read("header.json"))["results"]["scores"][0]["metrics"]
        kept = {name: archive.read(name) for name in archive.namelist() if name.startswith("samples/")}
    assert sum(row["match"] for row in rows) / len(rows) == metrics["accuracy"]["value"] == 0.8
    with zipfile.ZipFile(tmp_path / "stopped.eval", "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    ((_, alone),) = read_log(tmp_path / "stopped.eval").items()
    assert {row["id"]: row["match"] for row in alone} == {row["id"]: row["match"] for row in rows}
    whole = {"eval": {}, "samples": [json.loads(content) for content in kept.values()]}  # its other format
    (tmp_path / "log.json").write_text(json.dumps(whole), encoding="utf-8")
    assert read_log(tmp_path / "log.json")[""] == alone


def test_inspect_packed_with_zstd():
    """As it packs today; an example's epochs are one row."""
    pytest.importorskip("backports.zstd")
    found = decide(files("inspect_small.eval", "inspect_large.eval"), group="tens")
    assert means(found) == {"inspect_small": 0.4667, "inspect_large": 0.8667} and found.arms[0].score.groups > 8
    ((_, rows),) = read_log(LOGS / "inspect_epochs.eval").items()
    assert len(rows) == 5 and sum(row["match"] for row in rows) / 5 == pytest.approx(0.6)
    assert 0.5 in [row["match"] for row in rows]


def test_promptfoo_compares_the_providers_of_one_file(capsys):
    """Shares that passed as it counts them."""
    found = decide(files("promptfoo.json"), measure="success")
    assert means(found) == PASSED and len(PASSED) == 2
    assert cli.main(["decide", str(LOGS / "promptfoo.json")]) == 0
    assert capsys.readouterr().out.startswith("score (more is better): 24 examples\n  small ")


def test_lighteval_details():
    """The struct of metrics; groups are in the document."""
    found = decide(files("lighteval_small.parquet", "lighteval_large.parquet"), measure="acc_norm")
    columns = {name: pq.read_table(LOGS / f"{name}.parquet")["metric"].to_pylist() for name in means(found)}
    assert {name: sum(row["acc_norm"] for row in rows) / 40 for name, rows in columns.items()} == means(found)


def test_what_a_file_is_is_told_from_its_content(tmp_path):
    """Under any name."""
    for path in (LOGS / name for name in ("inspect_popularity.eval", "lighteval_small.parquet", "promptfoo.json")):
        shutil.copyfile(path, tmp_path / "log")
        assert read_log(tmp_path / "log") == read_log(path)


def test_repeats_are_one_example_and_errors_are_none(tmp_path):
    """Two runs of a test are no two tests; an answer that did not come is not a wrong one."""

    def repeat(results):
        results += [one | {"testIdx": one["testIdx"] + 24, "score": 0, "success": False} for one in results[:10]]

    for rows in read_log(changed(tmp_path, repeat)).values():
        assert len(rows) == 24 and {row["success"] for row in rows} == {0.0, 0.5, 1.0}

    def fail(results):
        results[0]["failureReason"] = 2

    path = changed(tmp_path, fail)
    with pytest.raises(InputError, match="lacks 1 examples that another file has"):
        decide({"one": [path]})
    assert decide({"one": [path]}, common=True).left_out == 1


def test_models_have_names_of_their_own(tmp_path):
    """Two providers of one name are told apart by their number, models of two files by the file."""

    def rename(results):
        for one in results:
            one["provider"]["label"] = "same"

    path = changed(tmp_path, rename)
    assert [*read_log(path)] == ["same #0", "same #1"]
    found = decide({"old": [LOGS / "promptfoo.json"], "new": [path]})
    assert [arm.name for arm in found.arms] == ["old:small", "old:large", "new:same #0", "new:same #1"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((LOGS / "inspect_popularity.eval").read_bytes()[:9000], "is no whole log of Inspect (BadZipFile("),
        ((LOGS / "inspect_unscored.eval").read_bytes(), "has no example with a score by Inspect"),
        (b'{"eval": {}, "samples": [{"id": 1, "scores": {"m": {"value": "B"}}}]}', "m = 'B' for sample 1: take"),
        (b'{"eval": {}, "samples": [3]}', "is no whole log of Inspect (AttributeError("),
        (b'{"evalId": "e", "results": {"results": []}}', "has no example with a score by promptfoo"),
        (b'{"evalId": "e", "results": {"results": [{}]}}', "no whole log of promptfoo (KeyError('promptIdx'))"),
        ((LOGS / "lighteval_small.parquet").read_bytes()[:9000], "is not a readable Parquet file"),
        (b"", "has no example"),
        (b"\xff\xfe\xfd", "is no whole log of a tool that writes JSON lines (UnicodeDecodeError("),
    ],
)  # fmt: skip
def test_a_bad_file_is_a_sentence(content, said, tmp_path, capsys):
    """That names the file."""
    (path := tmp_path / "bad").write_bytes(content)
    assert cli.main(["decide", str(path), str(LOGS / "lm_eval_small.jsonl")]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"peftbook: {path}") and said in found and found.count("\n") == 1
