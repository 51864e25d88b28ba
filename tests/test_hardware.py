"""What the machine is and how many threads a run gets, with `/proc` and without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from peftbook import cli
from peftbook.core import specs
from peftbook.core.records import Record
from peftbook.methods import usual
from peftbook.methods.untuned import Untuned
from peftbook.runtime import doctor, durations, hardware, threads
from peftbook.runtime.precision import Products
from peftbook.views.site.machines import HEADS, cells, machines_table


@pytest.fixture
def no_proc(monkeypatch, tmp_path):
    """A system that has no /proc, as macOS."""
    monkeypatch.setattr(hardware, "PROC", tmp_path / "none")


def test_without_proc_every_reading_has_its_way(no_proc):
    """Memory from getrusage, a name from the system, no time of waiting; nothing raises."""
    assert hardware.peak_memory("cpu") > 50 * 2**20
    assert hardware.cpu_model() and "\n" not in hardware.cpu_model()
    assert hardware.waited() == 0.0
    assert hardware.machine_name().endswith("cores")


def test_on_macos_sysctl_names_the_processor(no_proc, monkeypatch):
    """`platform.processor()` says "arm" there, which is no name; where sysctl fails, it has to do."""
    monkeypatch.setattr(sys, "platform", "darwin")
    said = subprocess.CompletedProcess([], 0, stdout="Apple M9\n")
    monkeypatch.setattr(hardware.subprocess, "run", lambda *given, **options: said)
    assert hardware.cpu_model() == "Apple M9"

    def fail(*given, **options):
        raise OSError

    monkeypatch.setattr(hardware.subprocess, "run", fail)
    assert hardware.cpu_model()


def test_a_bound_processor_counts_the_cores_it_may_use():
    """Affinity where the system knows it, else what it counts."""
    assert hardware.cores() == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


@pytest.mark.parametrize(
    ("seconds", "most", "best", "gained"),
    [
        ({1: 8.0, 2: 4.0, 4: 2.0}, 4, 4, 4),  # four whole cores
        ({1: 8.0, 2: 4.0, 4: 4.0, 8: 4.1}, 8, 2, 2),  # eight logical ones that are two
        ({1: 8.0, 2: 4.1, 4: 5.0}, 4, 2, 2),  # slow cores beside fast ones
        ({1: 8.0, 2: 9.0}, 2, 1, 1),
        ({1: 8.0, 2: 7.9}, 2, 1, 1),  # a gain that is none
        ({1: 8.0, 2: 4.0, 4: 2.0}, 2, 2, 4),  # a share of the cores
    ],
)
def test_threads_are_those_that_gain(monkeypatch, seconds, most, best, gained):
    """Not as many as the system counts cores."""
    monkeypatch.setattr(threads, "step_seconds", lambda: seconds)
    monkeypatch.setattr(threads, "cores", lambda: max(seconds))
    assert threads.best_threads(most) == best
    assert threads.cores_gained() == gained


def test_what_fewer_threads_cost_is_by_the_seconds_measured(monkeypatch):
    """Against the number that a run alone gets; where nothing was measured nothing is said."""
    monkeypatch.setattr(threads, "step_seconds", lambda: {1: 8.0, 2: 5.0, 4: 4.9})
    monkeypatch.setattr(threads, "cores", lambda: 4)
    assert [threads.slower_with(count) for count in (1, 2, 3)] == [8 / 5, 1.0, 1.0]
    assert [threads.threads_beside(jobs) for jobs in (1, 2, 3, 9)] == [2, 2, 1, 1]


def test_one_core_needs_no_measurement(monkeypatch):
    """Where there is no choice nothing is measured."""
    monkeypatch.setattr(threads, "step_seconds", lambda: pytest.fail("measured"))
    monkeypatch.setattr(threads, "cores", lambda: 1)
    assert threads.best_threads() == threads.cores_gained() == 1


@pytest.mark.parametrize("idle", [True, False])
def test_threads_are_measured_once_and_on_an_idle_machine(monkeypatch, tmp_path, idle):
    """Beside other work more threads look slow: until then all cores count."""
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(threads, "is_idle", lambda: idle)
    calls: list[int] = []
    monkeypatch.setattr(threads, "measure", lambda most: calls.append(most) or {1: 2.0, most: 2.1})
    monkeypatch.setattr(threads, "cores", lambda: 2)
    for _ in range(2):
        assert threads.best_threads() == threads.cores_gained() == (1 if idle else 2)
    assert calls == ([2] if idle else [])


def test_measuring_threads_leaves_their_number_as_it_was():
    """Whatever was tried."""
    before = torch.get_num_threads()
    assert set(threads.measure(2)) == {1, 2} and torch.get_num_threads() == before
    assert threads.counts(6) == [1, 2, 4, 6]


# --- doctor ----------------------------------------------------------------------------------------------------


@pytest.fixture
def examined(monkeypatch) -> doctor.Examination:
    """This machine, its speed left out."""
    monkeypatch.setattr(doctor, "tokens_per_second", lambda: {"lora": 321.0, "full": 123.0})
    return doctor.examine()


def test_doctor_is_one_screen(examined):
    """At most 40 lines; every field that a reader compares is there, the book's machine beside this one."""
    text = doctor.as_text(examined)
    lines = text.splitlines()
    assert len(lines) <= 40
    for words in (examined.processor, examined.dtype, examined.why, "GFLOP/s", "tokens/s", "321", "the book's"):
        assert words in text


@pytest.mark.parametrize(("products", "dtype", "words"), [
    (Products(400e9, 100e9), "bf16", "4.0 times as fast"), (Products(5e9, 100e9), "fp32", "20 times as slow"),
])  # fmt: skip
def test_doctor_says_why(products, dtype, words):
    """The type that is chosen is the one that the sentence speaks for."""
    assert words in doctor.why(products)
    assert (dtype == "bf16") is products.native


def test_doctor_is_json_that_reads_back(examined, monkeypatch, capsys):
    """As in a report of a fault."""
    monkeypatch.setattr(doctor, "examine", lambda: examined)
    assert cli.main(["doctor", "--json"]) == 0
    assert doctor.Examination(**json.loads(capsys.readouterr().out)) == doctor.Examination(**asdict(examined))


def test_doctor_names_what_an_extra_lacks(monkeypatch):
    """With the command that brings it."""
    known = doctor.is_installed
    monkeypatch.setattr(doctor, "is_installed", lambda name: name != "ray" and known(name))
    assert doctor.missing_extras() == {"[cluster]": 'pip install "peftbook[cluster]" (ray)'}
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert set(doctor.missing_programs()) == set(doctor.PROGRAMS)


def test_the_books_machines_tell_methods_and_no_path():
    """The first is the one that others are compared with; none gives away where it lay. A method that came later was
    not measured there.
    """
    found = doctor.book_machines()
    assert found
    for one in found:
        trained = {kind for kind, method in usual().items() if method.trains}
        assert {"lora"} <= set(one.tokens_per_second) <= trained
        assert not one.cache
        assert one.dtype == ("bf16" if Products(**{k: one.operations_per_second[k] for k in ("bf16", "fp32")}).native
                             else "fp32")  # fmt: skip
    html = machines_table()
    assert html.count("<tr>") == len(found) + 1
    for head in HEADS:
        assert head in html
    assert re.search(rf">{found[0].tokens_per_second['lora']:,.0f}<", html)
    assert "–" in cells(replace(found[0], tokens_per_second={"lora": 1.0}))


def test_records_of_another_machine_say_nothing_of_this_one(monkeypatch):
    """They are what a prediction is compared with; a run made here is believed before it."""
    run = specs.Run(task=specs.Task(name="docstrings", data_sha256="0" * 64), method=Untuned())
    estimates = durations.Estimates()
    estimates.note(run, 10.0, here=False)
    assert estimates.of(run) == 10.0
    estimates.foresee([run], lambda specs: [200.0])
    assert estimates.of(run) == 200.0
    estimates.note(run, 20.0)
    assert estimates.of(run) == 20.0


@pytest.mark.parametrize(("cpu", "how", "native", "here"), [
    ("This", "native", True, True), ("This", None, True, True), ("Another", "native", True, False),
    ("This", "native", False, False), ("This", "widened", False, True), ("This", "widened", True, False),
])  # fmt: skip
def test_a_record_is_of_this_machine_by_processor_and_products(monkeypatch, cpu, how, native, here):
    """A virtual machine's processor may have one name with and without bfloat16."""
    monkeypatch.setattr(durations, "cpu_model", lambda: "This")
    monkeypatch.setattr(durations, "products_here", lambda: Products(2.0 if native else 0.5, 1.0))
    run = specs.Run(task=specs.Task(name="docstrings", data_sha256="0" * 64), method=Untuned())
    provenance = {"cpu": cpu} | ({"bf16_products": how} if how else {})
    record = Record(key=run.key, spec=run, measurements={}, provenance=provenance)
    assert durations.made_here(record) is here
