"""Stamps: an output is fresh until an input changes, comes or goes."""

from __future__ import annotations

from peftbook.core.stamp import add_checksum, inputs_hash, is_fresh, verified_body, write_stamp


def test_an_output_is_fresh_until_an_input_changes_or_comes(tmp_path):
    """A file by its content, a text, a file that was not there."""
    stamp, source, later = tmp_path / "stamps/part", tmp_path / "source.py", tmp_path / "later.py"
    source.write_text("one")
    before = inputs_hash([source, later], "text")
    assert not is_fresh(stamp, before)
    write_stamp(stamp, before)
    assert is_fresh(stamp, inputs_hash([later, source], "text"))
    assert not is_fresh(stamp, inputs_hash([source, later], "other text"))
    later.write_text("")
    assert not is_fresh(stamp, inputs_hash([source, later], "text"))
    later.unlink()
    source.write_text("two")
    assert not is_fresh(stamp, inputs_hash([source, later], "text"))


def test_a_copy_has_the_same_hash_where_names_are_relative(tmp_path):
    """A built site that is moved with its sources is still fresh."""
    here, there = tmp_path / "here", tmp_path / "there"
    for root in (here, there):
        root.mkdir()
        (root / "source.py").write_text("one")
    assert inputs_hash(here.iterdir(), root=here) == inputs_hash(there.iterdir(), root=there)
    assert inputs_hash(here.iterdir()) != inputs_hash(there.iterdir())


def test_a_damaged_text_has_no_body():
    """Cut, changed, or without a first line."""
    data = add_checksum("text\n")
    assert verified_body(data) == b"text\n"
    assert {verified_body(other) for other in (data[:-1], data[1:], data + b" ", b"")} == {None}
