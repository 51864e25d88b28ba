"""The look: theme options, style sheets, scripts, header buttons; and nothing that loads from another host."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from peftbook.core.stamp import inputs_hash
from peftbook.views.export import epub
from peftbook.views.site import identity, orientation

SIDEBARS = ["book-title.html", "search-button-field.html", "sbt-sidebar-nav.html"]
# Scripts that JupyterBook's default extensions add to every page and this book does not use.
# The theme's options inside the page serve its switch of versions alone, and would hold the text up for their file.
UNUSED_SCRIPTS = ("thebe", "THEBE_JS_URL", "fontawesome.js", "design-tabs.js", "DOCUMENTATION_OPTIONS.")
UNUSED_STYLES = ("sphinx-thebe.css",)
PLAIN_TOKEN = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')  # both styles give these the block's colour
OPTIONS = {
    "navbar_persistent": [],
    "navbar_end": [],
    "article_footer_items": ["lecture.html", "cite-chapter.html"],
    "footer_content_items": ["book-footer.html"],
    "use_download_button": False,  # own header buttons below
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "back_to_top_button": False,
    "search_bar_text": "Search this book",
    "home_page_in_toc": False,
    "show_navbar_depth": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def set_options(app: Any, config: Any) -> None:
    """Update theme options in place: assigning them in `_config.yml` would drop the theme's own."""
    config.html_theme_options = {**config.html_theme_options, **OPTIONS}
    config.html_sidebars = {"**": SIDEBARS}
    config.html_title = identity.TITLE
    config.html_baseurl = identity.PUBLIC_ADDRESS
    config.html_favicon = "book/assets/images/favicon.svg"
    config.html_static_path = [*config.html_static_path, "book/assets"]
    config.templates_path = ["book/templates", *config.templates_path]
    config.html_context = {**config.html_context, "default_mode": "auto"}
    config.html_last_updated_fmt = None
    config.html_copy_source = True
    config.html_show_sphinx = False
    config.version = config.release = identity.version()


def hash_frame(app: Any, config: Any) -> None:
    """A value that Sphinx compares: when what surrounds the text changes, every page is written again."""
    templates = Path(app.srcdir, "book/templates").rglob("*.html")
    glossary = Path(app.srcdir, f"{orientation.GLOSSARY}.md")
    config.peftbook_frame = inputs_hash([*Path(__file__).parent.glob("*.py"), *templates, glossary])


def own_header_buttons(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Downloads, launchers and the repository, in place of the theme's own."""
    address = f"{identity.REPOSITORY}/blob/main/{page}.md"
    groups = []
    if doctree is not None and context.get("page_source_suffix"):
        sources = context["pathto"]("_sources", 1)
        book = context["pathto"](epub.NAME, 1)
        downloads = [
            _link(f"{sources}/{context['sourcename']}", "Source (.md)", "Download the MyST Markdown source"),
            _link(book, "Whole book (.epub)", "Download all chapters as an EPUB"),
        ]
        groups.append(_group("Download", "icon-download", downloads, "download-buttons"))
        if notebook := context.get("ipynb_source"):
            tooltip = "Download as a notebook with outputs"
            downloads.insert(0, _link(f"{sources}/{notebook}", "Notebook (.ipynb)", tooltip))
            groups.append(_group("Run this page elsewhere", "icon-launch", _launchers(notebook), "launch-buttons"))
    if context.get("page_source_suffix"):
        issue = f"{identity.REPOSITORY}/issues/new?title=Issue%20on%20{page}"
        links = [_link(address, "Source on GitHub", "Show the source")]
        links.append(_link(issue, "Report a problem", "Open an issue"))
        groups.append(_group("Repository", "icon-repository", links, "source-buttons"))
    context["header_buttons"] = groups


def _link(url: str, text: str, tooltip: str) -> dict[str, Any]:
    return {"type": "link", "url": url, "text": text, "tooltip": tooltip}


def _group(tooltip: str, icon: str, buttons: list[dict[str, Any]], label: str) -> dict[str, Any]:
    return {"type": "group", "tooltip": tooltip, "icon": f"book-icon {icon}", "buttons": buttons, "label": label}


def _launchers(notebook: str) -> list[dict[str, Any]]:
    """The built notebook on Colab and Binder: the Markdown source would not open there."""
    owner = identity.REPOSITORY.removeprefix("https://github.com/")
    path = f"_sources/{notebook}"
    colab = f"https://colab.research.google.com/github/{owner}/blob/{identity.PAGES_BRANCH}/{path}"
    binder = f"https://mybinder.org/v2/gh/{owner}/{identity.PAGES_BRANCH}?urlpath=lab/tree/{path}"
    return [_link(colab, "Colab", "Open in Google Colab"), _link(binder, "Binder", "Open on Binder")]


def drop_unused(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Drop scripts and styles that are unused, declared twice or would fetch from another host."""
    for kind, unused in (("script_files", UNUSED_SCRIPTS), ("css_files", UNUSED_STYLES)):
        kept = [item for item in context.get(kind, []) if not any(name in _name(item) for name in unused)]
        context[kind] = [item for item in kept if not _name(item).startswith(("http:", "https:", "//"))]
    for script in context.get("script_files", []):
        if getattr(script, "filename", None):
            script.attributes.setdefault("defer", "defer")


def _name(item: Any) -> str:
    body = getattr(item, "attributes", {}).get("body") or ""
    return f"{getattr(item, 'filename', None) or item} {body}" if body else str(getattr(item, "filename", None) or item)


def tidy_body(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Names, punctuation and spaces of code look as the text around them: they need no elements of their own.

    Works of the bibliography are entries of a list: the role that docutils gives them is deprecated.
    """
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = PLAIN_TOKEN.sub(r"\1", body)


def share_html_nodes(app: Any) -> None:
    """Let other builders of HTML draw what extensions draw for `html` alone.

    Sphinx looks no further where one extension has named such a builder for some node of its own.
    """
    known = app.registry.translation_handlers
    if app.builder.format == "html" and app.builder.name in known:
        known[app.builder.name] = {**known["html"], **known[app.builder.name]}


def drop_unused_files(app: Any, error: Exception | None) -> None:
    """Remove copied theme files that no page loads."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for pattern in ("scripts/fontawesome.js*", "scripts/*.map", "styles/*.map", "sphinx-thebe*", "locales", "vendor"):
        for path in static.glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def setup(app: Any) -> None:
    """Connect the look to the build."""
    app.add_config_value("peftbook_frame", "", "html", str)
    app.connect("config-inited", hash_frame)
    app.connect("config-inited", set_options, priority=100)
    app.connect("builder-inited", share_html_nodes)
    app.add_css_file("css/book.css", priority=900)
    app.add_js_file("js/book.js", loading_method="defer", priority=900)
    app.connect("html-page-context", own_header_buttons, priority=600)
    app.connect("html-page-context", drop_unused, priority=900)
    app.connect("html-page-context", tidy_body)
    app.connect("build-finished", drop_unused_files)
