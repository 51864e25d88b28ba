"""Build the table of huggingface/peft's public runs on MetaMathQA from the history of its repository.

    python tests/tools/public_runs.py GIT_DIRECTORY [COMMIT]

Source: https://github.com/huggingface/peft, Apache License 2.0, the result files of `method_comparison/MetaMathQA`. A
rerun overwrites the file of its configuration, so every version of every file in the history of COMMIT is read.

Two JSON Lines files are written to `src/peftbook/data/public_runs`, a run a line, in the order of configuration and
start. `settings.jsonl` holds what was set before a run, `outcomes.jsonl` what was measured, so that criteria can be
written by people who read only the first. The first line of each holds the source and the fields that all lines share.

A run is an experiment and the second of its start. A later version of a file with the same two is a copy: it must say
the same, and only its blob is noted. Nothing is rounded. Left out of the settings are fields without a value, the
version of peft that wrote a configuration file, and AdaLoRA's `rank_pattern`, which training computes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.evidence.public_runs import PUBLIC_RUNS

__all__ = ["build"]

REPOSITORY = "https://github.com/huggingface/peft"
COMMIT = "5d602fdbff04c33c1c4de55cda9d4ae1d7cb7e40"
BENCHMARK = "method_comparison/MetaMathQA"
FOLDERS = {"results": "results", "temporary_results": "temporary", "cancelled_results": "cancelled"}
HARNESS = ("data.py", "run.py", "utils.py")
ID_DIGITS = 12
SETS = ("exclude_modules", "feedforward_modules", "target_modules")  # sets in peft: the order in a file has no meaning
FILE_FIELDS = {"blob", "commit", "committed", "folder", "id", "path"}  # of a version of a file, not of its run

# Our name → the names in the files, under "train_info".
TRAIN_INFO = {
    "peak_reserved_bytes": ("accelerator_memory_max", "cuda_memory_max"),
    "mean_reserved_bytes": ("accelerator_memory_reserved_avg", "cuda_memory_reserved_avg"),
    "reserved_bytes_99th": ("accelerator_memory_reserved_99th", "cuda_memory_reserved_99th"),
    "train_seconds": ("train_time",),
    "file_size_bytes": ("file_size",),
    "trainable_parameters": ("num_trainable_params",),
    "total_parameters": ("num_total_params",),
}
# The same in the element of "train_info.metrics" that has the test accuracy.
TEST = {"test_accuracy": "test accuracy", "train_tokens": "train total tokens", "forgetting": "forgetting"}
# The same in the elements that have a validation accuracy; each is a list of [step, value].
CURVES = {"validation_accuracy": "valid accuracy", "train_loss": "train loss"}


def git(directory: Path, *words: str) -> str:
    """Output of a git command. Raises InputError with git's message if it fails."""
    command = ["git", f"--git-dir={directory}", "-c", "core.quotePath=false", *words]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        raise InputError(f"git {words[0]} in {directory}: {result.stderr.strip()}")
    return result.stdout


def is_ancestor(directory: Path, commit: str, descendant: str) -> bool:
    """Is a commit part of the history of another? False too if the repository does not have it."""
    command = ["git", f"--git-dir={directory}", "merge-base", "--is-ancestor", commit, descendant]
    return not subprocess.run(command, capture_output=True, check=False).returncode


@dataclass(frozen=True)
class FileVersion:
    """A version of a result file: its blob, and the commit that added it, with the committer's date in UTC."""

    path: str
    blob: str
    commit: str
    committed: str

    @property
    def folder(self) -> str:
        """Kind of folder: results, temporary or cancelled."""
        return FOLDERS[self.path.removeprefix(f"{BENCHMARK}/").partition("/")[0]]


def file_versions(directory: Path, commit: str) -> Iterator[FileVersion]:
    """Every blob of a result file once, at its first commit: parents before children, then by path."""
    # Without --no-renames a file that moved would be listed under two names; -m lists what a merge adds.
    options = ["--reverse", "--topo-order", "--full-history", "-m", "--no-renames", "--raw", "--no-abbrev"]
    paths = [f"{BENCHMARK}/{folder}" for folder in FOLDERS]
    blobs = set()
    added_by, committed = "", ""
    for line in git(directory, "log", *options, "--format=commit %H %ct", commit, "--", *paths).splitlines():
        if line.startswith("commit "):
            _, added_by, seconds = line.split()
            committed = datetime.fromtimestamp(int(seconds), UTC).isoformat()
        elif line.startswith(":"):
            fields, path = line.split("\t")
            blob, change = fields.split()[3:]
            if path.endswith(".json") and change != "D" and blob not in blobs:
                blobs.add(blob)
                yield FileVersion(path, blob, added_by, committed)


def configuration(experiment: str, model: str) -> str:
    """Name of a configuration: `lora/llama-3.2-3B-rank32` of `meta-llama/Llama-3.2-3B` is `lora--rank32`."""
    method, _, name = experiment.partition("/")
    base = re.escape(model.rpartition("/")[2])
    return f"{method}--{re.sub(rf'^{base}-', '', name, flags=re.IGNORECASE)}"


def plain(value: Any) -> Any:
    """The value with keys in order and without keys that have no value."""
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value) if value[key] is not None}
    return value


def adapter_settings(peft_config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The adapter's configuration as it was set; None for full fine-tuning."""
    if peft_config is None:
        return None
    dropped = {"peft_version"} | ({"rank_pattern"} if peft_config["peft_type"] == "ADALORA" else set())
    return {
        key: sorted(value) if key in SETS and isinstance(value, list) else value
        for key, value in peft_config.items()
        if key not in dropped
    }


def library_versions(package_info: Mapping[str, str | None]) -> dict[str, str | None]:
    """Library → version, and library with `_commit` → commit where it was installed from a checkout."""
    return {
        key.replace("-version", "").replace("-commit-hash", "_commit"): value for key, value in package_info.items()
    }


def harness(directory: Path, commit: str, peft_commit: str | None) -> dict[str, str] | None:
    """File of the benchmark → its blob at the commit that ran; None if the history does not have that commit."""
    if peft_commit is None or not is_ancestor(directory, peft_commit, commit):
        return None
    names = [f"{peft_commit}:{BENCHMARK}/{name}" for name in HARNESS]
    blobs = git(directory, "rev-parse", *names).split()
    return {name: blob[:ID_DIGITS] for name, blob in zip(HARNESS, blobs, strict=True)}


def settings_row(record: Mapping[str, Any], version: FileVersion) -> dict[str, Any]:
    """What was set before the run, and where its file is; the harness is added by `read_runs`."""
    run, measured, meta = record["run_info"], record["train_info"], record["meta_info"]
    system = meta["system_info"]
    row = {
        "id": version.blob[:ID_DIGITS],
        "configuration": configuration(run["experiment_name"], run["train_config"]["model_id"]),
        "created_at": run["created_at"],
        "status": measured["status"],
        "experiment": run["experiment_name"],
        "folder": version.folder,
        "path": version.path,
        "blob": version.blob,
        "commit": version.commit,
        "committed": version.committed,
        "branch": run["peft_branch"],
        "model_sha": meta["model_info"]["sha"],
        "datasets": {name: info["sha"] for name, info in meta["dataset_info"].items()},
        "versions": library_versions(meta["package_info"]),
        "accelerator": system.get("accelerator", system.get("gpu")),
        "trainable_parameters": measured.get("num_trainable_params"),
        "total_parameters": measured.get("num_total_params"),
        "train_config": run["train_config"],
        "peft_config": adapter_settings(run["peft_config"]),
    }
    return {key: plain(value) for key, value in row.items() if value is not None}


def outcome_row(record: Mapping[str, Any], version: FileVersion) -> dict[str, Any]:
    """What was measured, under one set of names, and `called`: our name → its place in the file.

    A run without success has its status only. Raises InputError if a successful run has not exactly one test.
    """
    measured = record["train_info"]
    row: dict[str, Any] = {"id": version.blob[:ID_DIGITS], "status": measured["status"]}
    if measured["status"] != "success":
        return row
    tests = [entry for entry in measured["metrics"] if "test accuracy" in entry]
    if len(tests) != 1:
        raise InputError(f"{version.path} at {version.commit[:ID_DIGITS]} has {len(tests)} test accuracies.")
    row["total_seconds"] = record["run_info"]["total_time"]
    called = {"total_seconds": "run_info.total_time"}
    for name, candidates in TRAIN_INFO.items():
        for key in candidates:
            if key in measured:
                row[name], called[name] = measured[key], f"train_info.{key}"
    for name, key in TEST.items():
        if key in tests[0]:
            row[name], called[name] = tests[0][key], f"train_info.metrics[].{key}"
    for name, key in CURVES.items():
        row[name] = [[entry["step"], entry[key]] for entry in measured["metrics"] if "valid accuracy" in entry]
        called[name] = f"train_info.metrics[].{key}"
    return row | {"called": plain(called)}


def read_runs(directory: Path, commit: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Settings and outcomes of each run, by configuration and start.

    Raises InputError if two files with one experiment and one start differ.
    """
    runs: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {}
    for version in file_versions(directory, commit):
        record = json.loads(git(directory, "cat-file", "blob", version.blob))
        settings, outcome = settings_row(record, version), outcome_row(record, version)
        key = (settings["experiment"], settings["created_at"])
        if key not in runs:
            blobs = harness(directory, commit, settings["versions"].get("peft_commit"))
            runs[key] = (settings | ({"harness": blobs} if blobs else {}), outcome)
            continue
        first_settings, first_outcome = runs[key]
        ignored = FILE_FIELDS | {"called", "copies", "harness"}
        for before, after in ((first_settings, settings), (first_outcome, outcome)):
            differing = {
                each for each in (before.keys() | after.keys()) - ignored if before.get(each) != after.get(each)
            }
            if differing:
                place = f"{version.path} at {version.commit[:ID_DIGITS]}"
                raise InputError(f"{place} is the run {first_settings['id']}, but differs in {sorted(differing)}.")
        first_settings.setdefault("copies", []).append(settings["id"])
    return sorted(runs.values(), key=lambda pair: [pair[0][key] for key in ("configuration", "created_at", "id")])


def shared_fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Fields with the same value in all rows; of a table that most rows have, in all rows that have it."""
    shared: dict[str, Any] = {}
    for key in sorted({key for row in rows for key in row}):
        values = [row[key] for row in rows if key in row]
        if all(isinstance(value, dict) for value in values):
            if 2 * len(values) > len(rows) and (table := shared_fields(values)):
                shared[key] = table
        elif len(values) == len(rows) and len({json.dumps(value) for value in values}) == 1:  # 1 and True differ
            shared[key] = values[0]
    return shared


def without(row: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The row less what is shared; a nested table stays, if only as an empty one."""
    return {
        key: without(value, shared.get(key, {})) if isinstance(value, dict) else value
        for key, value in row.items()
        if isinstance(value, dict) or key not in shared
    }


def write_rows(path: Path, source: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the first line, with source and shared fields, and a line for each row."""
    shared = shared_fields(rows)
    lines = [{"source": source, "shared": shared}, *(without(row, shared) for row in rows)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")


def build(directory: Path, commit: str, output: Path) -> list[dict[str, Any]]:
    """Write both files to `output`, the same bytes each time for one commit. Returns the settings' rows."""
    commit = git(directory, "rev-parse", f"{commit}^{{commit}}").strip()
    runs = read_runs(directory, commit)
    source = {"repository": REPOSITORY, "commit": commit, "licence": "Apache-2.0", "folder": BENCHMARK}
    output.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(("settings", "outcomes")):
        write_rows(output / f"{name}.jsonl", source, [pair[at] for pair in runs])
    return [settings for settings, _ in runs]


def main() -> None:
    """Build from the command line; print how many runs there are, and nothing that was measured."""
    parser = argparse.ArgumentParser(description="Build the table of huggingface/peft's public runs on MetaMathQA.")
    parser.add_argument("directory", type=Path, metavar="GIT_DIRECTORY", help="git directory with the whole history")
    parser.add_argument(
        "commit", nargs="?", default=COMMIT, metavar="COMMIT", help="read its history (default: pinned)"
    )
    options = parser.parse_args()
    rows = build(options.directory, options.commit, PUBLIC_RUNS)
    for (folder, status), count in sorted(Counter((row["folder"], row["status"]) for row in rows).items()):
        print(f"{folder}, {status}: {count} runs")


if __name__ == "__main__":
    main()
