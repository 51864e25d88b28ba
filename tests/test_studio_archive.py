"""A project as one file: another studio takes in all of it, once, and nothing of a file that is none or was changed."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import studio_api
from studio_api import served

from peftbook import cli
from peftbook.core.errors import Conflict, InputError, TooLarge
from peftbook.core.records import Record
from peftbook.decision.forgetting import prose_probe
from peftbook.studio.archive import load_project, save_project
from peftbook.studio.backup import back_up, files_under, manifest_block, pack
from peftbook.studio.project_metrics import declare, metrics_of
from peftbook.studio.store import Project, Studio
from peftbook.tasks.table import Caps

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")  # of threads that have ended

ME = os.getpid()


@pytest.fixture
def studio(tmp_path) -> Studio:
    """With a project whose two runs are done, and a third that waits."""
    studio = Studio(tmp_path / "here")
    project = studio_api.project_of(studio)
    studio_api.work(studio, ("8", "=1+1 <b>"))
    run = studio.jobs()[1].run
    studio.submit(project.id, [run, run.model_copy(update={"seed": 5})], "More")
    return studio


@pytest.fixture
def saved(studio) -> Path:
    return save_project(studio, studio.projects()[0].id)


@pytest.fixture
def other(tmp_path) -> Studio:
    return Studio(tmp_path / "there")


def taken_in(studio: Studio, saved: Path) -> Project:
    return load_project(studio, saved, Caps())


def seen(studio: Studio, project: str) -> list[str]:
    """What somebody sees of a project by the API."""
    client = served(studio)
    paths = [f"projects/{project}{part}" for part in ("", "/plans", "/findings", "/rows", "/decision", "/comparable")]
    for job in studio.jobs(project):
        paths += [f"jobs/{job.id}/{part}" for part in ("curve", "artefacts", "command")]
        paths += [f"jobs/{job.id}/artefacts/{name}" for name in ("adapter.zip", "outputs.csv")]
    return [client("GET", f"/api/v1/{path}").content.hex() for path in paths]


def test_another_studio_takes_in_all_of_a_project(studio, saved, other):
    """Rows, plans, runs, records, texts, adapters and decision; saved there again, it is the same file but for what
    waited, which is cancelled and can be resumed.
    """
    (project,) = studio.projects()
    (waiting,) = [job for job in studio.jobs() if job.state == "queued"]
    studio.cancel(waiting.id)
    before = seen(studio, project.id)
    assert taken_in(other, saved) == project and seen(other, project.id) == before
    assert other.job(waiting.id).state == "cancelled"
    other.resume(waiting.id)
    studio_api.work(other)
    assert {job.state for job in other.jobs()} == {"done"}
    assert not [path for path in (other.home / "projects").rglob("*") if path.name.startswith(".")]


def test_all_that_lies_in_a_project_travels_and_is_backed_up(studio, other, tmp_path):
    """Metrics of its own and what was forgotten in prose too; not what is made again: downloads and checkpoints."""
    (project,) = studio.projects()
    declare(studio, project.id, [{"name": "sum", "kind": "number"}])
    probe = prose_probe(studio.jobs()[1].run)
    studio.records(project.id).save(Record(key=probe.key, spec=probe, measurements={"loss_nats": 3.0}))
    folder = studio.folder(project.id)
    (folder / "checkpoints" / "x").mkdir(parents=True)
    (folder / "checkpoints" / "x" / "state.bin").write_bytes(b"x")
    lies = {path.relative_to(folder).as_posix() for path in files_under(folder)}
    lies = {name for name in lies if not name.startswith(("downloads/", "checkpoints/"))}
    saved = save_project(studio, project.id)
    back_up(studio.home, tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as archive:
        kept = {name.partition(f"{project.id}/")[2] for name in archive.getnames()} - {""}
    assert members(saved).keys() - {"project.json"} == lies == kept and "metrics.json" in lies
    taken_in(other, saved)
    assert [one.name for one in metrics_of(other, project.id)] == ["sum"] and probe in other.records(project.id)


def test_what_is_taken_in_can_be_saved_again_as_the_same_bytes(studio, other, tmp_path):
    """Over any number of studios."""
    (project,) = studio.projects()
    studio_api.work(studio)
    first = save_project(studio, project.id)
    taken_in(other, first)
    again = save_project(other, project.id)
    assert (
        again.read_bytes() == first.read_bytes() and again.name == first.name == save_project(studio, project.id).name
    )


def test_a_project_is_taken_in_once(studio, saved, other):
    """Twice is one sentence, and changes nothing; after it was deleted it may come again."""
    (project,) = studio.projects()
    for home in (studio, other):
        if home is other:
            taken_in(other, saved)
        before = seen(home, project.id)
        with pytest.raises(Conflict, match="is here already, with the same id: open it, or delete it first"):
            taken_in(home, saved)
        assert seen(home, project.id) == before
    other.delete_project(project.id)
    assert taken_in(other, saved).id == project.id


def test_a_saved_project_holds_nothing_of_the_machine_that_computed(studio, saved):
    """Neither workers nor tokens nor paths of the home."""
    with tarfile.open(saved) as archive:
        names = archive.getnames()
        rows = json.load(archive.extractfile("project.json"))
    assert names[0] == "manifest.json" and not {"worker", "child", "wanted"} & set(rows["jobs"][0])
    assert str(studio.home).encode() not in saved.read_bytes()
    assert not any(name.startswith("/") or ".." in name for name in names)


def test_caps_of_the_studio_that_takes_in_hold(saved, other):
    """A file that was read with larger ones is refused with the option that lets it in."""
    with pytest.raises(TooLarge, match=r"200,000 rows where it was saved, here 100: start .* --max-rows 200000"):
        load_project(other, saved, Caps(rows=100))
    assert other.projects() == []


# --- files that are none ---------------------------------------------------------------------------------------


def members(saved: Path) -> dict[str, bytes]:
    with tarfile.open(saved) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}
    return {name: content for name, content in found.items() if name != "manifest.json"}


def packed(parts: dict[str, bytes], target: Path) -> Path:
    """A file with these members and a manifest that fits."""
    folder = target.with_suffix("")
    for name, content in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    pack({name: folder / name for name in parts}, target)
    return target


Change = Callable[[dict[str, bytes], dict], object]


def first_of(parts: dict[str, bytes], start: str) -> str:
    return next(name for name in sorted(parts) if name.startswith(start))


CHANGES: dict[str, Change] = {
    "metrics that are none": lambda parts, rows: parts.update({"metrics.json": b'["kind=python code=1"]'}),
    "a list that is none": lambda parts, rows: parts.update({"metrics.json": b"[1, 2]"}),
    "another file": lambda parts, rows: parts.update({"notes.txt": b"x"}),
    "a pickle": lambda parts, rows: parts.update({first_of(parts, "adapters/").replace(".json", ".bin"): b"x"}),
    "an adapter of no run": lambda parts, rows: parts.update({"adapters/" + "0" * 12 + "/adapter_config.json": b"{}"}),
    "a record of no run": lambda parts, rows: parts.update({"records/" + "0" * 12 + ".json": b"{}"}),
    "no data": lambda parts, rows: parts.pop("data.bin"),
    "other data": lambda parts, rows: parts.update({"data.bin": parts["data.bin"].replace(b"plus", b"minus")}),
    "no rows": lambda parts, rows: rows.clear(),
    "a record less": lambda parts, rows: parts.pop(first_of(parts, "records/")),
    "a score": lambda parts, rows: parts.update({
        (name := min(one for one in parts if one.endswith(".json") and "records" in one)):
        parts[name].replace(b'"rougeL"', b'"rouge2"')}),
    "a bomb of texts": lambda parts, rows: parts.update({
        next(one for one in parts if one.endswith(".gz")): gzip.compress(b"[" + b'"x",' * 30_000_000 + b'"x"]')}),
    "an id that is a path": lambda parts, rows: rows["projects"][0].update(id="../../outside"),
    "another project's job": lambda parts, rows: rows["plan_jobs"][0].update(job="0" * 16),
    "a state that is none": lambda parts, rows: rows["jobs"][0].update(state="<b>"),
    "a run that is none": lambda parts, rows: rows["jobs"][0].update(run="{}"),
    "a run of another key": lambda parts, rows: rows["jobs"][0].update(key="0" * 64),
    "a table more": lambda parts, rows: rows.update(sessions=[]),
    "a column more": lambda parts, rows: rows["jobs"][0].update({"state, child": 1}),
    "a worker": lambda parts, rows: rows["jobs"][0].update(child=1),
    "a number that is a text": lambda parts, rows: rows["jobs"][0].update(created="now"),
    "a number beyond any": lambda parts, rows: rows["jobs"][0].update(attempt=2**70),
    "a split that is none": lambda parts, rows: rows["projects"][0].update(split="[" * 5000),
    "columns that are none": lambda parts, rows: rows["projects"][0].update(columns='{"input": 1}'),
    "a tuning that is none": lambda parts, rows: rows["plans"][0].update(tuning="{}"),
    "a job twice": lambda parts, rows: rows["jobs"].append(rows["jobs"][0]),
    "a long label": lambda parts, rows: rows["jobs"][0].update(label="x" * 10**6),
    "two projects": lambda parts, rows: rows["projects"].append(rows["projects"][0]),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_together_is_refused_and_leaves_nothing(studio, saved, other, tmp_path, change):
    """Though every hash is right: whoever writes the file writes its hashes too."""
    parts = members(saved)
    rows = json.loads(parts["project.json"])
    CHANGES[change](parts, rows)
    parts["project.json"] = json.dumps(rows).encode()
    before = {path for path in tmp_path.rglob("*") if other.home not in path.parents}
    bad = packed(parts, tmp_path / "here" / "bad.tar")
    with pytest.raises(InputError) as refused:
        taken_in(other, bad)
    words = str(refused.value)
    assert words.endswith(".") and "\n" not in words and len(words) < 400
    assert other.projects() == [] and [*(other.home / "projects").iterdir()] == []
    assert before == {path for path in tmp_path.rglob("*") if other.home not in path.parents} - {
        bad, *bad.with_suffix("").rglob("*"), bad.with_suffix("")}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["link", "hard link", "outside", "absolute", "device", "hole", "twice", "cut", "zip", "flip"]
)
def test_a_tar_file_with_surprises_is_refused(saved, other, tmp_path, kind):
    """Links, holes of a terabyte, names that lead elsewhere, bytes that were changed."""
    bad, content = tmp_path / "bad.tar", bytearray(saved.read_bytes())
    if kind in ("cut", "flip", "zip"):
        content[content.find(b"What is 7")] ^= 1
        bad.write_bytes(content[: len(content) // 2] if kind == "cut" else b"PK" * 9000 if kind == "zip" else content)
    else:
        entry = tarfile.TarInfo({"outside": "../outside", "absolute": "/tmp/outside"}.get(kind, "data.bin"))
        kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        entry.type, entry.linkname = kinds.get(kind, tarfile.REGTYPE), "/etc/passwd"
        if kind == "hole":
            entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(10**12),
                                 "GNU.sparse.map": f"{10**12},0", "GNU.sparse.name": "data.bin"}  # fmt: skip
        digests = {"project.json": "0", entry.name: "0"}
        more = [entry, entry] if kind == "twice" else [entry]
        bad.write_bytes(
            manifest_block(digests) + b"".join(one.tobuf(tarfile.PAX_FORMAT) for one in more) + b"\0" * 10_240
        )
    with pytest.raises(InputError, match="no saved project of a studio, or was changed"):
        taken_in(other, bad)
    assert other.projects() == [] and [*(other.home / "projects").iterdir()] == []
    assert not (tmp_path / "outside").exists() and not (other.home / "outside").exists()


# --- by the API and the command line ---------------------------------------------------------------------------


def test_the_api_takes_in_what_another_one_saved(studio, other):
    """An upload like any other; it is forgotten when the project is there."""
    here, there = served(studio), served(other)
    (project,) = studio.projects()
    answer = here("GET", f"/api/v1/projects/{project.id}/archive")
    assert (
        answer.headers["content-type"] == "application/x-tar"
        and "questions.tar" in answer.headers["content-disposition"]
    )
    file = there("POST", "/api/v1/files", json={"filename": "x.tar", "bytes": len(answer.content)}).json()["id"]
    path, asked = f"/api/v1/files/{file}/content", {"json": {"file": file}}
    there("PUT", path, content=answer.content[:1000])
    assert there("POST", "/api/v1/projects/archive", **asked).status_code == 409
    there("PUT", f"{path}?offset=1000", content=answer.content[1000:])
    made = there("POST", "/api/v1/projects/archive", **asked)
    assert made.status_code == 201 and made.json()["id"] == project.id
    assert there("POST", "/api/v1/projects/archive", **asked).status_code == 404
    assert here("GET", "/api/v1/projects/" + "0" * 16 + "/archive").status_code == 404


def test_the_command_line_moves_a_project(studio, tmp_path, capsys):
    """By its name or its id; no file is overwritten."""
    saved, there = tmp_path / "moved.tar", tmp_path / "there"
    here = ["studio", "--home", str(studio.home)]
    assert cli.main([*here, "--save-project", "Questions", str(saved)]) == 0
    assert cli.main(["studio", "--home", str(there), "--load-project", str(saved)]) == 0
    assert "with 3 runs" in capsys.readouterr().out and Studio(there).projects() == studio.projects()
    for words, sentence in (
        (["--save-project", "Questions", str(saved)], "no project is overwritten"),
        (["--save-project", "Nothing", str(tmp_path / "x.tar")], "0 projects are called 'Nothing'"),
        (["--load-project", str(saved)], "is here already"),
        (["--load-project", str(tmp_path / "none.tar")], "no saved project"),
    ):
        assert cli.main([*here, *words]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()
