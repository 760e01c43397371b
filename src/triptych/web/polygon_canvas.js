// Draw polygons on a photo. One ES module without dependencies or requests, for a web page and for a notebook (anywidget).
//
//   const canvas = mountPolygonCanvas(element, { imageUrl, width, height, polygons, onChange });
//
// width, height: size of the photo in pixels; the picture behind imageUrl may be a smaller preview of it.
// polygons: [[[x, y], ...], ...] in pixels of the photo, whatever the size on screen. White/inside = repainted.
// onChange(polygons) is called after every change of the closed polygons. The outline being drawn does not count yet.
// Returned: { getPolygons(), setPolygons(polygons), undo(), redo(), deleteSelected(), clear(), destroy() }.

const REACH = { mouse: 9, pen: 12, touch: 22 }; // how near to a corner counts as on it, in CSS pixels
const TINT = "rgba(255, 64, 96, 0.42)";
const KEYS =
  "Keys: Enter closes, Backspace removes the last corner, Esc cancels, Ctrl+Z / Ctrl+Y undo and redo, " +
  "Delete removes the selected outline, arrows move the cross, Space sets a corner, N selects the next corner for the arrows.";

const STYLE = `
.triptych-canvas { width: 100%; font: 14px/1.4 system-ui, sans-serif; }
.triptych-canvas canvas { display: block; touch-action: none; cursor: crosshair; user-select: none; background: #8883; }
.triptych-canvas canvas:focus-visible { outline: 3px solid #2f7bff; outline-offset: -3px; }
.triptych-canvas .bar { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 6px; }
.triptych-canvas .bar button { font: inherit; min-height: 32px; padding: 2px 12px; cursor: pointer; }
.triptych-canvas .bar button:disabled { cursor: default; }
.triptych-canvas p { margin: 6px 0 0; }
.triptych-canvas .keys { font-size: 12px; opacity: 0.75; }
.triptych-canvas .swatch { display: inline-block; width: 1em; height: 1em; vertical-align: -0.15em; margin-right: 0.4em;
  background: ${TINT}; border: 2px solid #ff4060; box-sizing: border-box; }`;

export function mountPolygonCanvas(element, { imageUrl, width, height, polygons = [], onChange = () => {} }) {
  let closed = copy(polygons);
  let open = []; // corners of the outline being drawn
  let selected = null; // { polygon, corner }: indices into `closed`; corner may be null
  let cursor = null; // the keyboard's cross, in photo pixels
  let pointer = null; // the mouse, for the line that follows it
  let drag = null; // { corners: the [x, y] that move, start, before: snapshot or null, moved }
  let past = [];
  let future = [];
  let scale = 1; // CSS pixels per photo pixel
  let reported = JSON.stringify(closed);

  // --- elements ---

  const root = make("div", "triptych-canvas", element);
  // JupyterLab would run its own commands, D D deletes the cell: it listens for what bubbles up, older ones heed the mark.
  root.dataset.lmSuppressShortcuts = "true";
  root.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
  make("style", "", root).textContent = STYLE;
  const bar = make("div", "bar", root);
  const undo = () => step(past, future);
  const redo = () => step(future, past);
  const undoButton = button("Undo", undo);
  const redoButton = button("Redo", redo);
  const closeButton = button("Close outline", close);
  const deleteButton = button("Delete selected", deleteSelected);
  const clearButton = button("Clear all", clear);
  const canvas = make("canvas", "", root);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Photo to draw outlines on. Inside an outline = repainted. " + KEYS);
  const legend = make("p", "legend", root);
  make("span", "swatch", legend);
  legend.append("inside = repainted; everything outside stays as it is.");
  const status = make("p", "status", root);
  status.setAttribute("aria-live", "polite");
  make("p", "keys", root).textContent = KEYS;
  const context = canvas.getContext("2d");
  const photo = new Image();
  photo.onload = draw;
  photo.onerror = () => (status.textContent = "The photo could not be shown.");
  photo.src = imageUrl;

  function make(tag, name, parent) {
    const child = document.createElement(tag);
    if (name) child.className = name;
    parent.append(child);
    return child;
  }

  function button(label, action) {
    const made = make("button", "", bar);
    made.type = "button";
    made.textContent = label;
    made.addEventListener("click", () => {
      action();
      canvas.focus({ preventScroll: true });
    });
    return made;
  }

  // --- state ---

  const snapshot = () => JSON.stringify({ closed, open });

  function change(edit, before = snapshot()) {
    edit();
    past.push(before);
    future = [];
    changed();
  }

  function changed() {
    if (selected && !(selected.polygon < closed.length)) selected = null;
    const now = JSON.stringify(closed);
    if (now !== reported) {
      reported = now;
      onChange(copy(closed));
    }
    draw();
  }

  function step(from, to) {
    if (!from.length) return;
    to.push(snapshot());
    ({ closed, open } = JSON.parse(from.pop()));
    selected = drag = null;
    changed();
  }

  function close() {
    const corners = open.filter((corner, i) => i === 0 || distance(corner, open[i - 1]) > 0.01);
    if (corners.length < 3) return;
    change(() => {
      closed.push(corners);
      open = [];
      selected = { polygon: closed.length - 1, corner: null };
    });
  }

  function cancel() {
    selected = cursor = null;
    if (open.length) change(() => (open = []));
  }

  function deleteSelected() {
    if (!selected) return;
    change(() => {
      closed.splice(selected.polygon, 1);
      selected = null;
    });
  }

  function clear() {
    if (closed.length || open.length) change(() => ([closed, open, selected] = [[], [], null]));
  }

  function setPolygons(value) {
    if (JSON.stringify(value) === JSON.stringify(closed)) return; // our own change, come back from the notebook
    past.push(snapshot());
    future = [];
    closed = copy(value);
    open = [];
    selected = drag = null;
    reported = JSON.stringify(closed);
    draw();
  }

  // --- where things are ---

  function clamp([x, y]) {
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)].map((v) => Math.round(v * 100) / 100);
  }

  function position(event) {
    const box = canvas.getBoundingClientRect();
    return clamp([((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height]);
  }

  const near = (a, b, reach) => distance(a, b) * scale <= reach;
  const allCorners = () => closed.flatMap((corners, polygon) => corners.map((_, corner) => ({ polygon, corner })));

  // Corners of one outline in one place, where a cut leads to a hole, move together.
  const together = (corner) =>
    (closed.find((corners) => corners.includes(corner)) ?? [corner]).filter((other) => other[0] === corner[0] && other[1] === corner[1]);

  function polygonAt([x, y]) {
    context.resetTransform(); // it would apply to the path, but not to the point
    return closed.findLastIndex((corners) => context.isPointInPath(trace(corners, 1), x, y));
  }

  // --- pointer ---

  function press(point, reach) {
    // Returns the corner that a drag would now move.
    if (open.length) {
      if (open.length >= 3 && near(point, open[0], reach)) return close();
      const last = open.at(-1);
      if (near(point, last, 4)) return last; // the second half of a double click
      change(() => open.push(point));
      return open.at(-1);
    }
    selected = allCorners().findLast((at) => near(point, closed[at.polygon][at.corner], reach)) ?? null;
    if (selected) return closed[selected.polygon][selected.corner];
    const polygon = polygonAt(point);
    if (polygon >= 0) selected = { polygon, corner: null };
    else change(() => open.push(point));
    return open.at(-1);
  }

  function onPointerDown(event) {
    if (!event.isPrimary || event.button !== 0) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    cursor = null;
    const point = position(event);
    const before = snapshot();
    const corner = press(point, REACH[event.pointerType] ?? REACH.mouse);
    // A corner that was just set moves along without a second step to undo.
    drag = corner ? { corners: together(corner), start: point, before: snapshot() === before ? before : null, moved: false } : null;
    if (drag) canvas.setPointerCapture(event.pointerId);
    draw();
  }

  function onPointerMove(event) {
    if (!event.isPrimary) return;
    pointer = position(event);
    if (drag && (drag.moved || !near(pointer, drag.start, 3))) {
      drag.moved = true;
      for (const corner of drag.corners) [corner[0], corner[1]] = pointer;
    }
    if (drag || open.length) draw();
  }

  function onPointerUp() {
    const done = drag;
    drag = null;
    if (!done?.moved) return;
    if (done.before) change(() => {}, done.before);
    else changed();
  }

  // --- keyboard ---

  function onKeyDown(event) {
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    if (command && key === "z") (event.shiftKey ? redo : undo)();
    else if (command && key === "y") redo();
    else if (command || event.altKey) return;
    else if (arrow) move(arrow, (event.shiftKey ? 20 : 2) / scale);
    else if (key === "Enter") close();
    else if (key === " ") press(cursor ?? (cursor = [width / 2, height / 2]), REACH.mouse);
    else if (key === "Escape") cancel();
    else if (key === "Backspace" && open.length) change(() => open.pop());
    else if (key === "Delete" || key === "Backspace") deleteSelected();
    else if (key === "n") selectNext();
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  }

  function move([dx, dy], distance) {
    const corner = selected?.corner != null && !open.length ? closed[selected.polygon][selected.corner] : null;
    const [x, y] = corner ?? cursor ?? [width / 2, height / 2];
    const to = clamp([x + dx * distance, y + dy * distance]);
    if (corner) change(() => together(corner).forEach((one) => ([one[0], one[1]] = to)));
    else cursor = to;
  }

  function selectNext() {
    const all = allCorners();
    const now = all.findIndex((at) => at.polygon === selected?.polygon && at.corner === selected.corner);
    selected = all[(now + 1) % all.length] ?? null;
  }

  // --- drawing ---

  function fit() {
    const room = root.clientWidth || 320;
    scale = Math.min(room / width, Math.max(240, window.innerHeight * 0.8) / height);
    const ratio = window.devicePixelRatio || 1;
    const sides = [width * scale, height * scale];
    [canvas.style.width, canvas.style.height] = sides.map((side) => `${side}px`);
    [canvas.width, canvas.height] = sides.map((side) => Math.max(1, Math.round(side * ratio)));
    draw();
  }

  function trace(corners, zoom = scale, path = new Path2D(), whole = true) {
    corners.forEach(([x, y], i) => (i ? path.lineTo(x * zoom, y * zoom) : path.moveTo(x * zoom, y * zoom)));
    if (whole) path.closePath();
    return path;
  }

  function stroke(path, dash = []) {
    context.setLineDash(dash);
    for (const [lineWidth, strokeStyle] of [[4, "rgba(0, 0, 0, 0.6)"], [2, "#fff"]]) {
      Object.assign(context, { lineWidth, strokeStyle });
      context.stroke(path);
    }
    context.setLineDash([]);
  }

  function dot([x, y], radius, fill) {
    const path = new Path2D();
    path.arc(x * scale, y * scale, radius, 0, 2 * Math.PI);
    Object.assign(context, { fillStyle: fill, lineWidth: 2, strokeStyle: "#222" });
    context.fill(path);
    context.stroke(path);
  }

  function draw() {
    const [w, h] = [width * scale, height * scale];
    context.setTransform(canvas.width / w, 0, 0, canvas.height / h, 0, 0);
    context.clearRect(0, 0, w, h);
    if (photo.complete && photo.naturalWidth) context.drawImage(photo, 0, 0, w, h);
    // One path, all outlines turned the same way round: where two overlap the tint is not doubled.
    const inside = new Path2D();
    for (const corners of closed) trace(area(corners) < 0 ? corners.toReversed() : corners, scale, inside);
    context.fillStyle = TINT;
    context.fill(inside);
    closed.forEach((corners, polygon) => {
      stroke(trace(corners));
      const mine = selected?.polygon === polygon;
      corners.forEach((corner, i) => dot(corner, mine ? 6 : 4, mine && selected.corner === i ? "#ffd60a" : mine ? "#ff4060" : "#fff"));
    });
    if (open.length) {
      const end = drag ? null : (cursor ?? pointer);
      stroke(trace(end ? [...open, end] : open, scale, new Path2D(), false), [6, 4]);
      open.forEach((corner, i) => dot(corner, i ? 4 : 7, i ? "#fff" : "#ffd60a"));
    }
    if (cursor) {
      const [x, y] = cursor;
      const arm = 10 / scale;
      stroke(trace([[x - arm, y], [x + arm, y]]));
      stroke(trace([[x, y - arm], [x, y + arm]]));
    }
    undoButton.disabled = !past.length;
    redoButton.disabled = !future.length;
    closeButton.disabled = open.length < 3;
    deleteButton.disabled = !selected;
    clearButton.disabled = !closed.length && !open.length;
    const text = describe();
    if (status.textContent !== text) status.textContent = text;
  }

  function describe() {
    const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
    if (open.length >= 3) return `${count(open.length, "corner")}, not closed yet: click the first corner, double-click or press Enter.`;
    if (open.length) return `${count(open.length, "corner")}, click to set more.`;
    if (!closed.length) return "Nothing is repainted yet: click around what is to be repainted.";
    return `${count(closed.length, "outline")}. Drag a corner to move it, click inside an outline to select it, elsewhere to draw another.`;
  }

  // --- start and end ---

  canvas.addEventListener("pointerdown", onPointerDown);
  canvas.addEventListener("pointermove", onPointerMove);
  canvas.addEventListener("pointerup", onPointerUp);
  canvas.addEventListener("pointercancel", onPointerUp);
  canvas.addEventListener("pointerleave", () => ((pointer = null), draw()));
  canvas.addEventListener("dblclick", close);
  canvas.addEventListener("keydown", onKeyDown);
  const observer = new ResizeObserver(fit);
  observer.observe(root);
  window.addEventListener("resize", fit); // also sent when the window moves to a screen of another density
  fit();

  function destroy() {
    observer.disconnect();
    window.removeEventListener("resize", fit);
    root.remove();
  }

  return { getPolygons: () => copy(closed), setPolygons, undo, redo, deleteSelected, clear, destroy };
}

function copy(polygons) {
  return polygons.map((corners) => corners.map(([x, y]) => [x, y]));
}

function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

function area(corners) {
  return corners.reduce((sum, [x, y], i) => {
    const [nextX, nextY] = corners[(i + 1) % corners.length];
    return sum + x * nextY - nextX * y;
  }, 0);
}

// What anywidget calls for every place where the widget is shown; the model is synchronised with Python.
function render({ model, el }) {
  const canvas = mountPolygonCanvas(el, {
    imageUrl: model.get("image_url"),
    width: model.get("width"),
    height: model.get("height"),
    polygons: model.get("polygons"),
    onChange(polygons) {
      model.set("polygons", polygons);
      model.save_changes();
    },
  });
  const update = () => canvas.setPolygons(model.get("polygons"));
  model.on("change:polygons", update);
  return () => {
    model.off("change:polygons", update);
    canvas.destroy();
  };
}

export default { render };
