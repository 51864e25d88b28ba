"""The fork server: a fork is what a new process would be, and ends with the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import wait_for
from test_ray_engine import measured, small_run

from peftbook.core.records import Store
from peftbook.runtime import queue
from peftbook.runtime.fork_server import AVAILABLE, Fork, ForkServer
from peftbook.runtime.processes import Child, environment_of
from peftbook.runtime.queue import run_subprocess

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="forks of a process with these libraries are Linux's")

JOB = '''
"""A module that does as it is told."""
import os, random, signal, sys
from peftbook.runtime import processes

def say():
    import torch
    print(__name__, sys.argv[1:], os.getcwd(), sys.stdin.readline().strip(), torch.get_num_threads(),
          os.environ.get("PEFTBOOK_WORD"), "KEPT" in os.environ, os.getpgid(0) == os.getpid(),
          signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGCHLD))

def draw():
    import numpy as np
    import torch
    print(random.random(), np.random.random(), torch.rand(1).item())

def adopt():
    processes.die_with_parent()
    print("still here")

def begin():
    import threading
    threading.Thread(target=lambda: print("a thread's last word"), daemon=False).start()

def wait():
    processes.end_with_input()
    signal.pause()

{"say": say, "draw": draw, "adopt": adopt, "begin": begin, "wait": wait,
 "three": lambda: sys.exit(3), "word": lambda: sys.exit("a refusal"), "none": lambda: sys.exit(None),
 "error": lambda: 1 / 0, "two": lambda: (print("a note"), print("Fix it."), sys.exit(2)),
 "kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "stop": lambda: os.kill(os.getpid(), signal.SIGTERM),
}[sys.argv[1]]()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A folder with the module, in which the tests are."""
    path = tmp_path_factory.mktemp("jobs")
    (path / "a_job.py").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def server(folder) -> Iterator[ForkServer]:
    with ForkServer() as found:
        make_ready(found)
        yield found


@pytest.fixture
def light(folder, tmp_path, monkeypatch) -> None:
    """Libraries that are there at once, for laws in which nothing hangs on what they are."""
    for name in ("torch", "bitsandbytes", "transformers", "peft", "safetensors", "scipy"):
        (tmp_path / f"{name}.py").write_text("seed = int\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def make_ready(server: ForkServer) -> None:
    """Start two children, with the second of which the server starts, and wait until that has its libraries."""
    for _ in range(2):
        assert asked(server, "none")[3] is subprocess.Popen
    assert server.is_ready(120)


def asked(server: ForkServer | None, *words: str, told: str = "hello\n", **options) -> tuple[int, list[str], str, type]:
    """What became of a child: status, what it said, why it ended, and the type that stands for it."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # another in every test, as if the environment had changed
    start = server.start if server else subprocess.Popen
    with Child("-m", "a_job", *words, start=start, threads=2, **options) as child:
        child.write(told, last=words[0] != "adopt")
        child.wait(60)
        return child.status, child.output_lines(), child.failure(), type(child.process)


@pytest.mark.parametrize(
    "words",
    ["say a b", "three", "word", "none", "error", "two", "begin", "kill", "stop", "adopt", "unknown"],
    ids=lambda words: words.partition(" ")[0],
)
def test_a_fork_is_what_a_new_process_is(server, words):
    """Words, folder, input, environment, threads, signals, group; and every way to end, told in the same words."""
    options = {"variables": {"PEFTBOOK_WORD": "told"}}
    *plain, kind = asked(None, *words.split(), **options)
    *forked, other = asked(server, *words.split(), **options)
    assert forked == plain and (kind, other) == (subprocess.Popen, Fork)


def test_forks_draw_numbers_of_their_own(server):
    drawn = [asked(server, "draw")[1][0].split() for _ in range(2)]
    assert all(first != second for first, second in zip(*drawn, strict=True))


def test_a_fork_runs_the_code_that_is_on_the_disk(server, folder):
    """A queue that runs for days does not hold on to the code of its first run."""
    assert asked(server, "two")[2] == "Fix it."
    try:
        (folder / "a_job.py").write_text(JOB.replace("Fix it.", "Mend it."))
        assert asked(server, "two")[2:] == ("Mend it.", Fork)
    finally:
        (folder / "a_job.py").write_text(JOB)


def test_where_a_library_would_have_read_something_else_the_process_is_new(server, monkeypatch):
    """A variable that was set or taken away since, or another number of threads; ours are read when they are needed."""
    assert asked(server, "none", variables={"KEPT": "1"})[3] is subprocess.Popen
    monkeypatch.setenv("KEPT", "1")
    assert asked(server, "none")[3] is subprocess.Popen
    monkeypatch.delenv("KEPT")
    with Child("-m", "a_job", "none", start=server.start, threads=1) as child:
        assert isinstance(child.process, subprocess.Popen)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert asked(server, "none")[3] is subprocess.Popen


def test_a_fork_that_is_not_wanted_any_more_is_ended(server):
    """By us, in the middle of what it does; a wait that is cut short says so."""
    assert asked(server, "none")[3] is Fork
    with Child("-m", "a_job", "wait", start=server.start, threads=2) as child:
        assert isinstance(child.process, Fork) and not child.wait(0.2) and not child.ended()
        process = psutil.Process(child.process.pid)
    assert child.status == -signal.SIGKILL and not process.is_running()


def test_many_forks_leave_nothing_open(server):
    """Neither here nor there, whether they ended well or not."""
    assert server.process is not None
    places = psutil.Process(), psutil.Process(server.process.pid)
    before = [place.num_fds() for place in places]
    for at in range(9):
        assert asked(server, ("none", "three", "kill")[at % 3])[3] is Fork
    wait_for(lambda: [place.num_fds() for place in places] == before, 10)
    assert not places[1].children()


def test_where_the_system_has_no_room_for_a_fork_the_process_is_new(server, monkeypatch):
    """And what is forked already goes on."""
    assert asked(server, "none")[3] is Fork
    with Child("-m", "a_job", "wait", start=server.start, threads=2) as child:
        with monkeypatch.context() as patch:
            patch.setattr(server, "fork", lambda *given: None)
            assert asked(server, "two")[2:] == ("Fix it.", subprocess.Popen)
        assert isinstance(child.process, Fork) and not child.ended() and asked(server, "none")[3] is Fork


def test_forks_side_by_side_have_each_their_own_files(server):
    """What one says or how it ends is never another's."""
    assert asked(server, "none")[3] is Fork
    ways = {"two": 2, "three": 3, "none": 0, "kill": -9}
    children = [(way, Child("-m", "a_job", way, start=server.start, threads=2)) for way in [*ways, *ways]]
    for way, child in children:
        with child:
            child.wait(60)
            assert child.status == ways[way] and child.output_lines() == ["a note", "Fix it."] * (way == "two")


@pytest.mark.usefixtures("light")
def test_who_knows_that_several_follow_has_the_first_forked():
    """Begun once, in the environment that the children will have; what died while it imported is not waited for."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    with ForkServer() as server:
        assert not server.is_loading()
        server.load(environment_of(2))
        begun = server.process
        server.load(environment_of(2))
        assert begun is not None and server.process is begun and server.is_loading()
        wait_for(lambda: not server.is_loading(), 120)
        assert asked(server, "two")[2:] == ("Fix it.", Fork)
    with ForkServer() as server:
        server.load(environment_of(2))
        assert server.process is not None and server.is_loading()
        server.process.kill()
        wait_for(lambda: not server.is_loading(), 20)
        assert asked(server, "two")[2:] == ("Fix it.", subprocess.Popen)


@pytest.mark.usefixtures("light")
def test_when_the_process_with_the_libraries_dies_its_forks_do_and_the_next_is_new():
    """The queue goes on: the run that was lost is told as killed."""
    with ForkServer() as server:
        make_ready(server)
        with Child("-m", "a_job", "wait", start=server.start, threads=2) as child:
            assert server.process is not None
            server.process.kill()
            assert child.wait(20) and child.status == -signal.SIGKILL
        assert asked(server, "two")[2:] == ("Fix it.", subprocess.Popen)


ASKING = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
from peftbook.runtime.fork_server import ForkServer
from peftbook.runtime.processes import Child
server = ForkServer()
for _ in range(2):
    Child("-m", "a_job", "none", start=server.start).wait()
server.is_ready(60)
child = Child("-m", "a_job", "wait", start=server.start)
print(type(child.process).__name__, server.process.pid, child.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_whoever_asked_dies_nothing_is_left(number):
    asking = subprocess.Popen(
        [sys.executable, "-c", ASKING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert asking.stdout is not None
    kind, *pids = asking.stdout.readline().split()
    assert kind == "Fork" and all(psutil.pid_exists(int(pid)) for pid in pids)
    asking.send_signal(number)
    asking.wait(30)
    asking.stdout.close()
    wait_for(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), 20)


@pytest.mark.model
def test_a_forked_run_makes_the_record_of_a_new_process(server, tmp_path, monkeypatch):
    """Bit for bit, texts too."""
    forks, fork = [], server.fork
    run = small_run(0, 6, n_generate=2)
    assert asked(server, "none")[3] is Fork
    monkeypatch.setattr(server, "fork", lambda *given: forks.append(given) or fork(*given))
    plain, forked = (Store(tmp_path / name) for name in ("plain", "forked"))
    assert run_subprocess(run, 2, folder=plain.folders[0]) == (True, "") and not forks
    assert run_subprocess(run, 2, folder=forked.folders[0], fork_server=server) == (True, "") and len(forks) == 1
    assert measured(plain.get(run)) == measured(forked.get(run))
    assert plain.texts(plain.get(run)) == forked.texts(forked.get(run))


def test_a_timing_run_is_never_forked(server, monkeypatch):
    """Its memory and its seconds are asked for; nor one on a GPU, or of several processes."""
    starts = []

    class Noted(Child):
        def __init__(self, *words: str, start, **options):
            starts.append(start)
            super().__init__("-c", "input()", start=subprocess.Popen)

    monkeypatch.setattr(queue, "Child", Noted)
    run = small_run(0, 6)
    for change in ({}, {"purpose": "timing", "machine": "here"}, {"platform": "cuda"}):
        assert run_subprocess(run.model_copy(update=change), 2, fork_server=server) == (True, "")
    run_subprocess(run, 2, fork_server=server, processes=2)
    assert starts == [server.start, *[subprocess.Popen] * 3]
