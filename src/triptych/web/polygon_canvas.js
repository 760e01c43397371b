// Draw polygons with holes on a photo. One ES module without dependencies or requests, for a web page and for a
// notebook (anywidget).
//
//   const canvas = mountPolygonCanvas(element, { imageUrl, width, height, polygons, holes, onChange });
//
// width, height: size of the photo in pixels; the picture behind imageUrl may be a smaller preview of it.
// polygons: [[[x, y], ...], ...] in pixels of the photo, whatever the size on screen. White/inside = repainted.
// holes: the same, cut out of all polygons. Left out, no hole can be drawn: for a host that does not know holes.
// onChange(polygons, holes) is called after every change of the closed ones. The outline being drawn does not count yet:
// onOpen(corners) is called with its number of corners when that changes, with 0 once it is closed or gone.
// Returned: { getPolygons(), getHoles(), setPolygons(polygons, holes), undo(), redo(), deleteSelected(), clear(), destroy() };
// setPolygons without holes leaves them as they are.

const REACH = { mouse: 9, pen: 12, touch: 22 }; // how near to a corner or an edge counts as on it, in CSS pixels
const SLOP = { mouse: 3, pen: 4, touch: 8 }; // a pointer that moves less has clicked
const CROWDED = 14; // handles stand at least so far apart, in CSS pixels; corners between them can be taken all the same
const RED = "#ff4060";
const TINT = 0.42;
const HELP = [
  ["Draw", "click corner after corner; the first corner, a double click or Enter closes; Backspace takes the last corner back, Esc all."],
  ["Change", "drag a corner, or drag inside an outline to move it; click its edge to insert a corner; Delete removes what is selected."],
  ["Look closer", "pinch, or Ctrl and the wheel, or + and −; 0 shows the whole photo. Two fingers, the wheel, or Shift and a drag, move the view."],
  ["Keys alone", "arrows move the cross (with Shift faster), Space sets a corner; N selects the next corner, O the next outline (with Shift the " +
    "one before), and arrows then move that; I inserts a corner behind it; Esc goes back to the cross; Ctrl+Z and Ctrl+Y undo and redo."],
];
const HOLE_HELP = ["Holes", "press H or the button Hole, then draw what is to stay inside an outline."];

// Colours are the host's own, so that a light and a dark page both fit.
const STYLE = `
.triptych-canvas { width: 100%; font: 14px/1.4 system-ui, sans-serif; box-sizing: border-box; }
.triptych-canvas canvas { display: block; touch-action: none; cursor: crosshair; user-select: none; background: #8883; }
.triptych-canvas canvas:focus-visible { outline: 3px solid #1a5fe0; outline-offset: -3px; }
.triptych-canvas .bar { display: flex; flex-wrap: wrap; gap: 6px; margin: 0 0 6px; }
.triptych-canvas .bar button { font: inherit; color: inherit; min-height: 32px; min-width: 34px; padding: 2px 9px; cursor: pointer;
  background: color-mix(in srgb, currentColor 8%, transparent); border-radius: 6px;
  border: 1px solid color-mix(in srgb, currentColor 50%, transparent); }
.triptych-canvas .bar button:hover:enabled { background: color-mix(in srgb, currentColor 18%, transparent); }
.triptych-canvas .bar button[aria-pressed=true] { background: #1a5fe0; border-color: #1a5fe0; color: #fff; }
.triptych-canvas .bar button:disabled { cursor: default; opacity: 0.45; }
.triptych-canvas :is(button, summary):focus-visible { outline: 3px solid #2f7bff; outline-offset: 1px; }
.triptych-canvas .view { display: flex; gap: 6px; }
.triptych-canvas :is(p, details, dl) { margin: 6px 0 0; }
.triptych-canvas .status { min-height: 2.8em; }
.triptych-canvas summary { cursor: pointer; width: fit-content; }
.triptych-canvas dt { font-weight: 600; }
.triptych-canvas dd { margin: 0 0 4px; }
.triptych-canvas .swatch { display: inline-block; width: 1em; height: 1em; vertical-align: -0.15em; margin-right: 0.4em;
  background: color-mix(in srgb, ${RED} ${100 * TINT}%, transparent); border: 2px solid ${RED}; box-sizing: border-box; }
@media (pointer: coarse) { .triptych-canvas .bar button { min-height: 44px; min-width: 44px; } }`;

let mounted = 0; // makes ids unique on a page

export function mountPolygonCanvas(element, { imageUrl, width, height, polygons = [], holes = null, onChange = () => {}, onOpen = () => {} }) {
  let shapes = asShapes(polygons, holes ?? []); // [{ corners: [[x, y], ...], hole }]
  let open = []; // corners of the outline being drawn
  let hole = false; // whether that one, or the next, is a hole
  let selected = null; // { shape, corner }: one of `shapes`, and an index into its corners, or null for the whole
  let cursor = null; // the keyboard's cross, in photo pixels
  let pointer = null; // the mouse, for the line that follows it, in photo pixels
  let press = null; // the pointer that is down: { start, reach, slop, pans, moving, origins, before }; see `onPointerMove`
  let past = [];
  let future = [];
  let nudged = null; // the selection that arrows have just moved: the next arrow is no further step to undo
  let news = ""; // what has just happened, for the status line
  const fingers = new Map(); // pointers that are down: id -> [x, y] on the screen
  // The part of the photo that is seen: its left and top in photo pixels; CSS pixels per photo pixel now, and for the whole photo.
  const view = { x: 0, y: 0, scale: 1, whole: 1, width: 1, height: 1 };
  let reported = JSON.stringify(lists());
  let reportedOpen = 0;

  // --- elements ---

  const root = make("div", "triptych-canvas", element);
  // JupyterLab would run its own commands, D D deletes the cell: it listens for what bubbles up, older ones heed the mark.
  root.dataset.lmSuppressShortcuts = "true";
  root.addEventListener("keydown", (event) => event.ctrlKey || event.metaKey || event.stopPropagation());
  make("style", "", root).textContent = STYLE;
  const bar = make("div", "bar", root);
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Outlines");
  const undo = () => step(past, future, "Undone.");
  const redo = () => step(future, past, "Redone.");
  const undoButton = button(bar, "Undo", undo);
  const redoButton = button(bar, "Redo", redo);
  const closeButton = button(bar, "Close outline", close);
  const holeButton = holes && button(bar, "Hole", toggleHole);
  const deleteButton = button(bar, "Delete selected", deleteSelected);
  const clearButton = button(bar, "Clear all", clear);
  const views = make("div", "view", bar);
  const outButton = button(views, "−", () => zoom(1 / 1.5), "Zoom out");
  const inButton = button(views, "+", () => zoom(1.5), "Zoom in");
  const fitButton = button(views, "Fit", () => zoom(0), "Fit: show the whole photo");
  const canvas = make("canvas", "", root);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Photo to draw outlines on. Inside an outline = repainted.");
  const status = make("p", "status", root);
  status.setAttribute("aria-live", "polite");
  const said = make("span", "", status);
  status.append(" ");
  const place = make("span", "", status); // a text of its own: of what changes, only this is read out at every arrow
  const legend = make("p", "legend", root);
  make("span", "swatch", legend);
  legend.append("inside = repainted; everything outside" + (holes ? ", and in holes," : "") + " stays as it is.");
  const help = make("details", "keys", root);
  make("summary", "", help).textContent = "Keys, mouse and fingers";
  const rows = make("dl", "", help);
  for (const [term, text] of holes ? [...HELP, HOLE_HELP] : HELP) {
    make("dt", "", rows).textContent = term;
    make("dd", "", rows).textContent = text;
  }
  rows.id = `triptych-canvas-keys-${++mounted}`;
  canvas.setAttribute("aria-describedby", rows.id);
  const context = canvas.getContext("2d");
  const layer = document.createElement("canvas").getContext("2d"); // the tint, before it is laid over the photo
  const photo = new Image();
  photo.onload = photo.onerror = draw;
  photo.src = imageUrl;

  function make(tag, name, parent) {
    const child = document.createElement(tag);
    if (name) child.className = name;
    parent.append(child);
    return child;
  }

  function button(parent, text, action, label = "") {
    const made = make("button", "", parent);
    made.type = "button";
    made.textContent = text;
    if (label) made.title = label;
    if (label) made.setAttribute("aria-label", label);
    made.addEventListener("click", (event) => {
      action();
      // Who pressed it with a key wants to stay there, unless it has just become useless.
      if (event.detail || made.disabled) canvas.focus({ preventScroll: true });
    });
    return made;
  }

  // --- state ---

  function lists() {
    const of = (kind) => copy(shapes.filter((shape) => shape.hole === kind).map((shape) => shape.corners));
    return { polygons: of(false), holes: of(true) };
  }

  const snapshot = () => JSON.stringify({ shapes, open, hole });
  const kindOf = (isHole) => (isHole ? "Hole" : "Outline");
  const selectedCorners = () =>
    selected.corner === null ? selected.shape.corners : together(selected.shape, selected.shape.corners[selected.corner]);

  // Run `edit` as one step to undo; `before` is the state to go back to, or null to go on with the last step.
  function change(edit, text = "", before = snapshot()) {
    edit();
    news = text;
    nudged = null;
    if (before !== null && before !== snapshot()) {
      past.push(before);
      future = [];
    }
    changed();
  }

  function changed() {
    const now = lists();
    const text = JSON.stringify(now);
    if (text !== reported) {
      reported = text;
      onChange(now.polygons, now.holes);
    }
    tellOpen();
    draw();
  }

  function tellOpen() {
    if (open.length !== reportedOpen) onOpen((reportedOpen = open.length));
  }

  function restore(state) {
    ({ shapes, open, hole } = JSON.parse(state));
    selected = press = nudged = null;
  }

  function step(from, to, text) {
    abandon();
    if (!from.length) return;
    to.push(snapshot());
    restore(from.pop());
    news = text;
    changed();
  }

  function setPolygons(polygons, newHoles = lists().holes) {
    if (JSON.stringify({ polygons, holes: newHoles }) === reported) return; // our own change, come back from the host
    past.push(snapshot());
    future = [];
    restore(JSON.stringify({ shapes: asShapes(polygons, newHoles), open: [], hole: false }));
    reported = JSON.stringify(lists());
    news = "";
    tellOpen();
    draw();
  }

  // --- what can be done ---

  function close() {
    const corners = open.filter((corner, i) => i === 0 || distance(corner, open[i - 1]) > 0.01);
    if (corners.length < 3) return;
    change(() => {
      shapes.push({ corners, hole });
      selected = { shape: shapes.at(-1), corner: null };
      [open, hole] = [[], false];
    }, `${kindOf(hole)} closed.`);
  }

  function addCorner(point) {
    selected = null;
    open.push(point);
  }

  function toggleHole() {
    if (open.length) change(() => (hole = !hole));
    else hole = !hole; // nothing is drawn yet that could be undone
    draw();
  }

  // Esc: out of the innermost of a drag, a drawing, the hole tool, a selection.
  function cancel() {
    if (press) abandon();
    else if (open.length) change(() => ([open, hole] = [[], false]), "Cancelled.");
    else if (hole) hole = false;
    else if (selected) {
      cursor = [...selectedCorners()[0]];
      selected = null;
    } else cursor = null;
  }

  function deleteSelected() {
    if (!selected) return;
    const { shape, corner } = selected;
    const gone = selectedCorners();
    const left = corner === null ? [] : shape.corners.filter((one) => !gone.includes(one));
    if (left.length >= 3) {
      change(() => {
        shape.corners = left;
        selected = { shape, corner: Math.min(corner, left.length - 1) };
      }, "Corner deleted.");
    } else {
      change(() => {
        shapes = shapes.filter((one) => one !== shape);
        selected = null;
      }, `${kindOf(shape.hole)} deleted.`);
    }
  }

  function clear() {
    if (shapes.length || open.length) change(() => ([shapes, open, hole, selected] = [[], [], false, null]), "All cleared.");
  }

  function insert(shape, edge, point) {
    shape.corners.splice(edge + 1, 0, point);
    selected = { shape, corner: edge + 1 };
  }

  function insertBehind() {
    if (!selected || selected.corner === null) return;
    const { shape, corner } = selected;
    const [a, b] = edges(shape.corners)[corner];
    change(() => insert(shape, corner, clamp([(a[0] + b[0]) / 2, (a[1] + b[1]) / 2])), "Corner inserted.");
  }

  // What a click, a tap or the Space key does at a point.
  function click(point, reach) {
    const found = open.length || hole ? null : hit(point, reach);
    if (open.length >= 3 && near(point, open[0], reach)) close();
    else if (open.length && near(point, open.at(-1), 4)) return; // the second half of a double click
    else if (!found) change(() => addCorner(point));
    else if (found.edge !== undefined) change(() => insert(found.shape, found.edge, found.on), "Corner inserted.");
    else [selected, news] = [found, ""];
  }

  // What a drag from a point moves; it may have to make a corner first.
  function grab(point, reach) {
    const found = open.length || hole ? null : hit(point, reach);
    if (found?.edge !== undefined) insert(found.shape, found.edge, found.on);
    else if (found) selected = found;
    if (found) return selectedCorners();
    const there = open.findLast((corner) => near(point, corner, reach));
    if (!there) addCorner(point);
    return [there ?? open.at(-1)];
  }

  // Move corners by (dx, dy) from where they were, all alike, and not out of the photo.
  function shift(corners, origins, dx, dy) {
    const within = (by, values, side) =>
      Math.min(Math.max(by, Math.min(0, -Math.min(...values))), Math.max(0, side - Math.max(...values)));
    dx = within(dx, origins.map(([x]) => x), width);
    dy = within(dy, origins.map(([, y]) => y), height);
    corners.forEach((corner, i) => ([corner[0], corner[1]] = [round(origins[i][0] + dx), round(origins[i][1] + dy)]));
  }

  // --- where things are ---

  function clamp([x, y]) {
    return [round(Math.min(Math.max(x, 0), width)), round(Math.min(Math.max(y, 0), height))];
  }

  function position(event) {
    const box = canvas.getBoundingClientRect();
    return clamp([view.x + (event.clientX - box.left) / view.scale, view.y + (event.clientY - box.top) / view.scale]);
  }

  const near = (a, b, reach) => distance(a, b) * view.scale <= reach;

  // Corners of one outline in one place, where a cut leads to a hole, move together.
  const together = (shape, corner) => shape.corners.filter((other) => other[0] === corner[0] && other[1] === corner[1]);

  // The nearest corner, else the nearest edge of the selected outline, else the outline that a point is in.
  function hit(point, reach) {
    const nearest = (all) => all.reduce((best, one) => (one.away <= best.away ? one : best), { away: reach / view.scale });
    const corner = nearest(
      shapes.flatMap((shape) => shape.corners.map((at, corner) => ({ shape, corner, away: distance(point, at) })))
    );
    if (corner.shape) return { shape: corner.shape, corner: corner.corner };
    const sides = selected ? edges(selected.shape.corners).map((side) => foot(point, ...side)) : [];
    const edge = nearest(sides.map((on, edge) => ({ edge, on: clamp(on), away: distance(point, on) })));
    if (edge.on) return { shape: selected.shape, edge: edge.edge, on: edge.on };
    context.resetTransform(); // it would apply to the path, but not to the point
    const inside = (kind) =>
      shapes.findLast((shape) => shape.hole === kind && context.isPointInPath(trace(shape.corners, (at) => at), ...point));
    const shape = inside(true) ?? inside(false);
    return shape ? { shape, corner: null } : null;
  }

  // --- the view ---

  const closest = () => Math.max(8 * view.whole, 8); // the largest scale
  const allowed = (scale) => Math.min(Math.max(scale, view.whole), closest());

  function look(x, y, scale) {
    view.scale = allowed(scale);
    view.x = Math.min(Math.max(x, 0), Math.max(0, width - view.width / view.scale));
    view.y = Math.min(Math.max(y, 0), Math.max(0, height - view.height / view.scale));
    draw();
  }

  // By a factor (0: the whole photo), around a place of the canvas in CSS pixels, by default that of the work; what is
  // seen there was at `from`.
  function zoom(factor, about = null, from = about) {
    const work = cursor ?? (selected?.corner != null ? selectedCorners()[0] : null);
    const [x, y] = about ?? (work ? onCanvas(work) : [view.width / 2, view.height / 2]);
    const [fromX, fromY] = from ?? [x, y];
    const to = allowed(view.scale * factor);
    look(view.x + fromX / view.scale - x / to, view.y + fromY / view.scale - y / to, to);
  }

  function pan(dx, dy) {
    const { x, y } = view;
    look(x + dx / view.scale, y + dy / view.scale, view.scale);
    return Math.hypot(view.x - x, view.y - y) * view.scale > 0.5;
  }

  function follow(point) {
    const beyond = (at, size) => Math.min(0, at - 24) + Math.max(0, at + 24 - size);
    const [x, y] = onCanvas(point);
    pan(beyond(x, view.width), beyond(y, view.height));
  }

  function onWheel(event) {
    const [dx, dy] = [event.deltaX, event.deltaY].map((by) => by * (event.deltaMode ? 20 : 1));
    if (event.ctrlKey || event.metaKey) {
      const box = canvas.getBoundingClientRect(); // a pinch on a touchpad comes as Ctrl and the wheel
      zoom(Math.exp(-Math.min(Math.max(dy, -30), 30) / 100), [event.clientX - box.left, event.clientY - box.top]);
    } else if (!pan(dx, dy)) return; // the page scrolls on
    event.preventDefault();
  }

  // --- pointers ---

  // Undo what the pointer that is down has done so far.
  function abandon() {
    if (press?.before) restore(press.before);
    press = null;
  }

  function onPointerDown(event) {
    const pans = event.button === 1 || (event.button === 0 && event.shiftKey);
    if (event.button !== 0 && !pans) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    cursor = null;
    abandon(); // of a pinch, the first finger sets no corner
    const [reach, slop] = [REACH, SLOP].map((sizes) => sizes[event.pointerType] ?? sizes.mouse);
    if (fingers.size === 1) press = { start: position(event), reach, slop, pans, moving: null };
    draw();
  }

  function onPointerMove(event) {
    const [was, now] = [fingers.get(event.pointerId), [event.clientX, event.clientY]];
    const at = position(event);
    pointer = event.pointerType === "touch" ? null : at;
    if (was && fingers.size === 2) pinch(event.pointerId, was, now);
    else if (was && press?.pans) pan(was[0] - now[0], was[1] - now[1]);
    else if (press && (press.moving || !near(at, press.start, press.slop))) {
      if (!press.moving) {
        press.before = snapshot();
        press.moving = grab(press.start, press.reach);
        press.origins = press.moving.map(([x, y]) => [x, y]);
      }
      shift(press.moving, press.origins, at[0] - press.start[0], at[1] - press.start[1]);
    }
    if (was) fingers.set(event.pointerId, now);
    draw();
  }

  function pinch(id, was, now) {
    const other = [...fingers].find(([key]) => key !== id)[1];
    const box = canvas.getBoundingClientRect();
    const between = (finger) => [(finger[0] + other[0]) / 2 - box.left, (finger[1] + other[1]) / 2 - box.top];
    zoom(distance(now, other) / Math.max(distance(was, other), 1), between(now), between(was));
  }

  function onPointerUp(event) {
    fingers.delete(event.pointerId);
    const done = press;
    press = null;
    if (done?.moving) change(() => {}, "", done.before);
    else if (done && !done.pans) click(done.start, done.reach);
    draw();
  }

  function onPointerCancel(event) {
    fingers.delete(event.pointerId);
    abandon();
    draw();
  }

  // --- keyboard ---

  function onKeyDown(event) {
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    if (command && key === "z") (event.shiftKey ? redo : undo)();
    else if (command && key === "y") redo();
    else if (command || event.altKey) return;
    else if (arrow) move(arrow, (event.shiftKey ? 20 : 2) / view.scale);
    else if (key === "Enter") close();
    else if (key === " ") clickCross();
    else if (key === "Escape") cancel();
    else if (key === "Backspace" && open.length) change(() => open.pop());
    else if (key === "Delete" || key === "Backspace") deleteSelected();
    else if (key === "n") selectNext(true, event.shiftKey);
    else if (key === "o") selectNext(false, event.shiftKey);
    else if (key === "i") insertBehind();
    else if (key === "h" && holes) toggleHole();
    else if (key === "+" || key === "=") zoom(1.5);
    else if (key === "-") zoom(1 / 1.5);
    else if (key === "0") zoom(0);
    else return;
    event.preventDefault();
    event.stopPropagation();
    draw();
  }

  const middle = () => clamp([view.x + view.width / view.scale / 2, view.y + view.height / view.scale / 2]);

  function clickCross() {
    const drawn = shapes.length;
    click([...(cursor ??= middle())], REACH.mouse);
    if (selected && shapes.length === drawn) cursor = null; // arrows now move what is selected
  }

  // By an arrow: what is selected, or, while a corner is to be set, the cross.
  function move([dx, dy], by) {
    if (selected && !cursor && !open.length) {
      const [corners, moved] = [selectedCorners(), selected];
      change(() => shift(corners, copy([corners])[0], dx * by, dy * by), "", nudged === moved ? null : snapshot());
      nudged = moved;
      follow(corners[0]);
    } else {
      const [x, y] = cursor ?? middle();
      news = "";
      follow((cursor = clamp([x + dx * by, y + dy * by])));
    }
  }

  function selectNext(corners, back) {
    if (open.length || !shapes.length) return;
    const all = shapes.flatMap((shape) =>
      corners ? shape.corners.map((_, corner) => ({ shape, corner })) : [{ shape, corner: null }]
    );
    const now = all.findIndex((at) => at.shape === selected?.shape && (!corners || at.corner === selected.corner));
    // From a whole outline on to its own first corner.
    const first = now < 0 && selected && !back ? all.findIndex((at) => at.shape === selected.shape) : -1;
    selected = all[first >= 0 ? first : (Math.max(now, back ? 0 : -1) + (back ? -1 : 1) + all.length) % all.length];
    [cursor, news] = [null, ""];
    follow(selectedCorners()[0]);
  }

  function onFocus() {
    if (canvas.matches(":focus-visible") && !selected) cursor ??= middle();
    draw();
  }

  // --- drawing ---

  function resize() {
    const room = root.clientWidth || 320;
    // A frame, such as Colab's, takes its height from what is in it: there the screen's counts.
    const tall = window.parent === window ? 0.8 * window.innerHeight : 0.6 * window.screen.availHeight;
    const zoomed = view.scale / view.whole;
    view.whole = Math.min(room / width, Math.max(240, tall) / height);
    [view.width, view.height] = [width * view.whole, height * view.whole];
    [canvas.style.width, canvas.style.height] = [`${view.width}px`, `${view.height}px`];
    for (const one of [canvas, layer.canvas]) {
      one.width = Math.max(1, Math.round(view.width * (window.devicePixelRatio || 1)));
      one.height = Math.max(1, Math.round(view.height * (window.devicePixelRatio || 1)));
    }
    look(view.x, view.y, view.whole * zoomed);
  }

  function onCanvas([x, y]) {
    return [(x - view.x) * view.scale, (y - view.y) * view.scale];
  }

  function trace(corners, place = onCanvas, whole = true, path = new Path2D()) {
    corners.forEach((corner, i) => path[i ? "lineTo" : "moveTo"](...place(corner)));
    if (whole) path.closePath();
    return path;
  }

  function stroke(path, { dash = [], color = "#fff" } = {}) {
    for (const [lineWidth, strokeStyle] of [[4, "rgba(0, 0, 0, 0.6)"], [2, color]]) {
      Object.assign(context, { lineWidth, strokeStyle });
      context.setLineDash(strokeStyle === color ? dash : []);
      context.stroke(path);
    }
    context.setLineDash([]);
  }

  // A corner: round, or square for that of a hole.
  function dot(corner, radius, fill, square = false) {
    const [x, y] = onCanvas(corner);
    const path = new Path2D();
    if (square) path.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else path.arc(x, y, radius, 0, 2 * Math.PI);
    Object.assign(context, { fillStyle: fill, lineWidth: 2, strokeStyle: "#222" });
    context.fill(path);
    context.stroke(path);
  }

  function drawTint() {
    layer.setTransform(layer.canvas.width / view.width, 0, 0, layer.canvas.height / view.height, 0, 0);
    layer.clearRect(0, 0, view.width, view.height);
    layer.fillStyle = RED;
    for (const kind of [false, true]) {
      layer.globalCompositeOperation = kind ? "destination-out" : "source-over";
      for (const shape of shapes) if (shape.hole === kind) layer.fill(trace(shape.corners));
    }
    context.globalAlpha = TINT;
    context.drawImage(layer.canvas, 0, 0, view.width, view.height);
    context.globalAlpha = 1;
  }

  function drawShape(shape) {
    const mine = selected?.shape === shape;
    stroke(trace(shape.corners), shape.hole ? { dash: [3, 3], color: "#8ff" } : {});
    let last = null; // the corner that was shown before: of crowded ones only some are, more when one looks closer
    shape.corners.forEach((corner, i) => {
      const chosen = mine && selected.corner === i;
      if (last && !chosen && near(corner, last, CROWDED)) return;
      last = corner;
      const fill = mine && selected.corner === i ? "#ffd60a" : mine ? RED : "#fff";
      dot(corner, mine ? 6 : 4, fill, shape.hole);
    });
  }

  function draw() {
    context.setTransform(canvas.width / view.width, 0, 0, canvas.height / view.height, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    if (photo.complete && photo.naturalWidth)
      context.drawImage(photo, ...onCanvas([0, 0]), width * view.scale, height * view.scale);
    drawTint();
    shapes.forEach(drawShape);
    if (open.length) {
      const end = press ? null : (cursor ?? pointer);
      stroke(trace(end ? [...open, end] : open, onCanvas, false), { dash: [6, 4], color: hole ? "#8ff" : "#fff" });
      open.forEach((corner, i) => dot(corner, i ? 4 : 7, i ? "#fff" : "#ffd60a", hole));
    }
    drawHover();
    if (cursor) {
      const [x, y] = onCanvas(cursor);
      for (const path of [`M${x - 12} ${y}H${x + 12}`, `M${x} ${y - 12}V${y + 12}`]) stroke(new Path2D(path));
    }
    if (canvas.matches(":focus-visible")) {
      // A white line inside the blue ring: one of them stands out from any photo.
      Object.assign(context, { lineWidth: 2, strokeStyle: "#fff" });
      context.strokeRect(4, 4, view.width - 8, view.height - 8);
    }
    showState();
  }

  // Where a click would insert a corner; and the mouse's form, which says what a drag would move.
  function drawHover() {
    const found = pointer && !press && !open.length && !hole ? hit(pointer, REACH.mouse) : null;
    context.setTransform(canvas.width / view.width, 0, 0, canvas.height / view.height, 0, 0);
    canvas.style.cursor = !found ? "" : found.edge !== undefined ? "copy" : found.corner === null ? "move" : "pointer";
    if (found?.on) dot(found.on, 4, "#ffd60a", selected.shape.hole);
  }

  function showState() {
    undoButton.disabled = !past.length;
    redoButton.disabled = !future.length;
    closeButton.disabled = open.length < 3;
    deleteButton.disabled = !selected;
    clearButton.disabled = !shapes.length && !open.length;
    outButton.disabled = fitButton.disabled = view.scale <= view.whole;
    inButton.disabled = view.scale >= closest();
    holeButton?.setAttribute("aria-pressed", String(hole));
    say(said, describe());
    const corner = selected?.corner != null ? selected.shape.corners[selected.corner] : null;
    say(place, cursor ? `Cross at ${at(cursor)}.` : corner ? `It is at ${at(corner)}.` : "");
  }

  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // The status line, which screen readers speak.
  function describe() {
    if (photo.complete && !photo.naturalWidth) return "The photo could not be shown.";
    const drawn = (hole ? "Hole: " : "") + count(open.length, "corner");
    if (open.length >= 3) return `${drawn}, not closed yet: click the first corner, double-click or press Enter.`;
    if (open.length) return `${drawn}, click to set more.`;
    if (hole) return "Hole: click around what is to stay inside an outline.";
    if (!shapes.length) return `${news} Nothing is repainted yet: click around what is to be repainted.`.trim();
    const holed = shapes.filter((shape) => shape.hole).length;
    const all = count(shapes.length - holed, "outline") + (holed ? `, ${count(holed, "hole")}` : "");
    return `${news} ${all}. ${describeSelected()}`.trim();
  }

  function describeSelected() {
    if (!selected) return "Click inside an outline to select it, elsewhere to draw another.";
    const { shape, corner } = selected;
    const name = `${kindOf(shape.hole)} ${shapes.filter((one) => one.hole === shape.hole).indexOf(shape) + 1}`;
    if (corner === null) return `${name} is selected: drag it, or click its edge to insert a corner.`;
    return `${name}, corner ${corner + 1} of ${shape.corners.length}, is selected.`;
  }

  // --- start and end ---

  const listeners = {
    pointerdown: onPointerDown, pointermove: onPointerMove, pointerup: onPointerUp, pointercancel: onPointerCancel,
    pointerleave: () => ((pointer = null), draw()),
    mousedown: (event) => event.button === 1 && event.preventDefault(), // some browsers would scroll by themselves
    dblclick: close, keydown: onKeyDown, wheel: onWheel, focus: onFocus, blur: draw,
  };
  for (const [name, listener] of Object.entries(listeners)) canvas.addEventListener(name, listener, { passive: false });
  const observer = new ResizeObserver(resize);
  observer.observe(root);
  window.addEventListener("resize", resize); // also sent when the window moves to a screen of another density
  resize();

  function destroy() {
    observer.disconnect();
    window.removeEventListener("resize", resize);
    root.remove();
  }

  const getPolygons = () => lists().polygons;
  const getHoles = () => lists().holes;
  return { getPolygons, getHoles, setPolygons, undo, redo, deleteSelected, clear, destroy };
}

// --- geometry and words ---

function asShapes(polygons, holes) {
  const of = (outlines, hole) => copy(outlines).map((corners) => ({ corners, hole }));
  return [...of(polygons, false), ...of(holes, true)];
}

function copy(polygons) {
  return polygons.map((corners) => corners.map(([x, y]) => [x, y]));
}

function round(value) {
  return Math.round(value * 100) / 100;
}

function count(n, word) {
  return `${n} ${word}${n === 1 ? "" : "s"}`;
}

function at([x, y]) {
  return `${Math.round(x)}, ${Math.round(y)}`;
}

function distance(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

function edges(corners) {
  return corners.map((corner, i) => [corner, corners[(i + 1) % corners.length]]);
}

// The point of the edge from a to b that is nearest to p.
function foot(p, a, b) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const along = ((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / (dx * dx + dy * dy || 1);
  const share = Math.min(Math.max(along, 0), 1);
  return [a[0] + share * dx, a[1] + share * dy];
}

// What anywidget calls for every place where the widget is shown; the model is synchronised with Python.
function render({ model, el }) {
  let sending = false;
  const canvas = mountPolygonCanvas(el, {
    imageUrl: model.get("image_url"),
    width: model.get("width"),
    height: model.get("height"),
    polygons: model.get("polygons"),
    holes: model.get("holes"),
    onChange(polygons, holes) {
      sending = true; // between the two the model would be half of each
      model.set("polygons", polygons);
      model.set("holes", holes);
      sending = false;
      model.save_changes();
    },
  });
  const update = () => sending || canvas.setPolygons(model.get("polygons"), model.get("holes"));
  const names = ["change:polygons", "change:holes"];
  names.forEach((name) => model.on(name, update));
  return () => {
    names.forEach((name) => model.off(name, update));
    canvas.destroy();
  };
}

export default { render };
