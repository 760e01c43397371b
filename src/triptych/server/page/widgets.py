"""Components that gradio does not have: a photo whose file stays as it was sent, and the polygon canvas."""

from __future__ import annotations

import gradio as gr
from gradio.data_classes import ImageData

_MOUNT = """
let canvas = null, shown = null, queue = Promise.resolve();
const home = element.querySelector(".triptych-region");
const module = import(new URL("../files/polygon_canvas.js", document.baseURI).href);
async function show(value) {
  const { mountPolygonCanvas } = await module;
  if (!value?.upload) {
    canvas?.destroy();
    canvas = shown = null;
    home.textContent = "Drop a photo of the person first; then draw here what is made anew.";
    return;
  }
  const { polygons = [], holes = [] } = value;
  if (canvas && shown === value.upload) return canvas.setPolygons(polygons, holes);
  canvas?.destroy();
  home.textContent = "";
  shown = value.upload;
  canvas = mountPolygonCanvas(home, {
    imageUrl: new URL("../files/preview/" + value.upload, document.baseURI).href,
    width: value.width, height: value.height, polygons, holes,
    onChange: (polygons, holes = []) => {
      props.value = { ...props.value, polygons, holes };
      trigger("change");
    },
    onOpen: (open) => { props.value = { ...props.value, open }; },
  });
}
const update = () => (queue = queue.then(() => show(props.value)));
watch("value", update);
update();
"""


def photo(label: str, elem_id: str) -> gr.Image:
    """A photo that is dropped. In Python it is the path of the very file that was sent: nothing is decoded or
    written anew, so its hash stays what it was, and what is no picture gets our own sentence.

    No subclass: gradio writes a file beside the source of each.
    """
    made = gr.Image(
        label=label,
        type="filepath",
        format="png",
        sources=["upload", "clipboard"],
        image_mode=None,
        height=260,
        buttons=[],
        elem_id=elem_id,
    )
    made.preprocess = _path  # type: ignore[method-assign]
    return made


def _path(payload: ImageData | None) -> str | None:
    return payload.path if payload else None


def polygon_canvas(elem_id: str) -> gr.HTML:
    """The canvas of `triptych/web/polygon_canvas.js`. Its value is a dict: `upload`, the id of the photo, its
    `width` and `height`, `polygons` and `holes` in its pixels, and `open`, the number of corners of an
    outline that is not closed yet; or None without a photo.
    """
    return gr.HTML(
        None, html_template='<div class="triptych-region"></div>', js_on_load=_MOUNT, elem_id=elem_id
    )
