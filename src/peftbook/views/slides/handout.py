"""Handout and contact sheet: what LibreOffice makes of the deck, one page of slide and notes for each slide."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from peftbook.core.errors import InputError
from peftbook.core.records import write_atomically
from peftbook.views.slides.template import HEIGHT, WIDTH

NOTES = 'pdf:impress_pdf_Export:{"ExportNotesPages":{"type":"boolean","value":"true"},' \
    '"ExportOnlyNotesPages":{"type":"boolean","value":"true"}}'  # fmt: skip
MINUTES = 10
DPI = 110
COLUMNS, THUMB, GAP = 5, 560, 14  # pixels
PAGE, IMAGE = (7.5, 10.0), (0.5, 0.55, 7.0, 4.21)  # inches: a page of notes, and the slide on it


def find_office() -> str | None:
    """LibreOffice with the two programs of poppler that read what it prints, or None."""
    return shutil.which("soffice") if all(map(shutil.which, ("pdftoppm", "pdfinfo"))) else None


def convert(source: Path, folder: Path, to: str = "pdf") -> Path:
    """The file as LibreOffice saves it. Raises InputError if it does not open or save it."""
    office = find_office()
    if office is None:
        raise InputError("LibreOffice is not here: install libreoffice-impress and poppler-utils.")
    with tempfile.TemporaryDirectory() as profile:
        command = [office, "--headless", f"-env:UserInstallation=file://{profile}", "--convert-to", to]
        command += ["--outdir", str(folder), str(source)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    made = folder / f"{source.stem}.{to.partition(':')[0]}"
    if process.returncode or not made.is_file():
        raise InputError(
            f"LibreOffice could not convert {source.name}: {(process.stderr or process.stdout).strip()[-200:]}"
        )
    return made


def handout(deck: Path, out: Path) -> Path:
    """Write the handout, a PDF with a page of slide and notes for each slide."""
    with tempfile.TemporaryDirectory() as folder:
        write_atomically(out, convert(deck, Path(folder), NOTES).read_bytes())
    return out


def contact_sheet(handout: Path, out: Path) -> Path:
    """Write all slides on one PNG, cut from the pages of the handout."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["pdftoppm", "-r", str(DPI), str(handout), f"{folder}/page"], check=True, timeout=60 * MINUTES)
        pages = [Image.open(path).convert("RGB") for path in sorted(Path(folder).glob("page-*.ppm"))]
    left, top, right, bottom = (round(inches * DPI) for inches in IMAGE)
    size = THUMB, round(THUMB * HEIGHT / WIDTH)
    thumbs = [page.crop((left, top, right, bottom)).resize(size, Image.Resampling.LANCZOS) for page in pages]
    rows = math.ceil(len(thumbs) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (size[0] + GAP) + GAP, rows * (size[1] + GAP + 18) + GAP), "#8d939a")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for at, thumb in enumerate(thumbs):
        x, y = GAP + at % COLUMNS * (size[0] + GAP), GAP + at // COLUMNS * (size[1] + GAP + 18)
        sheet.paste(thumb, (x, y))
        pen.text((x, y + size[1] + 2), str(at + 1), fill="#14181d", font=font)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        sheet.save(path, optimize=True)
        write_atomically(out, path.read_bytes())
    return out
