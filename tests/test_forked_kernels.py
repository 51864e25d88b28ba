"""Forked kernels of chapters: each a process and a namespace of its own, with the libraries and without the package."""

from __future__ import annotations

import os
import sys

import nbformat
import psutil
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from peftbook.runtime.fork_server import AVAILABLE
from peftbook.views.site import prefetch
from peftbook.views.site.execution import STARTUP

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="kernels are forked on Linux alone")


@pytest.fixture(scope="module")
def manager():
    """The kernel managers of one server for all of these tests."""
    with prefetch.kernel_managers({"OMP_NUM_THREADS": "1"}) as manager:
        yield manager


def executed(manager, folder, *cells: str, **variables: str) -> list[str]:
    """What each cell printed, in a kernel of their own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, kernel_manager_class=manager, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, **variables})
    return ["".join(output.get("text", "") for output in cell.outputs).strip() for cell in notebook.cells]


def test_each_kernel_is_its_own(manager, tmp_path):
    """Its process, folder, environment and names; what one kernel does to a module another does not see."""
    cells = ["import os, torch\nprint(os.getpid(), os.getcwd(), os.environ['OURS'])", "print(hasattr(torch, 'bent'))",
             "torch.bent = os.environ['BENT'] = secret = 1 and '1'"]  # fmt: skip
    first, second = (executed(manager, tmp_path, *cells, OURS=name) for name in "ab")
    (one, *there), (other, *here) = first[0].split(), second[0].split()
    assert one != other and there == [str(tmp_path), "a"] and here == [str(tmp_path), "b"]
    assert first[1] == second[1] == "False"
    assert not psutil.pid_exists(int(one)) and not psutil.pid_exists(int(other))


def test_a_kernel_has_the_libraries_and_not_the_package(manager, tmp_path):
    """Else every chapter would seem to use every module of the package."""
    loaded = executed(manager, tmp_path, "import sys\nprint(*sys.modules, sep='\\n')")[0].split("\n")
    assert set(prefetch.LIBRARIES) <= set(loaded)
    assert not [name for name in loaded if name.startswith("peftbook")]


def test_a_chapter_executed_alone_has_no_complaint_of_tqdm(tmp_path):
    """Its kernel is not forked, and imports the libraries while it is watched; what stands on stderr fails a build."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from tqdm.auto import tqdm")])
    traced = {"PYTHONSTARTUP": str(STARTUP), "PEFTBOOK_TRACE": str(tmp_path / "trace"), "PEFTBOOK_TRACE_ROOTS": "none"}
    NotebookClient(notebook).execute(env={**os.environ, **traced})
    assert notebook.cells[0].outputs == []


def test_a_kernel_draws_starts_processes_and_computes(manager, tmp_path):
    """A figure comes as a picture, a child gives its status, a product of matrices is right on one thread."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import matplotlib.pyplot as p\np.plot([1])")])
    NotebookClient(notebook, kernel_manager_class=manager).execute(env=dict(os.environ))
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[0].outputs)
    said = executed(
        manager, tmp_path,
        f"import subprocess\nprint(subprocess.run([{sys.executable!r}, '-c', 'exit(3)']).returncode)",
        "import torch\na = torch.rand(9, 9)\nprint(torch.get_num_threads(), float((a @ a.inverse()).trace().round()))",
    )  # fmt: skip
    assert said == ["3", "1 9.0"]


def test_what_a_kernel_cleans_up_at_its_end_is_cleaned_up(manager, tmp_path):
    """It ends without interpreter teardown, but not without the hooks that were registered for its end."""
    executed(manager, tmp_path, "import atexit, pathlib\natexit.register(pathlib.Path('ended').write_text, 'yes')")
    assert (tmp_path / "ended").read_text() == "yes"


def test_a_kernel_that_dies_is_noticed_and_the_next_one_runs(manager, tmp_path):
    """As a kernel that Jupyter started would be."""
    with pytest.raises(DeadKernelError):
        executed(manager, tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert executed(manager, tmp_path, "print(1 + 1)") == ["2"]


def test_a_server_that_died_is_reported_as_a_dead_kernel(tmp_path, monkeypatch):
    """So that the chapter is left to MyST-NB, as when a kernel dies."""
    monkeypatch.setattr(prefetch, "LIBRARIES", ("no_such_library",))
    with prefetch.kernel_managers({}) as manager:
        server = manager().provisioner.server
        server.process.kill()
        server.process.wait()
        with pytest.raises(DeadKernelError):
            executed(manager, tmp_path, "1")
