"""How the page looks: theme, CSS, and the line at its top."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from triptych.server.page.context import Context

_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<path fill='#3a3f58' d='M1 2h4v12H1zm5 0h4v12H6zm5 0h4v12h-4z'/></svg>"
)
CSS = """
@media (min-width: 700px) { html { scrollbar-gutter: stable; } }
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important;
  overflow: clip !important; }
.gradio-container > .main { width: 100%; max-width: none !important; margin: 0 !important; }
.triptych-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.25rem 1rem; }
.triptych-head h1 { font-size: 1.4rem; margin: 0; }
.triptych-head p { margin: 0; }
.triptych-help { margin: 0; font-size: 0.85rem; line-height: 1.4; color: var(--body-text-color-subdued); }
.triptych-empty { padding: 1.5rem 1rem; border: 1px dashed var(--border-color-primary); border-radius: 8px;
  overflow-wrap: anywhere; }
.triptych-empty pre { white-space: pre-wrap; }
.gradio-container [role=alert] { padding: 0.6rem 0.8rem; border-left: 4px solid #b3261e; background: #fbeae8;
  color: #3a0f0b; border-radius: 4px; }
.gradio-container [role=alert] p { margin: 0; }
.triptych-remarks { font-size: 0.9rem; }
.triptych-remarks ul, ul.triptych-remarks { margin: 0.2rem 0 0; padding-left: 1.2rem; list-style: disc; }
@media (min-width: 900px) {
  .triptych-columns > :last-child { position: sticky; top: 1rem; align-self: flex-start; }
}
.triptych-line { align-items: flex-end; }
.triptych-region:not(:has(canvas)) { padding: 1.5rem 1rem; border: 1px dashed var(--border-color-primary);
  border-radius: 8px; }
.triptych-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 0.75rem; }
.triptych-grid figure { margin: 0; }
.triptych-grid img { width: 100%; border-radius: 6px; display: block; }
.triptych-grid figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; font-size: 0.8rem;
  margin-top: 0.25rem; }
.triptych-jobs { list-style: none; margin: 0; padding: 0; }
.triptych-jobs li { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; padding: 0.75rem 0;
  border-top: 1px solid var(--border-color-primary); }
.triptych-jobs .pictures { display: flex; flex-wrap: wrap; gap: 0.4rem; min-width: 72px; }
.triptych-jobs img { height: 96px; border-radius: 4px; display: block; }
.triptych-jobs .is-queued img, .triptych-jobs .is-running img { opacity: 0.6; }
.triptych-jobs .words { flex: 1 1 260px; }
.triptych-jobs p { margin: 0 0 0.2rem; overflow-wrap: anywhere; }
.triptych-jobs button { min-height: 36px; padding: 0 1rem; border: 1px solid currentColor; border-radius: 6px;
  background: none; cursor: pointer; }
.gradio-container progress { appearance: none; width: 100%; height: 10px; border: 0; border-radius: 5px;
  overflow: hidden; background: var(--neutral-200); }
.gradio-container progress::-webkit-progress-bar { background: var(--neutral-200); }
.gradio-container progress::-webkit-progress-value { background: var(--primary-600); }
.gradio-container progress::-moz-progress-bar { background: var(--primary-600); }
"""


def theme() -> gr.Theme:
    """Calm: greys, one blue, the system's own fonts."""
    made: Any = gr.themes.Base(
        primary_hue="indigo", neutral_hue="stone", font=_FONTS, font_mono=_MONO, radius_size="md"
    )
    calm: gr.Theme = made.set(
        body_text_color_subdued="*neutral_600",
        color_accent="*primary_600",
        block_info_text_color="*neutral_600",
        block_label_text_color="*neutral_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
    return calm


def head(context: Context) -> str:
    """The line at the top: what makes the pictures here."""
    about = context.server.about
    lora = " with a LoRA" if about["lora"] else ""
    return (
        '<div class="triptych-head"><h1>triptych</h1>'
        f"<p>Pictures by <strong>{html.escape(str(about['model']))}</strong>{lora}.</p></div>"
    )
