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
COLOURS = {
    "body_text_color_subdued": "var(--muted)",
    "background_fill_primary": "var(--paper)",
    "background_fill_secondary": "var(--raised)",
    "border_color_primary": "var(--rule)",
    "border_color_accent": "var(--accent)",
    "color_accent_soft": "var(--accent-soft)",
    "link_text_color": "var(--accent)",
    "link_text_color_hover": "var(--ink)",
    "link_text_color_active": "var(--accent)",
    "link_text_color_visited": "var(--accent)",
    "code_background_fill": "var(--raised)",
    "block_background_fill": "transparent",
    "block_border_color": "var(--rule)",
    "block_info_text_color": "var(--muted)",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--ink)",
    "block_title_text_color": "var(--ink)",
    "panel_background_fill": "transparent",
    "panel_border_color": "var(--rule)",
    "accordion_text_color": "var(--ink)",
    "table_text_color": "var(--ink)",
    "checkbox_background_color": "var(--paper)",
    "checkbox_background_color_focus": "var(--paper)",
    "checkbox_background_color_hover": "var(--raised)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--muted)",
    "checkbox_border_color_focus": "var(--accent)",
    "checkbox_border_color_hover": "var(--accent)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "var(--raised)",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_border_color": "transparent",
    "checkbox_label_border_color_hover": "transparent",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "error_background_fill": "var(--warn-soft)",
    "error_border_color": "var(--warn)",
    "error_text_color": "var(--warn)",
    "error_icon_color": "var(--warn)",
    "input_background_fill": "var(--field)",
    "input_background_fill_focus": "var(--field)",
    "input_border_color": "var(--edge)",
    "input_border_color_focus": "var(--accent)",
    "input_border_color_hover": "var(--accent)",
    "input_placeholder_color": "var(--muted)",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "loader_color": "var(--accent)",
    "slider_color": "var(--accent)",
    "table_border_color": "var(--rule)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--ink)",
    "button_primary_border_color": "var(--accent)",
    "button_primary_border_color_hover": "var(--ink)",
    "button_primary_text_color": "var(--paper)",
    "button_primary_text_color_hover": "var(--paper)",
    "button_secondary_background_fill": "transparent",
    "button_secondary_background_fill_hover": "var(--raised)",
    "button_secondary_border_color": "var(--edge)",
    "button_secondary_border_color_hover": "var(--accent)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
    "button_cancel_background_fill": "transparent",
    "button_cancel_background_fill_hover": "var(--warn-soft)",
    "button_cancel_border_color": "var(--warn)",
    "button_cancel_border_color_hover": "var(--warn)",
    "button_cancel_text_color": "var(--warn)",
    "button_cancel_text_color_hover": "var(--warn)",
}
SHAPES = {
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "form_gap_width": "0px",
    "layout_gap": "14px",
    "block_title_text_weight": "600",
    "block_title_text_size": "13px",
    "block_info_text_size": "12.5px",
    "block_label_text_size": "13px",
    "input_border_width": "1px",
    "input_padding": "8px 10px",
    "input_text_size": "14px",
    "input_radius": "4px",
    "block_radius": "4px",
    "container_radius": "4px",
    "button_border_width": "1px",
    "button_large_padding": "8px 16px",
    "button_large_radius": "4px",
    "button_large_text_size": "14px",
    "button_large_text_weight": "600",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "checkbox_label_padding": "4px 0",
    "checkbox_label_border_width": "0px",
    "checkbox_label_shadow": "none",
    "checkbox_shadow": "none",
    "checkbox_label_text_size": "14px",
    "checkbox_label_text_weight": "400",
    "checkbox_label_gap": "9px",
    "panel_border_width": "0px",
}


def theme() -> gr.themes.Base:
    """Both modes read the same variables."""
    base = gr.themes.Base(font=FONT, font_mono=MONO, radius_size="sm", spacing_size="sm", text_size="md")
    dark = {f"{name}_dark": value for name, value in COLOURS.items() if f"{name}_dark" in base.set.__code__.co_varnames}
    return base.set(**PAPER, **COLOURS, **dark, **SHAPES)


THEME = theme()
