"""Shared by all tests: where the repository is, the built site, and what to do where a browser is missing."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from peftbook.core.folders import results_folder
from peftbook.core.quiet import gc_paused
from peftbook.core.records import SHIPPED, Store
from peftbook.studies import get_study

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "_build/test-results"
YOURS = results_folder()
os.environ["PEFTBOOK_RESULTS"] = str(RESULTS)  # a test that bends a rule leaves yours alone
BROWSERS = ("chromium-headless-shell", "chromium")  # the first draws no window of its own, with half the work
PAGES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OWN_PRODUCTS = ("test_precision", "test_products")
TAKES = {"slow": 10, "browser": 1}  # marker → about how many seconds
NEEDS = {
    "browser": (
        lambda: os.environ.get("PEFTBOOK_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None),
        "Chromium: `apt-get install chromium`, or set PEFTBOOK_CHROMIUM to one",
    ),
    "epubcheck": (lambda: shutil.which("epubcheck"), "EPUBCheck 5: Java, and a command `epubcheck` for its jar"),
    "node": (lambda: shutil.which("node"), "Node.js: `apt-get install nodejs`"),
    "office": (lambda: shutil.which("soffice"), "LibreOffice: `apt-get install libreoffice-impress poppler-utils`"),
    "systemd": (lambda: shutil.which("systemd-analyze"), "systemd: its command `systemd-analyze`"),
}


def pytest_configure(config: pytest.Config) -> None:
    """Tests begin with the results that you have; each holds as long as what it rests on, whoever wrote it."""
    if hasattr(config, "workerinput") or RESULTS.resolve() == YOURS.resolve():
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for entry in YOURS.glob("*.json"):
        mine = RESULTS / entry.name
        if not mine.exists() or mine.stat().st_mtime < entry.stat().st_mtime:
            shutil.copy2(entry, RESULTS)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector walks through nothing of what the test files import, now or during the tests, and seldom through
    what tests make: an eighth of their time went into that.
    """
    gc.set_threshold(50_000, 20, 20)
    with gc_paused():
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose program this machine lacks; files that take long come first, so that none is last."""
    seconds = Counter[Path]()
    for item in items:
        seconds[item.path] += sum(many for marker, many in TAKES.items() if item.get_closest_marker(marker))
    items.sort(key=lambda item: -seconds[item.path])
    for marker in missing():
        left_out = [item for item in items if item.get_closest_marker(marker)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what this machine lacks and how to get it."""
    for marker in missing():
        terminalreporter.write_line(f"LEFT OUT: tests that need {NEEDS[marker][1]}.", yellow=True)


def missing() -> list[str]:
    """The markers whose program is not here."""
    return [marker for marker, (find, _) in NEEDS.items() if not find()]


def copy_records(folder: Path, *studies: str) -> Store:
    """A store with the shipped records of these studies and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in studies:
        for record in get_study(name).records(Store(SHIPPED)):
            for path in SHIPPED.glob(f"{record.short_key}.*"):
                shutil.copy2(path, folder)
    return Store(folder)


def wait_for(condition: Callable[[], object], seconds: float = 120.0, pause: float = 0.05) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause)


@pytest.fixture(autouse=True, scope="session")
def files_not_for_a_power_cut() -> Iterator[None]:
    """The tests write some ten thousand records, and nobody waits until each is on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """What a test lets torch compute with ends with it: two threads beside another worker slow all later tests."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    yield
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def products_as_in_training(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a processor without instructions for bfloat16 multiplies, it multiplies as training does there, ten times as
    fast; but for the tests of that.
    """
    if "torch" not in sys.modules or request.module.__name__ in OWN_PRODUCTS:
        yield
        return
    from peftbook.training.products import half_products

    with half_products():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny model's, with the embedded model's tokenizer. No test changes it."""
    from tiny import save_tiny_folder

    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser."""
    browser = NEEDS["browser"][0]()
    assert browser is not None
    return browser


@pytest.fixture(scope="module")
def browser(chromium):
    """One for the tests of a file, each of which has a page of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium, args=PAGES
    ) as browser:  # fmt: skip
        yield browser


@pytest.fixture(scope="session")
def built_site() -> Path:
    """The HTML site: the one at hand if it was built from these sources without a warning, else built now.

    Of the processes that run the tests one builds it, and the others wait.
    """
    from peftbook.views.site.freshness import is_fresh

    site = ROOT / "_build" / "html"
    site.parent.mkdir(exist_ok=True)
    with FileLock(site.parent / "html.lock"):
        if not is_fresh(site, ROOT):
            options = ["build", ".", "--all", "-W", "-n", "--keep-going"]
            command = [Path(sys.executable).with_name("jupyter-book"), *options]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    return site
