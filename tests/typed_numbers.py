"""The rule about numbers in prose: a result-like number is printed by a role, never typed.

Result-like: a decimal, a percentage, or a number with a unit of memory, time, rate, ratio or score. Free: mathematics,
code, what cells print, references to sections and tables, arXiv numbers, versions, and worked examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes

NUMBER = r"(?<![\w.,/-])[+\N{MINUS SIGN}~≈<>]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?"
UNIT = (
    r"(?:[kKMGT]i?B|bytes?|ms|s|secs?|seconds?|mins?|minutes?|hours?|h|days?|W|Wh|kWh|FLOPs?|TFLOPs?"
    r"|tok(?:ens?)?/s|tokens? per second|nats?|points?|pp|percentage points?|percent|per cent"
    r"|M|B|million|billion|M parameters|B parameters|parameters|fold"
    r"|times (?:as|more|less|fewer|faster|slower|smaller|larger|cheaper|better|worse))"
)
SPACE = r"[\s\N{NO-BREAK SPACE}\N{THIN SPACE}-]"
RESULT = re.compile(rf"{NUMBER}(?:\s*(?:%|×|‰)|{SPACE}?x(?!\w)|{SPACE}*{UNIT}(?![\w-]))")
DECIMAL = re.compile(r"(?<![\w./:-])[+\N{MINUS SIGN}~≈<>]?\d+\.\d+(?![\w]|\.\d)")
FREE = re.compile(
    r"arXiv:?\s*\d{4}\.\d{4,5}(?:v\d+)?|(?<!\d)\d{4}\.\d{5}(?!\d)"
    r"|(?:sections?|§+|tables?|figures?|figs?\.|equations?|eqs?\.|chapters?|appendix|parts?|steps?|footnotes?|exercises?)"
    r"\s*\(?[A-Z]?\.?\d+(?:\.\d+)*\)?(?:\s*(?:,|and|or|to|–|-)\s*\(?\d+(?:\.\d+)*\)?)*"
    r"|(?:version|Python|PyTorch|torch|transformers|peft|bitsandbytes|CUDA|Llama|CC BY|GPT-?"
    r"|SmolLM2?-?)\s*[≥>=<]*\s*v?\d+(?:\.\d+)*[MB]?"
    r"|https?://\S+|doi:\S+",
    re.IGNORECASE,
)
EXEMPT = (nodes.literal, nodes.math, nodes.citation, nodes.footnote_reference, nodes.label)
EXEMPT_NAMES = {"MeasuredNumber", "CitedNumber"}
CHECKED = (nodes.paragraph, nodes.caption, nodes.term)


def typed_results_in(text: str) -> list[str]:
    """The result-like numbers in a piece of text, in order."""
    text = FREE.sub(" ", text)
    numbers = [(match.start(), match[0].strip()) for match in RESULT.finditer(text)]
    taken = [range(start, start + len(number)) for start, number in numbers]
    numbers += [(m.start(), m[0]) for m in DECIMAL.finditer(text) if not any(m.end() - 1 in span for span in taken)]
    return [number for _, number in sorted(numbers)]


def typed_results(document: nodes.document) -> Iterator[tuple[str, str]]:
    """Every (number, its sentence) typed into a page's paragraphs, list items, captions and hand-written tables."""
    for node in document.findall(lambda item: isinstance(item, CHECKED)):
        if not _is_exempt(node):
            text = _own_text(node)
            for number in typed_results_in(text):
                yield number, " ".join(text.split())
    for raw in document.findall(nodes.raw):
        for caption in re.findall(
            r'<span class="figure-caption">(.*?)</span>(?=<details class="run-facts"|</figcaption>)',
            raw.astext(),
            re.DOTALL,
        ):
            text = re.sub(
                r"<[^>]+>", "", re.sub(r'<a class="measured".*?</a>|<code>.*?</code>', " ", caption, flags=re.DOTALL)
            )
            for number in typed_results_in(text):
                yield number, " ".join(text.split())


def _is_exempt(node: nodes.Node) -> bool:
    while node is not None:
        if isinstance(node, nodes.citation):
            return True
        if isinstance(node, nodes.Element) and (
            "worked-example" in node.get("classes", []) or node.get("nb_element") in ("cell_code_output", "mime_bundle")
        ):
            return True
        node = node.parent
    return False


def _own_text(node: nodes.Node) -> str:
    if isinstance(node, nodes.Text):
        return node.astext()
    if isinstance(node, EXEMPT) or type(node).__name__ in EXEMPT_NAMES:
        return " \N{OBJECT REPLACEMENT CHARACTER} "
    return "".join(_own_text(child) for child in node.children)
