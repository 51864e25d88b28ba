"""The notebook that readers download: the executed chapter, with numbers printed and links that work anywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat

from peftbook.views.site import identity
from peftbook.views.site.execution import cached_outputs
from peftbook.views.site.numbers import ANSWERS

ROLE = re.compile(r"\{(measured|cited)\}`([^`]+)`")


def portable(notebook: Any, page: str) -> Any:
    """Print the roles' numbers as text, point run links at the public site, say where the page comes from."""
    address = f"{identity.PUBLIC_ADDRESS}{page}.html"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = ROLE.sub(_printed, cell.source)
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html")
            if html and 'href="runs/' in html:
                folder = address.rpartition("/")[0]
                output["data"]["text/html"] = html.replace('href="runs/', f'href="{folder}/runs/')
    source = f"*From [{identity.TITLE}]({address}), version {identity.version()}. Needs* `pip install peftbook`."
    # A fixed id: the same chapter gives the same file.
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(source, id="from-the-book"))
    return notebook


def _printed(match: re.Match[str]) -> str:
    """The text of a role; the role itself where its number is missing, which the page has reported."""
    answer = ANSWERS[match[1]](match[2])
    return match[0] if isinstance(answer, str) else answer[0]


def copy_notebook(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the executed notebook beside the page's source and tell the header that it exists."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if doctree is None or not executed.is_file():
        return
    target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    notebook = portable(cached_outputs(app, nbformat.read(executed, as_version=4)), page)
    target.write_text(nbformat.writes(notebook), encoding="utf-8")
    context["ipynb_source"] = f"{page}.ipynb"


def setup(app: Any) -> None:
    """Copy notebooks before the header buttons are made."""
    app.connect("html-page-context", copy_notebook, priority=550)
