"""Mathematics rendered at build time: KaTeX run inside V8, so that pages need no script and do not reflow.

The output holds HTML for the eye and MathML for screen readers. An error in TeX is a Sphinx warning at its line.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from markupsafe import escape
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LOGGER = logging.getLogger(__name__)
PIECE = '<span class="katex-base">'
OPENING, CLOSING = re.compile(r"[(\[“‘]+$"), re.compile(r"^[.,;:!?)\]”’]+")
TOKEN = re.compile(r"\\(?:begin|end)\{\w+\*?\}|\\[a-zA-Z]+|\\.|[{}]")
KATEX = Path("book/assets/katex/katex.min.js")


class KatexError(ValueError):
    """TeX that KaTeX refuses, in KaTeX's words."""


@cache
def _engine(script: Path) -> Any:
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    engine.eval(script.read_text(encoding="utf-8"))
    engine.eval(
        "function render(tex, display) { try { return {html: katex.renderToString(tex, {displayMode: display,"
        " output: 'htmlAndMathml', throwOnError: true, strict: 'ignore'})} } catch (e) { return {error: String(e)} } }"
    )
    return engine


@cache
def render_tex(tex: str, display: bool, script: Path = KATEX) -> str:
    """HTML and MathML of one formula. Raises KatexError with KaTeX's own words."""
    answer = json.loads(_engine(script).eval(f"JSON.stringify(render({json.dumps(tex)}, {json.dumps(display)}))"))
    if "error" in answer:
        raise KatexError(answer["error"].removeprefix("ParseError: "))
    return answer["html"]


def parts(tex: str) -> list[str]:
    r"""The formulas that stand side by side in one display: TeX split at each `\quad` and `\qquad` outside a group."""
    pieces, depth, start = [], 0, 0
    for token in TOKEN.finditer(tex):
        if token[0] in ("{", r"\left") or token[0].startswith(r"\begin"):
            depth += 1
        elif token[0] in ("}", r"\right") or token[0].startswith(r"\end"):
            depth -= 1
        elif token[0] in (r"\quad", r"\qquad") and not depth:
            pieces.append(tex[start : token.start()])
            start = token.end()
    return [part.strip() for part in (*pieces, tex[start:]) if part.strip()]


def _render_or_warn(translator: Any, node: nodes.Element, display: bool) -> str:
    tex = node.astext()
    script = Path(translator.builder.app.srcdir) / KATEX
    try:
        return "".join(render_tex(part, display, script) for part in (parts(tex) if display else [tex]))
    except KatexError as error:
        LOGGER.warning("%s in $%s$", error, tex, location=node, type="math", subtype="katex")
        return f'<code class="math-error">{escape(tex)}</code>'


def visit_math(translator: Any, node: nodes.math) -> None:
    """Inline mathematics, with the bracket or full stop that no line may part from it; it may break where TeX would."""
    first, *others = _render_or_warn(translator, node, display=False).split(PIECE)
    formula = PIECE.join([first, f"<wbr>{PIECE}".join(others)]) if others else first
    before, after = (escape(node.get(place, "")) for place in ("before", "after"))
    translator.body.append(f'<span class="math">{before}{formula}{after}</span>')
    raise nodes.SkipNode


def keep_together(app: Any, doctree: nodes.document, page: str) -> None:
    """Hand each inline formula the punctuation that touches it: browsers break a line between a formula and a stop."""
    if app.builder.format != "html":
        return
    for node in list(doctree.findall(nodes.math)):
        around = node.parent
        at = around.children.index(node)
        before = around[at - 1] if at else None
        after = around[at + 1] if at + 1 < len(around) else None
        if isinstance(before, nodes.Text) and (mark := OPENING.search(before)):
            node["before"], around[at - 1] = mark[0], nodes.Text(before[: mark.start()])
        if isinstance(after, nodes.Text) and (mark := CLOSING.match(after)):
            node["after"], around[at + 1] = mark[0], nodes.Text(after[mark.end() :])


def visit_displayed(translator: Any, node: nodes.math_block) -> None:
    """A display, its number and a link to itself where it has a label; its parts stand below each other on a phone."""
    ids = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    number = ""
    if node.get("number"):
        shown = get_node_equation_number(translator, node)
        number = f'<a class="eqno" href="#{node["ids"][0]}" aria-label="Equation ({shown})">({shown})</a>'
    formula = _render_or_warn(translator, node, display=True)
    translator.body.append(
        f'<div class="math-block"{ids}><div class="math-scroll" tabindex="0">{formula}</div>{number}</div>\n'
    )
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Make KaTeX the HTML math renderer and ship its style sheet and fonts."""
    app.add_html_math_renderer("katex", inline_renderers=(visit_math, None), block_renderers=(visit_displayed, None))
    app.connect("config-inited", _choose_renderer, priority=900)
    app.connect("doctree-resolved", keep_together)
    app.add_css_file("katex/katex.min.css", priority=300)


def _choose_renderer(app: Any, config: Any) -> None:
    config.html_math_renderer = "katex"
