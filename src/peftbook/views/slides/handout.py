"""The handout: what LibreOffice makes of the deck, one page of slide and notes for each slide."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from peftbook.core.errors import InputError
from peftbook.core.records import write_atomically

NOTES = 'pdf:impress_pdf_Export:{"ExportNotesPages":{"type":"boolean","value":"true"},' \
    '"ExportOnlyNotesPages":{"type":"boolean","value":"true"}}'  # fmt: skip
MINUTES = 10


def find_office() -> str | None:
    """LibreOffice, or None."""
    return shutil.which("soffice")


def convert(source: Path, folder: Path, to: str = "pdf") -> Path:
    """The file as LibreOffice saves it. Raises InputError if it does not open or save it."""
    office = find_office()
    if office is None:
        raise InputError("LibreOffice is not here: install libreoffice-impress.")
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
