"""Records: one small JSON file for each run, written once and never edited.

A record holds the spec that defines the run, its key, what was measured (units in the names) and where it was made.
Generated texts lie beside it as `<key>.texts.json.gz`. A checksum over the whole record, texts included, is checked
on every load.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftbook.core.errors import InputError
from peftbook.core.folders import PACKAGE
from peftbook.core.specs import Probe, Run
from peftbook.core.tracking import record_lookups, record_reads, untracked

SCHEMA = 1
CACHED_RECORDS = 2048  # a record at hand is read from disk once a process
SHIPPED = PACKAGE / "records"


class Record(BaseModel):
    """What one run measured and where.

    measurements: numbers with units in their names (`validation_loss_nats`, `train_seconds`, `peak_memory_bytes`).
    curve: training loss by step, nats per label token.
    per_example: lists in example order (`loss_nats`, `label_tokens`, `rouge_l`, …), for paired comparison.
    metrics_info: what a score depends on (BERTScore's encoder, layer and hash; ROUGE's settings).
    provenance: hardware, threads, library versions, commit, dates; nothing here changes the result's meaning.
    failure: empty, or what stopped the run (a diverged run is a result).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    key: str
    spec: Run | Probe
    measurements: dict[str, float | int | None] = Field(default_factory=dict)
    curve: dict[str, list[float]] = Field(default_factory=dict)
    per_example: dict[str, list[float] | list[str]] = Field(default_factory=dict)
    metrics_info: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    failure: str = ""
    texts_sha256: str = ""
    checksum: str = ""

    @cached_property
    def short_key(self) -> str:
        """The first twelve digits: file name, page name, what a reader cites."""
        return self.key[:12]

    @property
    def wall_seconds(self) -> float | None:
        """Seconds from start to end of the run, by its provenance; None if that does not say."""
        try:
            began, ended = (datetime.datetime.fromisoformat(self.provenance[name]) for name in ("started", "finished"))
        except (KeyError, TypeError, ValueError):
            return None
        return (ended - began).total_seconds()

    @property
    def hardware(self) -> str:
        """What the run ran on, for people: the GPU, or the processor with its cores."""
        if self.spec.platform == "cuda":
            return str(self.provenance.get("gpu", ""))
        cores = self.provenance.get("cores")
        return f"{self.provenance.get('cpu', 'CPU')}{f', {cores} cores' if cores else ''}"


def write_atomically(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Write through a temporary file and a rename: readers see the old file or the whole new one.

    lasting: fsync first, so that the file survives a power cut; not needed for files that are verified and can be made
    again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            if lasting:
                os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Missing(InputError):  # noqa: N818  # not an error: what rests on the run waits
    """A run has no record yet, so results that need it are unknown."""

    def __init__(self, run: Run | Probe, sentence: str = ""):
        key = run.key[:12]
        super().__init__(sentence or f"Run {key} has no record yet: run `peftbook run --key {key}`.")
        self.run = run


class Unusable(Missing):
    """All runs have records, but one failed or holds too little; the message says which."""


class Store:
    """Records in folders: read from all of them in order, written to the last.

    platform, machine: a store with a platform answers for each run as if it were made there (`on`).
    """

    def __init__(self, *folders: Path, platform: str = "", machine: str = ""):
        self.folders = folders
        self.platform = platform
        self.machine = machine

    def on(self, platform: str, machine: str = "") -> Store:
        """The same records seen from a platform: a study asks for its CPU runs and gets those of the platform.

        machine: the machine name of timing runs there; by default the most frequent one in the platform's timing
        records at hand.
        """
        if platform == "cpu" and not machine:
            return Store(*self.folders)
        return Store(*self.folders, platform=platform, machine=machine or self._timed_machine(platform))

    def _timed_machine(self, platform: str) -> str:
        with untracked():
            specs = [one.spec for one in self.all()]
        timed = [one.machine for one in specs if (one.platform, one.purpose) == (platform, "timing")]
        return max(sorted(set(timed)), key=timed.count, default="")

    def spec(self, run: Run | Probe) -> Run | Probe:
        """The run as this store sees it: on its platform, a probe with the runs that it trains or reads."""
        if not self.platform:
            return run
        changes: dict[str, Any] = {"platform": self.platform}
        if run.purpose == "timing" and self.machine:
            changes["machine"] = self.machine
        if isinstance(run, Probe):
            changes["runs"] = tuple(self.spec(one) for one in run.runs)
        return run.model_copy(update=changes)

    def path(self, key: str) -> Path | None:
        """The file that holds this key, or None."""
        found = self._find(key)
        return None if found is None else found[0]

    def _find(self, key: str) -> tuple[Path, os.stat_result] | None:
        """The file and its state."""
        paths = [folder / f"{key[:12]}.json" for folder in self.folders]
        record_lookups(paths)
        for path in paths:
            with suppress(OSError):
                if stat.S_ISREG((state := os.stat(path)).st_mode):  # noqa: PTH116 — a command asks for thousands
                    return path, state
        return None

    def get(self, run: Run | Probe) -> Record | None:
        """The record of a run, checked, or None."""
        if (found := self._find(self.spec(run).key)) is None:
            return None
        path, state = found
        record = _load_record(path, state.st_mtime_ns, state.st_size, state.st_ino)
        record_reads((record.key,))
        return record

    def need(self, run: Run | Probe) -> Record:
        """The record of a run. Raises Missing where there is none."""
        if (record := self.get(run)) is None:
            raise Missing(run)
        return record

    def need_all(self, runs: Iterable[Run | Probe]) -> list[Record]:
        """The records of these runs, in their order. Raises Missing where there is none of one."""
        return [self.need(run) for run in runs]

    def __contains__(self, run: Run | Probe) -> bool:
        return self.path(self.spec(run).key) is not None

    def texts(self, record: Record) -> list[str]:
        """The generated texts of a record, in example order; checked against the record's hash."""
        path = self.path(record.key)
        if path is None or not record.texts_sha256:
            return []
        record_reads([record.key])
        record_lookups([path.with_suffix(".texts.json.gz")])
        try:
            raw = gzip.decompress(path.with_suffix(".texts.json.gz").read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"The texts of record {record.short_key} cannot be read ({error}): restore or rerun it."
            ) from None
        if hashlib.sha256(raw).hexdigest() != record.texts_sha256:
            raise InputError(f"The texts of record {record.short_key} do not match its hash: restore or rerun it.")
        return json.loads(raw)

    def save(self, record: Record, texts: list[str] | None = None) -> Record:
        """Write a record (texts first, so that a record on disk is always whole) and return it with its checksum."""
        folder = self.folders[-1]
        if texts is not None:
            raw = json.dumps(texts, ensure_ascii=False).encode()
            record = record.model_copy(update={"texts_sha256": hashlib.sha256(raw).hexdigest()})
            write_atomically(folder / f"{record.key[:12]}.texts.json.gz", gzip.compress(raw, mtime=0))
        values = record.model_dump(mode="json")
        values["checksum"] = _checksum(values)
        write_atomically(folder / f"{record.key[:12]}.json", f"{_indented(values)}\n".encode())
        return record.model_copy(update={"checksum": values["checksum"]})

    def all(self) -> Iterable[Record]:
        """Every record, each key once, in key order."""
        return self.others(())

    def others(self, keys: Iterable[str]) -> Iterable[Record]:
        """Every record whose file is not called by one of these keys, each once, in key order; only those are read."""
        known = {f"{key[:12]}.json" for key in keys}
        paths: dict[str, Path] = {}
        for folder in self.folders:
            for path in folder.glob("*.json"):
                if path.name not in known:
                    paths.setdefault(path.name, path)
        record_lookups([*self.folders, *paths.values()])
        for name in sorted(paths):
            record = load_record(paths[name])
            record_reads([record.key])
            yield record


def _checksum(values: dict[str, Any]) -> str:
    """SHA-256 over a record's canonical JSON without the checksum field."""
    body = {name: value for name, value in values.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _indented(value: Any, margin: str = "\n") -> str:
    """JSON with an item a line and sorted keys, but each list of plain values on one line: a record's diff is readable.

    margin: the end of a line and its indent. (Python's own is slow with an indent.)
    """
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(name)}: {_indented(value[name], margin + ' ')}" for name in sorted(value)]
        return f"{{{margin} {f',{margin} '.join(lines)}{margin}}}"
    if isinstance(value, list) and any(map(_is_long, value)):
        return f"[{margin} {f',{margin} '.join(_indented(item, margin + ' ') for item in value)}{margin}]"
    return json.dumps(value, separators=(",", ":"))


def _is_long(item: Any) -> bool:
    """Whether it has items itself, or is the text of what has."""
    return isinstance(item, dict | list) or (isinstance(item, str) and item.startswith("{"))


FIX = "restore it from version control, or delete it and run `peftbook run`"


def load_record(path: Path) -> Record:
    """Read and check one record: schema, key against spec, checksum. Raises InputError naming the file and the fix."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"Record {path.name} is corrupted ({error}): {FIX}.") from None
    return _load_record(path, state.st_mtime_ns, state.st_size, state.st_ino)


@lru_cache(CACHED_RECORDS)
def _load_record(path: Path, *state: int) -> Record:
    """`state` differs when the file has changed."""
    try:
        return check_record(path.name, path.read_bytes())
    except OSError as error:
        raise InputError(f"Record {path.name} is corrupted ({error}): {FIX}.") from None


def check_record(name: str, data: bytes) -> Record:
    """The record in `data`, whose file is called `<first digits of its key>.json`. Raises InputError."""
    try:
        record = Record.model_validate_json(data)
    except (ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Record {name} is corrupted ({reason}): {FIX}.") from None
    if record.schema_version != SCHEMA:
        raise InputError(f"Record {name} has schema {record.schema_version}, this version reads {SCHEMA}: {FIX}.")
    if record.key != record.spec.key or not record.key.startswith(name.removesuffix(".json")):
        raise InputError(f"Record {name} is stale: its key is not the hash of its spec; {FIX}.")
    if record.checksum != _checksum(record.model_dump(mode="json")):
        raise InputError(f"Record {name} was changed after it was written (checksum differs): {FIX}.")
    return record


def default_store() -> Store:
    """Shipped records plus where new ones go: the checkout if this is one, else the user's data folder.

    `PEFTBOOK_RECORDS` names another folder for new records.
    """
    if folder := os.environ.get("PEFTBOOK_RECORDS"):
        return Store(SHIPPED, Path(folder))
    if (SHIPPED.parents[2] / "pyproject.toml").is_file() and os.access(SHIPPED, os.W_OK):
        return Store(SHIPPED)
    import platformdirs

    return Store(SHIPPED, Path(platformdirs.user_data_dir("peftbook")) / "records")
