"""Build the docstrings task: function source -> first sentence of its docstring, from pinned PyPI wheels.

    python tests/tools/docstrings_build.py [--cache FOLDER] [--output FOLDER]

The wheels stand in `docstrings_packages.py`. Their Python files are parsed with `ast`, never imported. A filter has
a name and a count in `docstrings.json`. With the locked Python and pyarrow the Parquet file is the same, byte for
byte, each time.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import re
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_build import answer_command_line, download_wheel, notice, write_parquet
from docstrings_packages import PACKAGES, python_files

from peftbook.tasks import file_sha256
from peftbook.tasks.docstrings import FILTERS
from peftbook.tasks.similarity import NEAR_DUPLICATE, SimilarSets, jaccard

__all__ = ["Row", "build", "code_tokens", "first_sentence", "jaccard", "strip_function"]

SIZES = {"train": 4000, "validation": 450, "test": 450}
SOURCE_CHARS = (80, 500)
TARGET_WORDS = (3, 16)

FOREIGN_LICENCE = re.compile(r"\bA?L?GPL\b|General Public License|CC[ -]BY|Creative Commons|stackoverflow\.com", re.I)


@dataclass(frozen=True)
class Row:
    """One pair with its source."""

    id: str
    input: str
    target: str
    group: str
    version: str
    licence: str
    path: str
    qualname: str
    split: str


# --- the two sides of a pair -----------------------------------------------------------------------------------


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(qualified name, node) of each function at module level or in a class, in source order."""
    pending: list[tuple[str, ast.stmt]] = [("", node) for node in reversed(tree.body)]
    while pending:
        prefix, node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            pending.extend((f"{prefix}{node.name}.", child) for child in reversed(node.body))


def strip_function(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Source of a function without decorators and docstring, dedented; comments stay.

    lines: the file's lines, with their ends.
    Returns None if the docstring shares a line with other code or the rest does not parse.
    """
    doc = node.body[0]
    assert doc.end_lineno is not None and node.end_lineno is not None and doc.end_col_offset is not None
    before, after = lines[node.lineno - 1 : doc.lineno - 1], lines[doc.end_lineno : node.end_lineno]
    shares_line = lines[doc.lineno - 1].encode()[: doc.col_offset].strip() or (
        lines[doc.end_lineno - 1].encode()[doc.end_col_offset :].strip()
    )
    if shares_line or not before:
        return None
    while after and not after[0].strip():
        after.pop(0)
    source = textwrap.dedent("".join([*before, *after])).rstrip()
    source = "\n".join(line.rstrip() for line in source.splitlines())
    return source if _parses(source) else None


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*>]|:\w+[^:`]*:\s|\.\. |Args:|Returns:|Parameters))")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|eq|fig|no|resp|approx|al|incl|w\.r\.t|[A-Z]))\.$", re.I)


def first_sentence(docstring: str) -> str:
    """First sentence of a docstring as plain text; an unpunctuated first paragraph gets its full stop."""
    paragraph = PARAGRAPH_END.split(inspect.cleandoc(docstring))[0]
    text = plain(" ".join(paragraph.split()))
    for match in re.finditer(r"[.!?](?=\s|$)", text):
        head = text[: match.end()]
        if not ABBREVIATION.search(head):
            return head
    return f"{text}." if text and text[-1].isalnum() else text


def plain(text: str) -> str:
    """Text without reStructuredText or Markdown markup."""
    text = re.sub(r":(pep|rfc):`(\d+)`", lambda match: f"{match[1].upper()} {match[2]}", text)
    text = re.sub(r":(?!math)[\w:+-]+:`~(?:[\w.]*\.)?([^`<>]+)`", r"\1", text)  # :class:`~a.B` -> B
    text = re.sub(r":(?!math)[\w:+-]+:`[!.]?([^`<>]+?)(?:\s*<[^`>]*>)?`", r"\1", text)  # :func:`f` -> f
    text = re.sub(r"`([^`<>]+?)\s*<[^`>]*>`__?", r"\1", text)  # `text <url>`_ -> text
    text = re.sub(r"\[([^\]]+)\](?:\[[^\]]*\]|\([^)]*\))", r"\1", text)  # [text](url), [text][ref] -> text
    text = re.sub(r"`{1,2}([^`]+)`{1,2}_{0,2}", r"\1", text)
    text = re.sub(r"(?<![\w*])(\*{1,2})(?=[\w])([^*]+?)(?<=[\w])\1(?![\w*])", r"\2", text)
    text = re.sub(r"\|([A-Za-z][\w.]*)\|", r"\1", text)
    return " ".join(text.split())


# --- filters ---------------------------------------------------------------------------------------------------

OPENING_NOISE = re.compile(
    r"(see|deprecated|todo|fixme|xxx|note|same as|alias|example|internal|private|inherit|docstring|override[sn]?|"
    r"wrapper|this (is|method|function)|helper|see also|not implemented|implement|hook|callback|used (by|to|in|for)|"
    r"test|stub|dummy|placeholder|subclass|like|just|we|if|when|as|please|don't|do not|it|must|should|usage|called|"
    r"call|handler|equivalent|backport|compat|copied|adapted|taken|based on|shortcut|method|function|property|"
    r"(a |an |the |easy )?(helper|convenien\w*|shortcut|utility)|in|during|because|since|there|here|some|at|then|but|"
    r"only|also|dev|with|without|by|on|to|for|after|before|while|these|that|unlike|similar|from|use|what|how|why|i|you|"
    r"microsoft|hack|warning|allow|subclasses|default implementation|entry point)\b",
    re.I,
)
MARKUP = re.compile(r"[`\\|{}<>%@#$~_=]|https?:|\*\*|::|\[\d|\w\(\w[^)]*,|;|\"\"|\bi\.e\b|\.\.|: ")
DANGLING = re.compile(r"\b(a|an|the|of|or|and|to|in|for|by|with|from|as|is|that|which|e\.g|i\.e|etc|vs)\.$|[^.]$", re.I)
STOP_WORDS = """
a an and are as at be by for from given has have if in into is it its of on or that the their this to used using which
with return returns get gets set sets create creates compute computes calculate calculates check checks object value
values function method class instance whether all not new one any
"""
STOP = frozenset(STOP_WORDS.split())


def target_fault(target: str) -> str | None:
    """Name of the first filter that a sentence fails, or None."""
    words = target.split()
    if not TARGET_WORDS[0] <= len(words) <= TARGET_WORDS[1]:
        return "target_length"
    if not target.isascii():
        return "target_not_ascii"
    shouts = words[0].isupper() and len(words[0]) > 1
    if not re.match(r"[A-Z][a-zA-Z-]*,? ", target) or shouts or DANGLING.search(target):
        return "target_not_a_sentence"
    has_open_quote = target.count("'") % 2 == 1 and target[-2] == "'"
    if MARKUP.search(target) or target.count("(") != target.count(")") or has_open_quote:
        return "target_markup"
    return "target_trivial" if OPENING_NOISE.match(target) else None


def source_fault(source: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Name of the first filter that a function fails, or None."""
    if not SOURCE_CHARS[0] <= len(source) <= SOURCE_CHARS[1]:
        return "source_length"
    if not source.isascii():
        return "source_not_ascii"
    return "stub" if all(_does_nothing(statement) for statement in node.body[1:]) else None


def _does_nothing(statement: ast.stmt) -> bool:
    """pass, ..., or raise: the body of an abstract method or an overload."""
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_constant or isinstance(statement, ast.Pass | ast.Raise)


def name_fault(node: ast.FunctionDef | ast.AsyncFunctionDef, target: str) -> str | None:
    """Name of the filter for overloads, tests and dunder methods with a generic sentence, or None."""
    decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
    if re.search(r"overload|abstract|deprecat|\.setter|\.deleter", decorators):
        return "overload_or_accessor"
    if node.name.startswith("test"):
        return "test_function"
    is_dunder = node.name.startswith("__") and node.name.endswith("__")
    return "dunder_generic" if is_dunder and (node.name == "__init__" or len(target.split()) < 6) else None


def stems(text: str) -> set[str]:
    """First four letters of each content word; identifiers are split at underscores and capitals."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return {word.lower()[:4] for word in words if word.lower() not in STOP and len(word) > 2}


def is_guessable(source: str, target: str) -> bool:
    """Whether at least a third of the sentence's content words, and two or all of them, have their stem in the code."""
    wanted = stems(target)
    shared = wanted & stems(source)
    return bool(wanted) and len(shared) >= min(2, len(wanted)) and 3 * len(shared) >= len(wanted)


# --- duplicates ------------------------------------------------------------------------------------------------


def code_tokens(source: str) -> frozenset[str]:
    """The set of names, numbers and symbols in a piece of code."""
    return frozenset(re.findall(r"[A-Za-z_]\w*|\d+|[^\w\s]", source))


def drop_near_duplicates(rows: list[Row]) -> list[Row]:
    """Rows whose token set has Jaccard similarity below NEAR_DUPLICATE with every row kept before them."""
    tokens = {row.id: code_tokens(row.input) for row in rows}
    index = SimilarSets(Counter(token for each in tokens.values() for token in each))
    kept = []
    for row in rows:
        if not index.has_similar(tokens[row.id]):
            kept.append(row)
            index.add(tokens[row.id])
    return kept


def drop_repeated_targets(rows: list[Row]) -> list[Row]:
    """Rows whose sentence, without case and punctuation, occurs only once."""
    counts = Counter(_bare(row.target) for row in rows)
    return [row for row in rows if counts[_bare(row.target)] == 1]


def drop_templated_targets(rows: list[Row]) -> list[Row]:
    """Rows whose sentence, with its names and numbers masked, occurs at most twice ("Convert # to #.")."""
    counts = Counter(_template(row.target) for row in rows)
    return [row for row in rows if "#" not in _template(row.target) or counts[_template(row.target)] <= 2]


def _template(target: str) -> str:
    """A sentence in which each word that looks like a name or a number is '#'."""
    first, *rest = target.rstrip(".").split()
    return " ".join([first, *("#" if re.search(r"[^a-z,()]", word) else word for word in rest)])


def _bare(target: str) -> str:
    """A sentence's words without case, punctuation, articles and the third person's s."""
    words = re.findall(r"[a-z0-9]+", target.lower())
    return " ".join(word.removesuffix("s") for word in words if word not in {"a", "an", "the"})


# --- the build -------------------------------------------------------------------------------------------------


def candidates(name: str, wheel: Path, counts: Counter[str]) -> Iterator[Row]:
    """The rows of one package that pass the filters on single functions; `counts` gets what each one removed."""
    package = PACKAGES[name]
    for path, text in python_files(wheel):
        tree = _parse(text)
        if tree is None or FOREIGN_LICENCE.search(text):
            counts["file_unparsed" if tree is None else "file_other_licence"] += 1
            continue
        lines = text.splitlines(keepends=True)
        for qualname, node in functions(tree):
            counts["functions_seen"] += 1
            docstring = ast.get_docstring(node, clean=False)
            if not docstring:
                counts["no_docstring"] += 1
                continue
            source = strip_function(lines, node)
            if source is None:
                counts["docstring_not_separable"] += 1
                continue
            target = first_sentence(docstring)
            fault = _fault(source, target, node)
            if fault:
                counts[fault] += 1
                continue
            identity = hashlib.sha256(f"{name}/{path}:{qualname}\n{source}".encode()).hexdigest()[:16]
            yield Row(identity, source, target, name, package.version, package.licence, path, qualname, package.split)


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        try:
            return ast.parse(text, feature_version=(3, 11))
        except (SyntaxError, ValueError):
            return None


def _fault(source: str, target: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """Name of the first filter that a pair fails, or None."""
    fault = source_fault(source, node) or target_fault(target) or name_fault(node, target)
    return fault or (None if is_guessable(source, target) else "target_not_guessable")


def sample(rows: list[Row], size: int) -> list[Row]:
    """`size` rows in order of id, taken evenly: the smallest cap per package that yields enough rows."""
    by_package: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.id):
        by_package[row.group].append(row)
    cap = 1
    while sum(min(cap, len(each)) for each in by_package.values()) < min(size, len(rows)):
        cap += 1
    return sorted((row for each in by_package.values() for row in each[:cap]), key=lambda row: row.id)[:size]


def select(rows: list[Row], counts: Counter[str]) -> list[Row]:
    """The rows of the data set: no repeated sentence, no near-duplicate in any split, evenly sampled."""
    order = {"test": 0, "validation": 1, "train": 2}  # a near-duplicate is dropped from train rather than from test
    rows = sorted({row.id: row for row in rows}.values(), key=lambda row: (order[row.split], row.id))
    unique = drop_repeated_targets(rows)
    counts["target_repeated"] = len(rows) - len(unique)
    plain_worded = drop_templated_targets(unique)
    counts["target_templated"] = len(unique) - len(plain_worded)
    distinct = drop_near_duplicates(plain_worded)
    counts["near_duplicate"] = len(plain_worded) - len(distinct)
    chosen = [row for split in SIZES for row in sample([r for r in distinct if r.split == split], SIZES[split])]
    counts["not_sampled"] = len(distinct) - len(chosen)
    counts["kept"] = len(chosen)
    return chosen


def report(
    rows: list[Row], per_package: dict[str, Counter[str]], counts: Counter[str], wheels: dict[str, Path]
) -> dict:
    """What the data sheet prints: counts by filter, split and package, licences, hashes and licence texts."""
    chosen = Counter(row.group for row in rows)
    texts = {name: notice(wheel) for name, wheel in wheels.items()}
    notices = {hashlib.sha256(text.encode()).hexdigest()[:12]: text for text in texts.values()}
    packages = {
        name: package._asdict()
        | {"wheel": wheels[name].name, "seen": per_package[name]["functions_seen"], "kept": chosen[name]}
        | {"notice": hashlib.sha256(texts[name].encode()).hexdigest()[:12]}
        for name, package in PACKAGES.items()
    }
    return {
        "filters": {name: counts[name] for name in FILTERS},
        "splits": dict(Counter(row.split for row in rows)),
        "licences": dict(sorted(Counter(row.licence for row in rows).items())),
        "rules": {"source_chars": SOURCE_CHARS, "target_words": TARGET_WORDS, "near_duplicate_jaccard": NEAR_DUPLICATE},
        "python": platform.python_version(),
        "packages": packages,
        "notices": dict(sorted(notices.items())),
    }


def build(cache: Path, output: Path) -> str:
    """Download, filter and write `docstrings.parquet` and `docstrings.json`; returns the Parquet file's SHA-256."""
    rows: list[Row] = []
    per_package: dict[str, Counter[str]] = {}
    wheels = {name: download_wheel(name, pin.version, pin.sha256, cache) for name, pin in PACKAGES.items()}
    for name, wheel in wheels.items():
        per_package[name] = Counter()
        rows.extend(candidates(name, wheel, per_package[name]))
    counts: Counter[str] = sum(per_package.values(), Counter())
    chosen = select(rows, counts)
    parquet = output / "docstrings.parquet"
    write_parquet(chosen, parquet)
    sha256 = file_sha256(parquet)
    facts = report(chosen, per_package, counts, wheels) | {"parquet_sha256": sha256, "bytes": parquet.stat().st_size}
    (output / "docstrings.json").write_text(json.dumps(facts, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    return sha256


if __name__ == "__main__":
    answer_command_line(build, __doc__.splitlines()[0])
