"""Words of prose for each page of the book, and in all.

python tests/tools/words.py                 those of this folder
python tests/tools/words.py before/book     those of another copy of the pages

Counted: paragraphs, lists, headings, tables and boxes. Not counted: code, exercises, solutions and worked examples.
"""

from __future__ import annotations

import sys
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.front_matter import front_matter_plugin

BOOK = Path(__file__).resolve().parents[2] / "book"
PARSER = MarkdownIt("commonmark").use(front_matter_plugin).use(colon_fence_plugin)


def words(text: str) -> int:
    """The words between white space, also in boxes, of all that stands outside code fences."""
    count = 0
    for token in PARSER.parse(text):
        if token.type == "inline":
            count += len(token.content.split())
        elif token.type == "colon_fence" and ":class: worked-example" not in token.content:
            count += words(token.content)
    return count


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else BOOK
    pages = {path.stem: words(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.md"))}
    for page, count in pages.items():
        print(f"{count:7,}  {page}")
    print(f"{sum(pages.values()):7,}  all pages")
