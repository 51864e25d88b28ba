"""Docstrings: Python function -> first sentence of its docstring, from pinned, permissively licensed packages.

The data are built by tests/tools/docstrings_build.py and described in the book's data sheet.
No package is in two splits.
"""

from __future__ import annotations

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.tasks import TaskData, parquet_task

PATH = DATA / "docstrings.parquet"
DATA_SHA256 = "bde040a5a6a5f6e4669734f927605db1a3b53e6e783b8aa16b60ecba33c428ee"
SPEC = specs.Task(name="docstrings", data_sha256=DATA_SHA256, version=1)
INSTRUCTION = "Write the first sentence of this Python function's docstring.\n\n```python\n{input}\n```"
# What each count in docstrings.json says, in the order in which the filters are applied.
FILTERS = {
    "file_unparsed": "files (not functions) that are not valid Python 3.11: newer syntax, templates",
    "file_other_licence": "files (not functions) that mention GPL, Creative Commons or Stack Overflow",
    "functions_seen": "functions and methods in the other files; tests and vendored folders are never opened",
    "no_docstring": "no docstring",
    "docstring_not_separable": "the docstring shares a line with code, or the rest cannot be cut out by lines",
    "source_length": "source shorter or longer than the limits, in characters, without decorators and docstring",
    "source_not_ascii": "source not ASCII",
    "stub": "body only passes or raises",
    "target_length": "sentence shorter or longer than the limits, in words",
    "target_not_ascii": "sentence not ASCII",
    "target_not_a_sentence": "does not start with a capital and end with a full stop, or ends in a preposition",
    "target_markup": "markup, code or an address is left after reStructuredText and Markdown are removed",
    "target_trivial": "says nothing of its own (“See …”, “Deprecated …”, “Helper …”) or starts in mid-thought",
    "overload_or_accessor": "overload, abstract or deprecated method, setter, deleter",
    "test_function": "named like a test",
    "dunder_generic": "`__init__`, or another dunder method with a short sentence",
    "target_not_guessable": "too few of the sentence's words have their stem in the code",
    "target_repeated": "the sentence, without case, punctuation and articles, occurs elsewhere too",
    "target_templated": "the sentence with its names masked occurs more than twice",
    "near_duplicate": "code tokens too similar to those of a pair kept before, in any split",
    "not_sampled": "left out by the even sampling over packages",
    "kept": "pairs in the data set",
}


def load() -> TaskData:
    """The task, its splits in the file's order. Raises InputError if the data file is missing or not the pinned one."""
    return parquet_task(PATH, SPEC, INSTRUCTION, ("rouge", "bertscore", "exact_match"))
