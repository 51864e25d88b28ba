"""The notebook that readers download: the executed chapter, with numbers printed and links that work anywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from peftbook.views.site import identity
from peftbook.views.site.execution import cached_outputs
from peftbook.views.site.figure_numbers import PLACEHOLDER
from peftbook.views.site.plain_markdown import plain

INSTALL = f'"peftbook[book] @ git+{identity.REPOSITORY}"'


def portable(notebook: Any, page: str, equation: Callable[[str], str]) -> Any:
    """Plain Markdown, numbered figures, run links at the public site; the first cell says where the page comes from."""
    address = f"{identity.PUBLIC_ADDRESS}{page}.html"
    shown = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    names = dict.fromkeys(name for data in shown for name in PLACEHOLDER.findall(str(data.get("text/html", ""))))
    figures = {name: at for at, name in enumerate(names, 1)}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, page, figures, equation)
    for data in shown:
        if "text/html" in data:
            html = data["text/html"].replace('href="runs/', f'href="{address.rpartition("/")[0]}/runs/')
            data["text/html"] = PLACEHOLDER.sub(lambda match: f"Figure {figures[match[1]]}", html)
    source = f"*From [{identity.TITLE}]({address}), version {identity.version()}. To run it:* `pip install {INSTALL}`"
    # A fixed id: the same chapter gives the same file.
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(source, id="from-the-book"))
    return notebook


def equation_number(env: Any, label: str) -> str:
    """As the site prints it: chapter and place."""
    page, number = env.domaindata["math"]["objects"][label]
    return ".".join(map(str, (*env.toc_secnumbers.get(page, {}).get("", ()), number)))


def copy_notebook(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Put the executed notebook beside the page's source and tell the header that it exists."""
    executed = Path(app.outdir).parent / "jupyter_execute" / f"{page}.ipynb"
    if doctree is None or not executed.is_file():
        return
    target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    numbered = functools.partial(equation_number, app.env)
    notebook = portable(cached_outputs(app, nbformat.read(executed, as_version=4)), page, numbered)
    target.write_text(nbformat.writes(notebook), encoding="utf-8")
    context["ipynb_source"] = f"{page}.ipynb"


def setup(app: Any) -> None:
    """Copy notebooks before the header buttons are made."""
    app.connect("html-page-context", copy_notebook, priority=550)
