"""The book's look as a Gradio theme: the colours are variables of `style.css`, where light and dark differ."""

from __future__ import annotations

import gradio as gr

HEAD = (
    '<meta name="color-scheme" content="light dark"><link rel="icon" href="/studio/icon.svg">'
    '<link rel="stylesheet" href="/studio/style.css"><script src="/studio/page.js"></script>'
)
FONT, MONO = ("Inter", "system-ui", "sans-serif"), ("JetBrains Mono", "ui-monospace", "monospace")
PAPER = {
    "body_background_fill": "#fcfbf8",
    "body_background_fill_dark": "#14181d",
    "body_text_color": "#1f2933",
    "body_text_color_dark": "#dde2e7",
}
PAINTED = {  # colour → what has it
    "var(--muted)": "body_text_color_subdued block_info_text_color checkbox_border_color input_placeholder_color",
    "var(--paper)": (
        "background_fill_primary checkbox_background_color checkbox_background_color_focus "
        "button_primary_text_color button_primary_text_color_hover"
    ),
    "var(--raised)": (
        "background_fill_secondary code_background_fill checkbox_background_color_hover "
        "checkbox_label_background_fill_hover button_secondary_background_fill_hover"
    ),
    "var(--rule)": "border_color_primary block_border_color panel_border_color table_border_color",
    "var(--accent)": (
        "border_color_accent link_text_color link_text_color_active link_text_color_visited "
        "checkbox_background_color_selected checkbox_border_color_focus checkbox_border_color_hover "
        "checkbox_border_color_selected input_border_color_focus input_border_color_hover loader_color slider_color "
        "button_primary_background_fill button_primary_border_color button_secondary_border_color_hover"
    ),
    "var(--accent-soft)": "color_accent_soft",
    "var(--ink)": (
        "link_text_color_hover block_label_text_color block_title_text_color accordion_text_color table_text_color "
        "checkbox_label_text_color checkbox_label_text_color_selected button_primary_background_fill_hover "
        "button_primary_border_color_hover button_secondary_text_color button_secondary_text_color_hover"
    ),
    "transparent": (
        "block_background_fill block_label_background_fill panel_background_fill checkbox_label_background_fill "
        "checkbox_label_background_fill_selected checkbox_label_border_color checkbox_label_border_color_hover "
        "button_secondary_background_fill button_cancel_background_fill"
    ),
    "var(--warn-soft)": "error_background_fill button_cancel_background_fill_hover",
    "var(--warn)": (
        "error_border_color error_text_color error_icon_color button_cancel_border_color "
        "button_cancel_border_color_hover button_cancel_text_color button_cancel_text_color_hover"
    ),
    "var(--field)": "input_background_fill input_background_fill_focus",
    "var(--edge)": "input_border_color button_secondary_border_color",
    "none": "input_shadow input_shadow_focus",
}
SIZED = {  # size or weight → what has it
    "0px": "block_border_width block_padding form_gap_width checkbox_label_border_width panel_border_width",
    "none": "block_shadow button_primary_shadow button_secondary_shadow checkbox_label_shadow checkbox_shadow",
    "14px": "layout_gap input_text_size button_large_text_size checkbox_label_text_size",
    "600": "block_title_text_weight button_large_text_weight",
    "13px": "block_title_text_size block_label_text_size",
    "12.5px": "block_info_text_size",
    "1px": "input_border_width button_border_width",
    "8px 10px": "input_padding",
    "4px": "input_radius block_radius container_radius button_large_radius",
    "8px 16px": "button_large_padding",
    "4px 0": "checkbox_label_padding",
    "400": "checkbox_label_text_weight",
    "9px": "checkbox_label_gap",
}


def by_name(listed: dict[str, str]) -> dict[str, str]:
    """Name of a variable → its value."""
    return {name: value for value, names in listed.items() for name in names.split()}


def theme() -> gr.themes.Base:
    """Both modes read the same variables."""
    colours = by_name(PAINTED)
    base = gr.themes.Base(font=FONT, font_mono=MONO, radius_size="sm", spacing_size="sm", text_size="md")
    dark = {f"{name}_dark": value for name, value in colours.items() if f"{name}_dark" in base.set.__code__.co_varnames}
    return base.set(**PAPER, **colours, **dark, **by_name(SIZED))


THEME = theme()
