"""One session in the studio, from upload to download, on data that nobody here wrote, with times and pictures.

    PYTHONPATH=tests python tests/tools/session_studio.py [--rows 500] [--tokens 50000] [--pictures book/assets/images]

Functions of CPython's own standard library and the first sentences of their docstrings, split by module: the embedded
model untuned, with LoRA and with prompt tuning. Not collected by pytest: it trains for minutes. Prints what each step
took, the recommendation and the scores; the chapter on your own data shows three of the pictures.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import io
import os
import random
import shutil
import signal
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import docstrings_build as build
from test_studio import DESKTOP, open_step, start, stop, until

from peftbook.studio.store import Studio

WEBP, WIDTH, MARGIN = 70, 960, 32  # quality; pixels of a picture's width; those of the page below the last thing on it
LONGEST = 3_600_000  # ms, for all trainings


def pairs(rows: int) -> list[tuple[str, str, str]]:
    """(module, function, first sentence of its docstring), drawn with a fixed seed."""
    rows_of_code, library = [], Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.glob("*.py")):
        text = path.read_text("utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(text)
        lines = text.splitlines(keepends=True)
        for _, node in build.functions(tree):
            docstring = ast.get_docstring(node, clean=False)
            source = build.strip_function(lines, node) if docstring else None
            if docstring and source:
                sentence = build.first_sentence(docstring)
                if not (build.source_fault(source, node) or build.target_fault(sentence)):
                    rows_of_code.append((path.stem, source, sentence))
    return random.Random(0).sample(rows_of_code, min(rows, len(rows_of_code)))


def file_of(rows: list[tuple[str, str, str]]) -> bytes:
    """As CSV."""
    written = io.StringIO()
    csv.writer(written).writerows([("module", "function", "summary"), *rows])
    return written.getvalue().encode()


def picture(page, path: Path, before: str = "") -> None:
    """The page as it is, down to the last thing on it or to what is named, as WebP."""
    from PIL import Image, ImageChops

    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as taken:
        image = taken.convert("RGB")
    paper = Image.new("RGB", image.size, image.getpixel((2, image.height - 2)))
    cut = round(page.get_by_text(before).bounding_box()["y"]) - MARGIN if before else image.height
    _, _, _, bottom = ImageChops.difference(image, paper).point(lambda value: 255 * (value > 12)).getbbox()
    image = image.crop((0, 0, image.width, min(cut, bottom + MARGIN)))
    image.thumbnail((WIDTH, image.height))
    image.save(path, "WEBP", quality=WEBP, method=6)


@contextlib.contextmanager
def timed(words: str, times: dict[str, float]) -> Iterator[None]:
    """Notes and prints how long a step took."""
    began = time.monotonic()
    yield
    times[words] = time.monotonic() - began
    print(f"{words:<44} {times[words]:8.1f} s", flush=True)


def play(page, rows: bytes, tokens: int, pictures: Path, downloads: Path) -> None:
    """Upload, plan, train, decide, try, take away."""
    times: dict[str, float] = {}
    with timed("upload, and what was read", times):
        page.set_input_files("#file", {"name": "stdlib.csv", "mimeType": "text/csv", "buffer": rows})
        page.wait_for_selector("#live .facts")
    for label, column in (("Input", "function"), ("Target", "summary"), ("Group", "module")):
        page.get_by_label(label, exact=True).select_option(column)
    page.get_by_label("Project name").fill("stdlib docstrings")
    page.wait_for_timeout(1500)
    picture(page, pictures / "studio-data.webp")
    with timed("project with its split", times):
        page.click("#create")
        page.wait_for_selector("nav.steps")
    open_step(page, "plan")
    page.get_by_role("checkbox", name="Prompt tuning").check()
    page.click("#advanced summary")
    page.get_by_label("Training tokens").fill(str(tokens))
    with timed("check of the plan", times):
        page.click("#check")
        page.wait_for_selector("button[name=queue]", timeout=LONGEST)
    page.click("button[name=queue]")
    with timed("untuned, LoRA, prompt tuning", times):
        page.wait_for_selector(".job-running svg.curve", timeout=LONGEST)
        until(page, "document.querySelectorAll('.job-done').length === 3", timeout=LONGEST)
    with timed("decision", times):
        open_step(page, "decision")
    picture(page, pictures / "studio-decision.webp", before="What this table cannot tell you")
    print(page.inner_text(".verdict .words"))
    print(page.inner_text("table.decision"))
    open_step(page, "try")
    with timed("two models answer a row", times):
        page.click("#try-row")
        page.wait_for_selector(".said-target")
        page.click("#try-go")
        until(
            page,
            "!document.querySelector('.caret, .side-by-side .loading')"
            " && document.querySelectorAll('.side-by-side .said').length === 2",
            timeout=LONGEST,
        )
    picture(page, pictures / "studio-try.webp")
    open_step(page, "files")
    with timed("adapter", times), page.expect_download() as waiting:
        page.locator(".take a", has_text="Adapter").first.click()
    waiting.value.save_as(downloads / "adapter.zip")
    with timed("merged model", times):
        page.locator(".take button", has_text="Merged model").first.click()
        page.wait_for_selector(".note-good a[download]", timeout=LONGEST)
        with page.expect_download() as waiting:
            page.click(".note-good a[download]")
        waiting.value.save_as(downloads / "model.zip")
    for path in sorted(downloads.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    print(f"{'in all':<44} {sum(times.values()):8.1f} s")


def main() -> None:
    """A studio on an empty home, a browser, and the session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=50_000, help="that each method trains on")
    parser.add_argument("--pictures", type=Path, help="where the pictures go (default: a temporary folder)")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    home, downloads = Path(tempfile.mkdtemp(prefix="peftbook-session-")), Path(tempfile.mkdtemp())
    pictures = args.pictures or Path(tempfile.mkdtemp(prefix="peftbook-pictures-"))
    process, address = start(home)
    chromium = os.environ.get("PEFTBOOK_CHROMIUM") or shutil.which("chromium")
    try:
        with sync_playwright() as playwright:
            options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            with playwright.chromium.launch(executable_path=chromium, args=options) as browser:
                page = browser.new_context(viewport=DESKTOP, accept_downloads=True).new_page()
                page.goto(address)
                page.wait_for_selector("#live .empty")
                play(page, file_of(pairs(args.rows)), args.tokens, pictures, downloads)
        print(f"pictures: {pictures}")
    finally:
        stop(process)
        for worker in Studio(home).workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)


if __name__ == "__main__":
    main()
