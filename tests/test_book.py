"""The book's text: no result is typed, every citation leads somewhere, stale chapters and only those run again."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from docutils import frontend, nodes, utils
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from typed_numbers import typed_results, typed_results_in

from peftbook.core import tracking
from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.core.stamp import file_hash
from peftbook.evidence.literature import published, published_values
from peftbook.studies import NAMES, get_study
from peftbook.views.site import bibliography
from peftbook.views.site.display import evidence, show, verdicts
from peftbook.views.site.execution import changed_files, drop_stale, used_files
from peftbook.views.site.figure_numbers import number_figures
from peftbook.views.site.mathematics import KatexError, parts, render_tex
from peftbook.views.site.numbers import CitedNumber, MeasuredNumber
from peftbook.views.site.tracing import Trace

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book").glob("*.md"))


def document(*children: nodes.Node) -> nodes.document:
    """A document that holds the given nodes."""
    tree = utils.new_document("page", frontend.get_default_settings())
    tree.extend(children)
    return tree


@pytest.mark.parametrize(
    "text",
    [
        "LoRA reaches a loss of 2.13.",
        "This saves 30 % of the memory.",
        "About 40 percent of it is left.",
        "It needs 21.3 GB and a checkpoint of 35 MB.",
        "Training takes 3 minutes, a third of it 60 s.",
        "It is 3× cheaper, or 3x, or 3 times faster.",
        "ROUGE-L rises by 12 points.",
        "We measure 325 tokens/s.",
        "A gain of ~0.4 nats was seen.",
        "It trains 393,216 parameters.",
    ],
)
def test_a_result_like_number_in_prose_is_found(text):
    """Decimals, percentages and numbers with units are what a reader would take for a result."""
    assert typed_results_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "See section 4.1, Table 3 and Figs. 2 and 3.1 of arXiv:2106.09685.",
        "Equation (2.1) and §7.2 say so; Tables 1, 2 and 3.4 too.",
        "Hu et al. published it in 2021 with 4-bit weights.",
        "Rank 16, 20 virtual tokens, 3 seeds, 500 examples.",
        "SmolLM2-135M and Llama-2-7B run under Python 3.11 and torch 2.13.0.",
        "The 4-bit base, the 8-bit optimiser and bfloat16.",
        "Text is CC BY 4.0.",
    ],
)
def test_a_number_that_is_no_result_is_free(text):
    """References, names, settings and years are not results."""
    assert typed_results_in(text) == []


def test_roles_math_code_and_worked_examples_are_exempt():
    """Only what is typed counts: the same number from a role, in code, in math or in a worked example is free."""
    typed = nodes.paragraph("", "", nodes.Text("Loss is 2.13."))
    free = [
        nodes.paragraph("", "", kind("", "2.13")) for kind in (MeasuredNumber, CitedNumber, nodes.math, nodes.literal)
    ]
    example = nodes.admonition("", nodes.paragraph("", "It is 2.13."), classes=["worked-example"])
    item = nodes.bullet_list("", nodes.list_item("", nodes.paragraph("", "It is 40 %.")))
    assert [number for number, _ in typed_results(document(typed, *free, example, item))] == ["2.13", "40 %"]


def test_a_number_typed_into_a_figures_caption_is_found():
    """Captions are printed by cells as HTML; a measured link inside them is exempt."""
    html = (
        '<figcaption><span class="figure-number">Figure 1</span> <span class="figure-caption">Loss of 2.13, not '
        '<a class="measured" href="x">1.99</a>.</span><details class="run-facts">3 runs</details></figcaption>'
    )
    assert [number for number, _ in typed_results(document(nodes.raw("", html, format="html")))] == ["2.13"]


def test_no_result_is_typed_by_hand(built_site):
    """Every result in the book's prose comes from a run or from the table of published values."""
    found = []
    for path in sorted((built_site.parent / ".doctrees" / "book").rglob("*.doctree")):
        tree = pickle.loads(path.read_bytes())
        found += [f"{path.stem}: {number!r} in “{text[:140]}”" for number, text in typed_results(tree)]
    assert not found, "numbers typed by hand (use {measured}, {cited}, $…$ or a worked example):\n" + "\n".join(found)


def test_every_published_value_has_a_work_and_a_place():
    """A cited number links to an entry of the bibliography and names the table or section."""
    for value in published_values().values():
        assert value.key in bibliography.entries(), value.name
        assert value.what and value.where and value.value, value.name


def test_every_value_that_a_chapter_cites_exists():
    """The roles would fail the build; this says it in a second."""
    for chapter in CHAPTERS:
        for name in re.findall(r"\{cited\}`([^`]+)`", chapter.read_text(encoding="utf-8")):
            assert published(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_chapter_of_a_study_shows_it(name):
    """A verdict that no chapter discusses is one that no reader understands; before its first record there is none."""
    if not get_study(name).others and not get_study(name).records(default_store()):
        pytest.skip("it is still to be run")
    chapter = (ROOT / f"{get_study(name).chapter}.md").read_text(encoding="utf-8")
    assert re.search(rf'"{name}"|`{name}\.|study-{name}\.html', chapter)


def test_a_figure_without_its_records_is_left_out_and_its_claim_says_so(monkeypatch, tmp_path):
    """Chapters hold the places of studies that are still to be run."""
    monkeypatch.setattr("peftbook.core.records.default_store", lambda: Store(tmp_path))
    assert evidence("rank_losses", alt="Losses.", caption="Losses by rank.") is None
    assert "not yet run" in verdicts("rank").html and "peftbook run rank" in verdicts("rank").html


def test_an_unknown_published_value_names_the_nearest():
    """A typo is answered with what was probably meant."""
    with pytest.raises(InputError, match="did you mean 'hu2021-checkpoint-after'"):
        published("hu2021-checkpoint-aftr")


def test_a_formula_keeps_the_punctuation_that_touches_it():
    """And nothing more: the words around it stay text, and none is lost."""
    from peftbook.views.site.mathematics import keep_together

    parts = ["see (", nodes.math("", "x"), "), ", nodes.math("", "y"), "), ", nodes.math("", "z")]
    paragraph = nodes.paragraph("", "", *[nodes.Text(one) if isinstance(one, str) else one for one in parts])
    keep_together(SimpleNamespace(builder=SimpleNamespace(format="html")), paragraph, "page")
    first, second, third = paragraph.findall(nodes.math)
    assert (first["before"], first["after"], second["after"]) == ("(", "),", "),")
    assert "before" not in second and "after" not in third
    assert paragraph.astext() == "see x y z"


def test_tex_becomes_html_and_mathml():
    """Screen readers get MathML, eyes get HTML, and no script is needed."""
    html = render_tex(r"\frac{\alpha}{r} B A x", display=True, script=ROOT / "book/assets/katex/katex.min.js")
    assert "<math" in html and "katex-display" in html and "<script" not in html


@pytest.mark.parametrize(
    ("tex", "expected"),
    [
        (r"G = g\,x^\top, \qquad y = W x .", [r"G = g\,x^\top,", "y = W x ."]),
        (r"a \quad\text{if}\quad b", ["a", r"\text{if}", "b"]),
        (r"\begin{aligned} a &= 1, \quad b \\ c &= 2 \end{aligned}", None),
        (r"\left( a \quad b \right)^{c \qquad d}", None),
        (r"\{ a \leftarrow b \quad \}", [r"\{ a \leftarrow b", r"\}"]),
    ],
)
def test_a_display_parts_at_its_wide_gaps_and_never_inside_a_group(tex, expected):
    """So that a phone can put formulas below each other instead of breaking one."""
    assert parts(tex) == (expected or [tex])


def test_an_error_in_tex_is_an_error():
    """Never a silent red box on the page."""
    with pytest.raises(KatexError, match="Undefined control sequence"):
        render_tex(r"\nosuchmacro", display=False, script=ROOT / "book/assets/katex/katex.min.js")


def test_figures_are_numbered_in_order_and_references_follow():
    """{fig}`b` becomes a link to the second figure."""
    from peftbook.views.site.figure_numbers import FigureReference

    html = [f'<span class="figure-number" data-figure="{name}">Figure</span>' for name in "ab"]
    reference = nodes.paragraph("", "", FigureReference("", "b", target="b"))
    tree = document(reference, *[nodes.raw("", text, format="html") for text in html])
    number_figures(None, tree)
    assert [raw.astext() for raw in tree.findall(nodes.raw)][1].endswith("Figure 2</span>")
    assert next(tree.findall(nodes.reference))["refid"] == "fig-b"


@pytest.mark.parametrize("wrong", [{"name": "Bad Name"}, {"alt": " "}])
def test_a_figure_without_a_usable_name_or_alternative_text_is_refused(wrong):
    """Anchors are stable and images are described, or the cell fails."""
    with pytest.raises(ValueError, match=r"name|alternative text"):
        show(lambda: None, **({"name": "good", "alt": "A line.", "caption": "A line."} | wrong))


class TestUsedFiles:
    """What makes an execution stale."""

    @pytest.fixture
    def used(self, tmp_path):
        (tmp_path / "data.json").write_text("1")
        trace = {"files": [str(tmp_path / "data.json")], "missing": [str(tmp_path / "later.json")]}
        return used_files("page", trace, time.time() + 9, tmp_path)

    def test_nothing_changed_is_fresh_also_after_a_copy(self, used, tmp_path):
        """Paths are stored relative to the root, so a copied cache stays valid."""
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        shutil.copy(tmp_path / "data.json", moved)
        assert changed_files(used, moved) == []

    def test_a_changed_file_is_named(self, used, tmp_path):
        """A record or a module that changed makes the page stale."""
        (tmp_path / "data.json").write_text("2")
        assert changed_files(used, tmp_path) == ["data.json"]

    def test_a_file_that_was_looked_for_and_came_is_named(self, used, tmp_path):
        """A missing record that was computed since makes the page stale."""
        (tmp_path / "later.json").write_text("2")
        assert changed_files(used, tmp_path) == ["later.json"]

    def test_another_lock_file_makes_all_stale(self, used, tmp_path):
        """New versions of libraries may print other numbers."""
        (tmp_path / "constraints.txt").write_text("numpy==2")
        assert changed_files(used, tmp_path)

    def test_an_execution_without_a_list_is_stale(self, tmp_path):
        """What cannot be checked is not trusted."""
        assert changed_files(None, tmp_path) and changed_files({"execution_seconds": 1.0}, tmp_path)

    def test_what_changed_while_it_was_executed_is_not_known(self, tmp_path):
        """It may have used the file as it was before."""
        (tmp_path / "data.json").write_text("1")
        trace = {"files": [str(tmp_path / "data.json")], "missing": []}
        assert changed_files(used_files("page", trace, time.time() - 9, tmp_path), tmp_path)

    def test_a_page_whose_execution_is_dropped_is_read_again(self, used, tmp_path):
        """Though the build is stopped between dropping and reading: the next one does not know what was dropped."""
        trees = {page: tmp_path / f"_build/.doctrees/{page}.doctree" for page in ("stale", "fresh")}
        cache, code = get_cache(tmp_path / "_build/.jupyter_cache"), nbformat.v4.new_code_cell
        for page, files in (("stale", {"data.json": "of before"}), ("fresh", used["files"])):
            bundle = CacheBundleIn(
                nbformat.v4.new_notebook(cells=[code(page)]), str(tmp_path / f"{page}.md"), data=used | {"files": files}
            )
            cache.cache_notebook_bundle(bundle, check_validity=False)
            trees[page].parent.mkdir(parents=True, exist_ok=True)
            trees[page].touch()
        app = SimpleNamespace(
            config=SimpleNamespace(nb_execution_cache_path=""), outdir=tmp_path / "_build/html", srcdir=tmp_path,
            doctreedir=tmp_path / "_build/.doctrees",
        )  # fmt: skip
        drop_stale(app)
        assert [page for page, tree in trees.items() if tree.exists()] == ["fresh"]

    def test_a_page_that_lists_all_records_rests_on_their_folder(self, tmp_path, monkeypatch):
        """The trace has the folder, and its hash is another once a record is added."""
        trace = Trace(tmp_path / "trace.json", (str(tmp_path),))
        monkeypatch.setattr(tracking.sys, "audit", lambda event, *given: trace.audit(event, given))
        list(Store(tmp_path).all())
        trace.write()
        assert str(tmp_path) in json.loads((tmp_path / "trace.json").read_text())["files"]
        (tmp_path / "trace.json").unlink()
        before = file_hash(tmp_path)
        (tmp_path / "0123456789ab.json").write_text("{}")
        assert None not in (before, file_hash(tmp_path)) and before != file_hash(tmp_path)


CHAPTER = """---
kernelspec: {{name: python3, display_name: Python 3, language: python}}
jupytext: {{text_representation: {{extension: .md, format_name: myst}}}}
---
# Chapter

```{{code-cell}} python
{code}
```
"""
CONFIGURATION = """
extensions = ["myst_nb", "peftbook.views.site.prefetch"]
nb_execution_mode = "cache"
html_theme = "basic"
exclude_patterns = ["package", "_build"]
"""

BUILDER = """
import json, os, sys
import myst_nb.sphinx_ext, sphinx.application, sphinx.builders.html, sphinx.cmd.build

while line := sys.stdin.readline():
    if (pid := os.fork()) == 0:
        asked = json.loads(line)
        for stream, name in enumerate(asked["logs"], 1):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.environ["PYTHONPATH"] = sys.path[0] = asked["package"]
        status = sphinx.cmd.build.main(asked["options"])
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def sphinx():
    """A process that has Sphinx and forks for each build; what it has of the package is nothing."""
    command, env = [sys.executable, "-c", BUILDER], os.environ | {"PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as process:
        yield process


class SmallBook:
    """Three chapters, and the copy of the package that their kernels import."""

    def __init__(self, sphinx: subprocess.Popen, root: Path):
        self.sphinx = sphinx
        self.root, self.package, self.data = root, root / "package" / "peftbook", root / "data.txt"
        shutil.copytree(
            ROOT / "src/peftbook", self.package, ignore=shutil.ignore_patterns("records", "data", "__pycache__")
        )
        kernels = self.package / "views/site/prefetch.py"  # no chapter here needs what those of the book do
        kernels.write_text(re.sub(r"(?s)^LIBRARIES = \(.*?\n\)", "LIBRARIES = ()", kernels.read_text(), flags=re.M))
        (root / "conf.py").write_text(CONFIGURATION)
        self.edit(noun=1, data="data")
        self.write("index", "1 + 1")
        self.write("imports", "import peftbook.noun; print(peftbook.noun.VALUE)")
        self.write("opens", f"print(open({str(self.data)!r}).read())")

    def write(self, name: str, code: str) -> None:
        (self.root / f"{name}.md").write_text(CHAPTER.format(code=code))

    def edit(self, *, noun: int | None = None, data: str = "") -> None:
        """A module of the package that one chapter imports, a file that another opens."""
        if noun is not None:
            (self.package / "noun.py").write_text(f"VALUE = {noun}\n")
        if data:
            self.data.write_text(data)

    def executed(self, *options: str) -> set[str]:
        """Build; the pages that started a kernel."""
        place, logs = str(self.root / "_build/html"), [self.root / "said.log", self.root / "errors.log"]
        asked = {"options": ["-b", "html", *options, str(self.root), place], "logs": [*map(str, logs)]}
        # The kernel imports the copy that the test edits, and so does the build.
        print(json.dumps(asked | {"package": str(self.package.parent)}), file=self.sphinx.stdin, flush=True)
        status = self.sphinx.stdout.readline()
        said, errors = (log.read_text() for log in logs)
        assert status == "0\n", errors
        return set(re.findall(r"^executed (\w+)", said, re.MULTILINE))

    def page(self, name: str) -> str:
        return (self.root / f"_build/html/{name}.html").read_text()


@pytest.mark.slow
def test_only_chapters_whose_package_module_or_data_changed_run_again(sphinx, tmp_path):
    """Notebook caches know cells only; this one knows modules too: an edit re-executes its importers, no other page."""
    book = SmallBook(sphinx, tmp_path)
    assert book.executed() == {"index", "imports", "opens"}
    book.edit(noun=2)
    assert book.executed() == {"imports"}
    assert ">2\n" in book.page("imports")
    book.edit(data="other data")
    assert book.executed() == {"opens"}
    assert "other data" in book.page("opens")
    book.edit(noun=3, data="more data")
    assert book.executed() == {"imports", "opens"}
    assert book.executed("-E", "-a") == set()
    book.write("opens", "raise ValueError('stop')")
    for _ in range(2):  # a failed execution is not cached
        assert book.executed() == {"opens"}
    book.write("opens", "print('whole again')")
    assert book.executed() == {"opens"} and book.executed() == set()


def test_downloaded_notebooks_are_what_the_page_shows_in_plain_markdown(built_site):
    """The page's code with its outputs, numbered figures, solutions folded away; no role, directive or dead link."""
    notebooks = sorted((built_site / "_sources" / "book").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert not code or any(cell.outputs for cell in code), path.name
        source = (ROOT / "book" / path.with_suffix(".md").name).read_text(encoding="utf-8")
        assert all(cell.source in source for cell in code), path.name
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        left = re.findall(
            r"\{[\w:]+\}`[^`]*`|^:{3,}.*|^`{3,}\{.*|\]\([\w./-]*\.md[^)]*\)|\[Figure \]", text, re.MULTILINE
        )
        assert not left, (path.name, left[:3])
        assert text.count("<details>") == source.count("{solution}"), path.name


def test_every_run_has_a_page_with_its_record_and_command(built_site):
    """A reader of any number can open, download and repeat the run behind it."""
    for record in default_store().all():
        page = (built_site / f"book/runs/{record.short_key}.html").read_text(encoding="utf-8")
        assert f"peftbook run --key {record.short_key}" in page and record.key in page
        assert json.loads((built_site / f"book/runs/{record.short_key}.json").read_text())["key"] == record.key
