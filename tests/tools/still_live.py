"""The deck's picture of a training in the page: the smallest form on the built site, trained to its end.

    make book && PYTHONPATH=tests python tests/tools/still_live.py [--out slides/stills/train-it-here.png]

Not collected by pytest: its product is committed. It prints how wide the slide has to show it.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from conftest import NEEDS
from PIL import Image
from playwright.sync_api import sync_playwright

from peftbook.views.slides.pictures import as_png
from peftbook.views.slides.template import SMALL

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 600_000  # ms
WIDTH, EDGE = 420, 6  # CSS pixels of the window, and of paper left around the picture
SEEN = """() => {
  const stage = document.querySelector(".live-small .explorer-stage"), box = stage.getBoundingClientRect();
  const type = [...stage.querySelectorAll("text")].map((one) => parseFloat(getComputedStyle(one).fontSize));
  return { x: box.x, y: box.y + scrollY, width: box.width, height: box.height, type: Math.min(...type) };
}"""


def main(out: Path) -> None:
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=NEEDS["browser"][0](), args=["--no-sandbox", "--disable-gpu"]
    ) as browser:  # fmt: skip
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=6)
        page.goto((ROOT / "_build/html/book/index.html").as_uri())
        page.locator(".live-small").get_by_role("button", name="Train").click()
        status = page.locator(".live-small").get_by_role("status")
        status.filter(has_text="This agrees with the record").wait_for(timeout=LONGEST)
        seen = page.evaluate(SEEN)
        clip = {"x": seen["x"] - EDGE, "y": seen["y"] - EDGE, "width": seen["width"] + 2 * EDGE}
        shot = page.screenshot(full_page=True, clip=clip | {"height": seen["height"] + 2 * EDGE})
    inches = SMALL / 72 * (seen["width"] + 2 * EDGE) / seen["type"]
    with Image.open(io.BytesIO(shot)) as taken:
        image = taken.convert("RGB")
    out.write_bytes(as_png(image))
    print(f"{image.width} × {image.height} pixels; from {inches:.2f} in of width its type has {SMALL} pt.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "slides/stills/train-it-here.png")
    main(parser.parse_args().out)
