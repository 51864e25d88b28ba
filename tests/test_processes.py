"""Children and what became of them: they say, complain, refuse, end with us, and take their own children with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import wait_for

from peftbook.runtime import processes
from peftbook.runtime.hardware import machine_name
from peftbook.runtime.processes import Child, call_in_child, identity, is_alive, run_child

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
HOLDER = """
import os, time
from peftbook.runtime.processes import Child
code = "import time; from peftbook.runtime.processes import end_with_input; end_with_input(); time.sleep(600)"
with Child("-c", code) as child:
    print(child.process.pid, flush=True)
    time.sleep(600)
"""


CONTENDER = """
import pathlib, sys
from peftbook.runtime.processes import lock_file
inside = pathlib.Path(sys.argv[1], "inside")
for _ in range(40):
    with lock_file(pathlib.Path(sys.argv[1], "lock"), "held", patience=60):
        inside.mkdir()
        inside.rmdir()
"""


def grandchildren(child: Child) -> list[psutil.Process]:
    return psutil.Process(child.process.pid).children()


def test_a_child_takes_its_own_children_with_it():
    """Else they would go on computing for nobody."""
    with Child("-c", PARENT) as child:
        wait_for(lambda: grandchildren(child))
        (below,) = grandchildren(child)
        known = identity(below.pid)
    assert child.ended() and child.status == -9
    wait_for(lambda: not is_alive(below.pid, known))


def test_a_child_that_watches_its_input_ends_with_us():
    """Whatever we die of."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as holder:
        pid = int(holder.stdout.readline())
        known = identity(pid)
        time.sleep(1.0)
        assert is_alive(pid, known)
        holder.kill()
    wait_for(lambda: not is_alive(pid, known))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('hello')", ""),
        ("import sys; print('Give less.'); print('noise', file=sys.stderr); sys.exit(2)", "Give less."),
        ("print('hello'); 1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(7)", "ended with exit status 7"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9 (out of memory?)"),
    ],
)
def test_why_a_child_ended(code, why):
    """A refusal is said, a traceback complained, and a signal neither."""
    with Child("-c", code) as child:
        assert child.wait(60) and child.failure() == why


def test_what_is_told_is_heard_and_what_is_said_comes_back_line_by_line():
    """Empty lines too: they stand for answers."""
    code = "import sys; [print(len(line) - 1 or '') for line in sys.stdin]"
    assert run_child("-c", code, text="\nfour\n\n") == ["", "4", ""]


def test_a_child_that_died_at_once_is_told_in_vain():
    """A broken pipe is no error of ours: its status says what happened."""
    with Child("-c", "import os; os._exit(3)") as child:
        child.wait(60)
        child.write("x" * 1_000_000, last=True)
        assert child.status == 3


def test_asking_fails_with_the_reason_or_after_its_time():
    """And leaves no process behind."""
    with pytest.raises(RuntimeError, match="no such thing"):
        run_child("-c", "raise ValueError('no such thing')")
    with pytest.raises(RuntimeError, match=r"took more than 0\.2 seconds"):
        run_child("-c", "import time; time.sleep(600)", seconds=0.2)


def test_a_function_answers_elsewhere_what_it_answers_here():
    """A text, and a dataclass as a dictionary."""
    assert call_in_child(machine_name, "cpu") == machine_name("cpu")
    assert call_in_child(os.getpid) != os.getpid()


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_of_a_child_sleep_when_they_are_idle(threads, monkeypatch):
    """So that no neighbour is slowed down; without a number the environment is ours."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = (
        "import json, os; print(json.dumps([os.environ.get(name) for name in ('OMP_NUM_THREADS', 'OMP_WAIT_POLICY')]))"
    )
    told = json.loads(run_child("-c", code, threads=threads)[0])
    assert told == (["3", "PASSIVE"] if threads else ["1", None])
    assert processes.HOST


def test_one_at_a_time_holds_a_lock_whose_file_goes_with_it(tmp_path):
    """Although each that leaves takes the file away that the others have opened."""
    contenders = [Child("-c", CONTENDER, str(tmp_path)) for _ in range(4)]
    for child in contenders:
        with child:
            assert child.wait(120) and child.failure() == ""
    assert not list(tmp_path.iterdir())


EXITING = """
import atexit, sys, threading, time
from peftbook.runtime.processes import fast_exit

class Slow:
    def __del__(self):
        print("teardown")

with fast_exit():
    kept = Slow()
    atexit.register(print, "hook")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("program")
    {last}
"""


@pytest.mark.parametrize(
    ("last", "status"), [("pass", 0), ("sys.exit(3)", 3), ("sys.exit(None)", 0), ("sys.exit('no')", 1), ("1 / 0", 1)]
)
def test_a_fast_exit_is_an_exit_without_teardown(last, status):
    """Threads, hooks, output and status are those of any exit, and so is what an error prints."""
    done = subprocess.run([sys.executable, "-c", EXITING.format(last=last)], capture_output=True, text=True)
    assert done.returncode == status and done.stdout.split() == ["program", "thread", "hook"]
    complaint = {"1 / 0": ["ZeroDivisionError: division by zero"], "sys.exit('no')": ["no"]}
    assert done.stderr.splitlines()[-1:] == complaint.get(last, [])
