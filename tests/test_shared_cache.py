"""Executed chapters that travel: what holds comes with its outputs, what does not is as good as not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from peftbook.core import tracking
from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.core.stamp import file_hash
from peftbook.views.site import execution, shared_cache
from peftbook.views.site.execution import changed_files, used_files
from peftbook.views.site.shared_cache import cache_of, check_place, export_chapters, import_chapters
from peftbook.views.site.tracing import Trace

PAGES = {"book/one": "1 + 1", "book/two": "2 + 2"}


def notebook(code: str, output: str = ""):
    """A notebook of one cell."""
    said = [nbformat.v4.new_output("stream", text=output)] if output else []
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, outputs=said)])


def checkout(folder: Path) -> Path:
    """What two chapters use: a module each, and the lock file; and a record that none of them finds."""
    (folder / "src").mkdir(parents=True)
    (folder / "constraints.txt").write_text("numpy==1")
    for page in PAGES:
        (folder / "src" / f"{Path(page).name}.py").write_text(f"# of {page}")
    return folder


@pytest.fixture
def here(tmp_path) -> Path:
    """A checkout whose chapters are executed."""
    root = checkout(tmp_path / "here")
    for page in PAGES:
        trace = {"files": [str(root / "src" / f"{Path(page).name}.py")], "missing": [str(root / "src/later.json")]}
        cache_execution(root, page, used_files(page, trace, time.time() + 9, root))
    return root


def cache_execution(root: Path, page: str, used: dict) -> None:
    """Put a chapter's outputs into the cache."""
    bundle = CacheBundleIn(notebook(PAGES[page], f"executed {page}"), str(root / f"{page}.md"), data=used)
    get_cache(cache_of(root / "_build")).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def entries(root: Path) -> dict[str, dict]:
    """Page → what its cached execution used."""
    return {record.data["page"]: record.data for record in get_cache(cache_of(root / "_build")).list_cache_records()}


@pytest.fixture
def place(here, tmp_path) -> Path:
    """The folder that its chapters were written to."""
    assert sorted(export_chapters(tmp_path / "place", here / "_build", here)) == sorted(PAGES)
    return tmp_path / "place"


@pytest.fixture
def there(tmp_path) -> Path:
    """The same checkout elsewhere, of which nothing was executed."""
    return checkout(tmp_path / "there")


def shown(root: Path, page: str) -> str:
    """The output of a chapter that the cache has; empty where it would be executed."""
    try:
        return (
            get_cache(cache_of(root / "_build"))
            .merge_match_into_notebook(notebook(PAGES[page]))[1]
            .cells[0]
            .outputs[0]
            .text
        )
    except KeyError:
        return ""


def test_what_was_executed_elsewhere_is_shown(place, there):
    """With what it used, by which the next build knows whether it still holds; once, and not again."""
    assert sorted(import_chapters(place, there / "_build", there)) == sorted(PAGES)
    assert [shown(there, page) for page in PAGES] == [f"executed {page}" for page in PAGES]
    assert [changed_files(entries(there)[page], there) for page in PAGES] == [[], []]
    (there / "src/two.py").write_text("# other")
    assert [changed_files(entries(there)[page], there) for page in PAGES] == [[], ["src/two.py"]]
    (there / "src/two.py").write_text("# of book/two")
    assert import_chapters(place, there / "_build", there) == [] == export_chapters(place, there / "_build", there)


def test_an_archive_is_a_place(place, there, tmp_path):
    """Wherever in it the files are, as in one that a folder was packed into."""
    packed = shutil.make_archive(str(tmp_path / "executed"), "zip", tmp_path, "place")
    check_place(Path(packed))
    assert sorted(import_chapters(Path(packed), there / "_build", there)) == sorted(PAGES)
    assert shown(there, "book/one")


@pytest.mark.parametrize(
    ("change", "come"),
    [
        ("module", {"book/two"}), ("no module", {"book/two"}), ("lock file", set()), ("record", set()),
        ("Python", set()),
    ],
)  # fmt: skip
def test_what_was_made_from_anything_else_does_not_come(place, there, monkeypatch, change, come):
    """Another module, one that is gone, other versions, a record that is there by now, another Python."""
    match change:
        case "module":
            (there / "src/one.py").write_text("# other")
        case "no module":
            (there / "src/one.py").unlink()
        case "lock file":
            (there / "constraints.txt").write_text("numpy==2")
        case "record":
            (there / "src/later.json").write_text("{}")
        case "Python":
            monkeypatch.setattr(execution.platform, "python_version", lambda: "3.99.0")
    assert set(import_chapters(place, there / "_build", there)) == come
    assert {page for page in PAGES if shown(there, page)} == come


def test_a_damaged_file_is_as_good_as_not_there(place, there):
    """Wherever it was cut, or whichever byte is another."""
    first, second = sorted(place.glob("*.json"))
    whole = first.read_bytes()
    second.unlink()
    for damaged in (
        whole[:30],
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:200] + b"#" + whole[201:],
        b"",
        b"\n",
        b"[]",
    ):
        first.write_bytes(damaged)
        assert import_chapters(place, there / "_build", there) == []
    first.write_bytes(whole)
    assert len(import_chapters(place, there / "_build", there)) == 1


def written(path: Path, body: bytes) -> None:
    """A file whose first line is right."""
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize(
    "other",
    [
        {"format": "other"}, {"code": "other"}, {"entry": {}}, {"entry": 3}, {"notebook": {}}, {"notebook": []},
        {"notebook": {"nbformat": 9}}, {"entry": {"files": {}}}, {"entry": {"page": "../one", "files": {}}}, None,
    ],
)  # fmt: skip
def test_a_file_of_another_version_or_of_other_code_does_not_come(place, there, other):
    """Though it is whole; nor one that says nothing that could be read."""
    for path in place.glob("*.json"):
        told = json.loads(path.read_bytes().partition(b"\n")[2])
        written(path, b"\xff\x00 no JSON" if other is None else json.dumps(told | other).encode())
    written(place / "list.json", b"[1]")
    assert import_chapters(place, there / "_build", there) == []
    assert (
        not any(shown(there, page) for page in PAGES) and not get_cache(cache_of(there / "_build")).list_cache_records()
    )


def test_what_rests_on_files_of_one_machine_does_not_travel(place, here, there, tmp_path):
    """Records of one's own, say: nobody else can tell whether theirs are the same."""
    for (page, entry), name in zip(entries(here).items(), ("/mine/0123456789ab.json", "../mine.json"), strict=True):
        cache_execution(here, page, entry | {"files": entry["files"] | {name: None}})
    assert export_chapters(tmp_path / "other", here / "_build", here) == []
    for path in place.glob("*.json"):
        told = json.loads(path.read_bytes().partition(b"\n")[2])
        told["entry"]["files"]["/mine/0123456789ab.json"] = None
        written(path, json.dumps(told).encode())
    assert import_chapters(place, there / "_build", there) == []


def test_what_changed_while_it_was_executed_is_not_known(here):
    """It may have used the file as it was before."""
    trace = {"files": [str(here / "src/one.py")], "missing": []}
    assert changed_files(used_files("book/one", trace, time.time() - 9, here), here)
    assert not changed_files(used_files("book/one", trace, time.time() + 9, here), here)


def test_a_page_that_is_brought_is_read_again(place, there):
    """Sphinx reads what it has no doctree of, and would else show the outputs of before."""
    trees = [there / "_build/.doctrees" / f"{page}.doctree" for page in PAGES]
    for tree in trees:
        tree.parent.mkdir(parents=True, exist_ok=True)
        tree.write_text("of before")
    (there / "src/two.py").write_text("# other")
    import_chapters(place, there / "_build", there)
    assert [tree.exists() for tree in trees] == [False, True]


def test_a_page_whose_execution_is_dropped_is_read_again_though_the_build_is_stopped(here):
    """Between dropping and reading, say: the next build does not know any more what was dropped."""
    trees = [here / "_build/.doctrees" / f"{page}.doctree" for page in PAGES]
    for tree in trees:
        tree.parent.mkdir(parents=True, exist_ok=True)
        tree.write_text("of before")
    (here / "src/two.py").write_text("# other")
    app = SimpleNamespace(
        config=SimpleNamespace(nb_execution_cache_path=""), outdir=here / "_build/html", srcdir=here,
        doctreedir=here / "_build/.doctrees",
    )  # fmt: skip
    execution.drop_stale(app)
    assert [tree.exists() for tree in trees] == [True, False]


def test_what_does_not_hold_here_is_not_given(here, tmp_path):
    """The cache of a build that was stopped may have it still."""
    (here / "src/one.py").write_text("# other")
    assert export_chapters(tmp_path / "place", here / "_build", here) == ["book/two"]


def test_what_nobody_had_a_use_for_goes_and_the_rest_stays(place, here):
    """A folder that every change of a branch adds to does not grow for ever."""
    old = time.time() - (shared_cache.MAX_AGE_DAYS + 1) * 86400
    gone, another = place / f"{0:032x}.json", place / f"{1:032x}.json"
    gone.write_bytes(next(place.glob("*.json")).read_bytes())
    another.write_text("{}")
    (place / "package.json").write_text("not ours")
    (place / "folder.json").mkdir()
    (place / "link.json").symlink_to("nowhere")
    for path in place.iterdir():
        os.utime(path, (old, old), follow_symlinks=False)
    assert export_chapters(place, here / "_build", here) == []
    assert not gone.exists() and another.exists() and len(list(place.iterdir())) == len(PAGES) + 4


def test_a_place_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, here):
    """Before anything is built; what cannot be written is told after it."""
    (tmp_path / "no.zip").write_text("no archive")
    (tmp_path / "file").write_text("")
    (tmp_path / "cut.zip").write_bytes(
        b"PK\x03\x04" + bytes(40) + b"PK\x05\x06" + bytes([0] * 8 + [9, 0, 0, 0] + [1] * 6)
    )
    said = {"no.zip": "no .zip archive", "cut.zip": "no .zip archive", "none.zip": "No such file", "file": "neither a"}
    for name, words in said.items():
        with pytest.raises(InputError, match=words):
            check_place(tmp_path / name)
    check_place(tmp_path / "folder to come")
    monkeypatch.setattr(shared_cache, "default_store", lambda: Store(tmp_path, tmp_path / "mine"))
    with pytest.raises(InputError, match="PEFTBOOK_RECORDS"):
        check_place(tmp_path / "folder to come")

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_cache, "write_atomically", full)
    with pytest.raises(InputError, match=r"The book is built, but .* \(No space left on device\)"):
        export_chapters(tmp_path / "place", here / "_build", here)


def test_a_page_that_lists_all_records_rests_on_their_folder(tmp_path, monkeypatch):
    """The trace has the folder, and its hash is another once a record is added."""
    trace = Trace(tmp_path / "trace.json", (str(tmp_path),))
    monkeypatch.setattr(tracking.sys, "audit", lambda event, *given: trace.audit(event, given))
    list(Store(tmp_path).all())
    trace.write()
    assert str(tmp_path) in json.loads((tmp_path / "trace.json").read_text())["files"]
    (tmp_path / "trace.json").unlink()
    before = file_hash(tmp_path)
    (tmp_path / "0123456789ab.json").write_text("{}")
    assert None not in (before, file_hash(tmp_path)) and before != file_hash(tmp_path)
