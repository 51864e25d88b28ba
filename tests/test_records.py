"""Records: what was saved comes back, what was touched is refused, what was interrupted leaves the old file whole."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.core import records, specs
from peftbook.core.errors import InputError
from peftbook.core.records import SHIPPED, Missing, Record, Store, default_store, load_record, write_atomically
from peftbook.core.tracking import LOOKUP, record_reads, track_reads, untracked
from peftbook.methods.lora import LoRA


def a_run(seed: int = 0) -> specs.Run:
    return specs.Run(
        task=specs.Task(name="t", data_sha256="0" * 64),
        method=LoRA(),
        budget=specs.Budget(tokens=10, learning_rate=1e-3),
        seed=seed,
    )


def a_record(seed: int = 0, **fields) -> Record:
    run = a_run(seed)
    values = {
        "measurements": {"loss_nats": 2.25, "train_steps": 7, "skipped": None},
        "curve": {"train_loss_nats": [3.5, 2.0, 1.0]},
        "per_example": {"loss_nats": [1.0, 2.0], "label_tokens": [3.0, 4.0], "names": ["a", "1.5"]},
        "metrics_info": {"bertscore": {"layer": 6, "name": "all-MiniLM-L6-v2", "rescaled": False}},
        "provenance": {"cpu": "a CPU", "cores": 2, "versions": {"torch": "2.13.0"}},
    }
    return Record(key=run.key, spec=run, **values | fields)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "records")


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=25,
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(texts, st.none() | st.integers(-(2**53), 2**53) | finite, max_size=4),
    st.dictionaries(texts, st.lists(finite, max_size=6), max_size=3),
    st.dictionaries(texts, st.lists(finite, max_size=6) | st.lists(texts, max_size=6), max_size=3),
    st.dictionaries(texts, json_values, max_size=3),
    st.none() | st.lists(texts, max_size=5),
)
def test_what_is_saved_comes_back(tmp_path_factory, measurements, curve, per_example, info, generated):
    """Numbers to the last bit, texts to the last character, checksum checked."""
    store = Store(tmp_path_factory.mktemp("records"))
    record = a_record(measurements=measurements, curve=curve, per_example=per_example, metrics_info=info)
    saved = store.save(record, generated)
    loaded = store.get(a_run())
    assert loaded == saved
    assert loaded.measurements == measurements and loaded.curve == curve and loaded.metrics_info == info
    assert loaded.per_example == per_example
    assert store.texts(loaded) == (generated or [])


def test_an_infinite_measurement_survives(store):
    """The perplexity of a diverged run is infinite, and its record must still load."""
    store.save(a_record(measurements={"perplexity": float("inf")}))
    assert store.get(a_run()).measurements["perplexity"] == float("inf")


@given(json_values)
def test_a_list_on_one_line_is_equal_json(value):
    """The one-line lists are for readers of diffs; no reader of JSON may see a difference."""
    assert json.loads(records._indented(value)) == value


def test_nothing_is_missing_or_extra_in_a_store(store):
    """`get` and `in` agree, and `all` gives each key once, in key order."""
    assert store.get(a_run()) is None and a_run() not in store and store.path(a_run().key) is None
    saved = [store.save(a_record(seed), ["text"]) for seed in range(4)]
    assert [record.key for record in store.all()] == sorted(record.key for record in saved)
    assert all(a_run(seed) in store for seed in range(4)) and a_run(4) not in store


def test_stores_read_all_folders_and_write_the_last(tmp_path):
    """A reader's new records never touch the shipped ones; a shipped record wins over a later one of the same run."""
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    Store(shipped).save(a_record(0, failure="shipped"), ["old"])
    both = Store(shipped, mine)
    both.save(a_record(1), ["new"])
    both.save(a_record(0, failure="mine"))
    assert [path.name for path in shipped.glob("*.json")] == [f"{a_run(0).key[:12]}.json"]
    assert both.get(a_run(0)).failure == "shipped" and both.texts(both.get(a_run(0))) == ["old"]
    assert len(list(both.all())) == 2 and both.texts(both.get(a_run(1))) == ["new"]


def message_of(path: Path) -> str:
    """The one sentence that a bad file gets; it names the file and says what to do."""
    with pytest.raises(InputError) as caught:
        load_record(path)
    message = str(caught.value)
    assert path.name in message and "peftbook run" in message and "\n" not in message and message.endswith(".")
    return message


def test_every_corrupted_byte_is_noticed(store):
    """Flip one bit of any character that carries meaning: the record is refused, or it still says the same."""
    saved = store.save(a_record())
    path = store.path(saved.key)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert load_record(path) == saved
        except InputError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > len(whole) / 7 * 0.5


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_a_truncated_record_is_refused(store, keep):
    """A full disk or a broken copy leaves such files."""
    path = store.path(store.save(a_record()).key)
    path.write_bytes(path.read_bytes()[:keep])
    assert "corrupted" in message_of(path)


def test_a_renamed_record_is_stale(store, tmp_path):
    """It answers under no other run's name."""
    path = store.path(store.save(a_record()).key)
    moved = path.with_name(f"{a_run(1).key[:12]}.json")
    path.rename(moved)
    assert "stale" in message_of(moved)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("measurements", {"loss_nats": 2.24}, "changed after it was written"),  # no result is improved by hand
        ("spec", {"seed": 9}, "stale"),  # and none answers for another run than its own
        ("", {"schema_version": 2}, "schema 2"),  # nor is a later version's half-read by an earlier one
        ("", {"unknown_field": 1}, "corrupted"),
        ("", {"spec": {"task": 1}}, "corrupted"),
    ],
)
def test_an_edited_record_is_refused(store, part, change, said):
    """Whatever was changed in it, a sentence says so."""
    path = store.path(store.save(a_record()).key)
    tree = json.loads(path.read_text())
    (tree[part] if part else tree).update(change)
    path.write_text(json.dumps(tree))
    assert said in message_of(path)


def test_one_bad_record_is_named_when_all_are_read(store):
    """`all` does not skip what it cannot read: a missing result must not look like one that was never run."""
    for seed in range(3):
        store.save(a_record(seed))
    store.path(a_run(1).key).write_text("{}")
    with pytest.raises(InputError, match=a_run(1).key[:12]):
        list(store.all())


@pytest.mark.parametrize("damage", ["removed", "no longer gzip", "cut short", "another record's"])
def test_missing_and_broken_texts_get_a_sentence(store, damage):
    """A partial clone or a broken copy leaves a record without its texts, whose hash is in it."""
    record = store.save(a_record(), ["one", "two"])
    path = store.path(record.key).with_suffix(".texts.json.gz")
    other = gzip.compress(json.dumps(["one", "three"]).encode())
    found = {"no longer gzip": b"text", "cut short": path.read_bytes()[:-9], "another record's": other}
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(found[damage])
    with pytest.raises(InputError, match=record.key[:12]):
        store.texts(record)


def test_equal_records_are_equal_files(tmp_path):
    """Compressed texts carry no time stamp, so a rebuilt record has no spurious diff."""
    for name in ("one", "two"):
        Store(tmp_path / name).save(a_record(), ["same"])
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert all(first.read_bytes() == second.read_bytes() for first, second in zip(one, two, strict=True))


def test_writing_leaves_nothing_on_error(tmp_path, monkeypatch):
    """Neither a new file nor a temporary one, and the old file is as it was."""
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def no_space(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"] and path.read_bytes() == b"old"


KILLED = """
import os, pathlib, signal, sys
from peftbook.core.records import write_atomically
real = os.replace
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = die
write_atomically(pathlib.Path(sys.argv[1]), b"new")
"""


def test_a_kill_before_the_rename_leaves_the_old_record_whole(store):
    """kill -9 cannot be caught: the temporary file stays, is never read as a record, and the old one is intact."""
    record = store.save(a_record())
    path = store.path(record.key)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9
    left = [file for file in path.parent.iterdir() if file != path]
    assert len(left) == 1 and left[0].read_bytes() == b"new"
    assert store.get(a_run()) == record and list(store.all()) == [record]
    store.save(record)
    assert store.get(a_run()) == record


def test_texts_are_written_before_the_record(store, monkeypatch):
    """A record on disk is whole: a crash between the two leaves texts without a record, never the reverse."""
    written = []
    monkeypatch.setattr(records, "write_atomically", lambda path, data: written.append(path.name))
    store.save(a_record(), ["text"])
    assert [name.endswith(".gz") for name in written] == [True, False]


def test_new_records_go_where_the_variable_says(tmp_path, monkeypatch):
    """Tests and readers of an installed package never write into it."""
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path))
    assert default_store().folders == (SHIPPED, tmp_path)
    default_store().save(a_record(123456))
    assert [path.name for path in tmp_path.iterdir()] == [f"{a_run(123456).key[:12]}.json"]


def test_every_shipped_record_loads():
    """Schema, key and checksum of each, and its texts match their hash."""
    store = Store(SHIPPED)
    for record in store.all():
        if record.texts_sha256:
            assert len(store.texts(record)) == record.measurements["generated_examples"]
        assert not record.failure or "diverged" in record.failure


# --- who read what ---------------------------------------------------------------------------------------------


def test_a_tracker_sees_every_record_that_is_read_once_and_in_order(tmp_path):
    """By run, by texts and by walking through the store; whoever only asks whether a record is there reads nothing."""
    store = Store(tmp_path)
    first, second, third = (a_record(seed) for seed in range(3))
    for record in (first, second, third):
        store.save(record, ["text"])
    with track_reads() as seen:
        assert first.spec in store and store.path(first.key)
        assert not seen
        store.get(second.spec)
        store.need(first.spec)
        store.need_all([second.spec, first.spec])
        assert list(seen) == [second.key, first.key]
        store.texts(store.get(third.spec))
        assert list(store.all()) and len(seen) == 3
    store.get(first.spec)
    with track_reads() as again:
        pass
    assert not again


def test_trackers_nest_and_untracked_reads_stay_hidden(tmp_path):
    """The outer one sees what the inner one sees, unless that is untracked and its reads are not recorded later."""
    store = Store(tmp_path)
    first, second = (store.save(a_record(seed)) for seed in range(2))
    with track_reads() as outer:
        with track_reads() as inner:
            store.get(first.spec)
        assert list(outer) == list(inner) == [first.key]
        with untracked() as apart:
            store.get(second.spec)
        assert list(apart) == [second.key] and second.key not in outer
        record_reads(apart)
        assert list(outer) == [first.key, second.key] and list(inner) == [first.key]


def test_each_thread_has_its_own_trackers(tmp_path):
    """What one thread reads is not put down to what another computes."""
    store = Store(tmp_path)
    records = [store.save(a_record(seed)) for seed in range(8)]
    barrier = threading.Barrier(len(records))

    def read(record: Record) -> list[str]:
        with track_reads() as seen:
            barrier.wait()
            store.get(record.spec)
            barrier.wait()
        return list(seen)

    with track_reads() as outside, ThreadPoolExecutor(len(records)) as pool:
        assert list(pool.map(read, records)) == [[record.key] for record in records]
    assert not outside


def test_a_record_that_is_needed_and_missing_is_named(tmp_path):
    """The message says how to make it."""
    run = a_record(0).spec
    with pytest.raises(Missing, match=f"peftbook run --key {run.key[:12]}") as error:
        Store(tmp_path).need(run)
    assert error.value.run == run


def test_every_lookup_is_an_audit_event(tmp_path):
    """A chapter's kernel notes it, so that the page is drawn again once a missing record is there."""
    paths, run = [], a_record(0).spec
    active = True
    sys.addaudithook(lambda event, args: paths.extend(args) if active and event == LOOKUP else None)
    store = Store(tmp_path / "a", tmp_path / "b")
    assert store.get(run) is None
    assert paths == [str(folder / f"{run.key[:12]}.json") for folder in store.folders]
    active = False
