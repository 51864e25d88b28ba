"""The exercises' solutions: every one exists and holds code, and each chapter's code runs in the order of the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.front_matter import front_matter_plugin

CHAPTERS = sorted((Path(__file__).resolve().parents[1] / "book").glob("*.md"))
PARSER = MarkdownIt("commonmark").use(front_matter_plugin).use(colon_fence_plugin)
DIRECTIVE = re.compile(r"\{([\w-]+)\}\s*(.*)")


def fences(text: str) -> Iterator[tuple[str, str, Token]]:
    """(directive or language, its argument, the fence) for every fence of a text, not those inside another."""
    for token in PARSER.parse(text):
        if token.type in ("fence", "colon_fence"):
            match = DIRECTIVE.match(token.info.strip())
            yield (match[1], match[2].strip(), token) if match else (token.info.strip().partition(" ")[0], "", token)


def option(fence: Token, name: str) -> str:
    """The value of `:name: value` in a directive, or nothing."""
    match = re.search(rf"^:{name}:(.*)$", fence.content, re.MULTILINE)
    return match[1].strip() if match else ""


def exercises(text: str) -> list[str]:
    """The labels of the exercises of a page."""
    kinds = ("exercise", "exercise-start")
    return [option(fence, "label") for kind, _, fence in fences(text) if kind in kinds]


def solutions(text: str) -> dict[str, list[str]]:
    """Label of the exercise → the Python blocks of its solution; also those between solution-start and solution-end."""
    code: dict[str, list[str]] = {}
    inside = ""
    for kind, argument, fence in fences(text):
        if kind == "solution":
            code[argument] = [inner.content for name, _, inner in fences(fence.content) if name == "python"]
        elif kind == "solution-start":
            inside = argument
            code[inside] = []
        elif kind == "solution-end":
            inside = ""
        elif inside and kind in ("python", "code-cell"):
            lines = fence.content.splitlines(keepends=True)
            code[inside].append("".join(line for line in lines if not re.match(r":[\w-]+:", line)))
    return code


WITH_EXERCISES = [path for path in CHAPTERS if exercises(path.read_text(encoding="utf-8"))]
chapters = pytest.mark.parametrize("path", WITH_EXERCISES, ids=lambda path: path.stem)


@chapters
def test_every_exercise_has_one_hidden_solution(path):
    """Solutions stand in the order of the exercises, and a reader has to open them."""
    text = path.read_text(encoding="utf-8")
    labels = exercises(text)
    assert all(labels) and len(set(labels)) == len(labels)
    assert list(solutions(text)) == labels
    for kind, argument, fence in fences(text):
        if kind in ("solution", "solution-start"):
            assert "dropdown" in option(fence, "class"), argument


@chapters
def test_the_solutions_of_a_chapter_run_and_check_something(path):
    """All in one fresh namespace, as a reader would paste them; each with an assertion of its own."""
    namespace: dict[str, object] = {"__name__": path.stem}
    for label, blocks in solutions(path.read_text(encoding="utf-8")).items():
        assert blocks, f"the solution of {label} has no code"
        checks = [node for block in blocks for node in ast.walk(ast.parse(block))]
        checked = any(
            isinstance(node, ast.Assert) or (isinstance(node, ast.Attribute) and node.attr == "assert_close")
            for node in checks
        )
        assert checked, f"the solution of {label} asserts nothing"
        for block in blocks:
            exec(compile(block, f"{path.name}:{label}", "exec"), namespace)


def test_a_wrong_solution_would_fail():
    """The parser finds code in both forms of the directive, so that a false assertion cannot hide."""
    page = (
        "````{exercise}\n:label: one\nWhy?\n````\n\n"
        "````{solution} one\n:class: dropdown\n\n```python\nassert 1 == 2\n```\n````\n\n"
        "```{solution-start} two\n:class: dropdown\n```\n\n"
        "```{code-cell} ipython3\n:tags: [x]\nassert 2 == 3\n```\n\n```{solution-end}\n```\n"
    )
    assert exercises(page) == ["one"]
    assert solutions(page) == {"one": ["assert 1 == 2\n"], "two": ["assert 2 == 3\n"]}
