"""How the page looks: theme, CSS, and the line at its top."""

from __future__ import annotations

import html

import gradio as gr

from triptych.server.page.context import Context

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]
ICON = (
    "<link rel=\"icon\" href=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'"
    "><path fill='%233a3f58' d='M1 2h4v12H1zm5 0h4v12H6zm5 0h4v12h-4z'/></svg>\">"
)
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.triptych-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.25rem 1rem; }
.triptych-head h1 { font-size: 1.4rem; margin: 0; }
.triptych-head p { margin: 0; opacity: 0.8; }
.triptych-message:not(:empty) p { margin: 0; }
"""


def theme() -> gr.Theme:
    """Calm: greys, one blue, the system's own fonts."""
    made: gr.Theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="stone", font=_FONTS, font_mono=_MONO, radius_size="md"
    )
    return made


def head(context: Context) -> str:
    """The line at the top: what makes the pictures here."""
    about = context.server.about
    lora = " with a LoRA" if about["lora"] else ""
    return (
        '<div class="triptych-head"><h1>triptych</h1>'
        f"<p>Pictures by <strong>{html.escape(str(about['model']))}</strong>{lora}.</p></div>"
    )
