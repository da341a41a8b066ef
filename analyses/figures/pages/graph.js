// The layer x head panels: edges on a canvas, nodes and what is pointed at in SVG above it. All panels show one part.

import { draw, grouped, make, shorter, thousands } from "./dom.js";
import { data, drawn, edgeName, edgeNamed, holdsAll, models, nodeOf, nodes, pins, runsOut, setPins, state } from "./state.js";
import { distanceTo, pathOf, placesOf, trace } from "./paths.js";
import { describe } from "./card.js";
import { refresh } from "./viewer.js";

const HEIGHT = data.bottom - data.top, RATIO = data.panel / HEIGHT, LIT = 400;  // at most so many edges of a node are lit
const FINE = 100;  // among more, dashes, bends and widths of the weaker ones are not seen, and most of the time would go into them
const TOGETHER = 32;  // of those, whose sizes hardly differ, so many are drawn at once
export const panels = [];
let shown = null;  // what is pointed at: { node } or { edge }

/** @returns {[number, number]} width and opacity */
export function stroke(size, count) {
  const weight = data.faintest + (1 - data.faintest) * Math.sqrt(size), least = 0.04 + 0.66 / (1 + count / 50);
  return [0.35 + 1.25 * weight, least + (0.95 - least) * weight];
}

export function number(value) {
  return value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 10000 ? value.toPrecision(3) : value.toExponential(1);
}

export function addPanel(view, list, say) {
  const holder = /** @type {HTMLElement} */ (document.querySelector(`#${view} .panels`));
  holder.style.setProperty("--ratio", String(RATIO));
  holder.style.setProperty("--least", `${Math.round(data.panel * 1.6)}px`);
  const heading = make("h2"), note = make("p", { class: "note" }), canvas = make("canvas", { "aria-hidden": "true" });
  const boxes = panels.length ? panels[0].boxes.map(box => box.cloneNode(true)) : nodes.map(boxOf);  // copied at a part of the cost
  const [pinned, light] = [draw("g"), draw("g")], words = draw("g", { class: "words" });
  const svg = draw("svg", { role: "group" }, pinned, light, data.rulers.map(([x, y, text, size]) => draw("text", { class: "ruler", x, y, "font-size": size }, text)), boxes, words);
  const stage = make("div", { class: "stage" }, canvas, svg);
  holder.append(make("section", { class: "panel" }, heading, note, stage));
  const panel = { view, list, say, heading, note, stage, canvas, svg, edges: [], light, pinned, words, boxes, at: "", pins: "" };
  if (!panels.length) boxes[0].setAttribute("tabindex", "0");
  panels.push(panel);
  listenTo(panel);
  new ResizeObserver(() => { if (canvas.width !== pixelsOf(panel)[0]) paint([panel]); }).observe(stage);
}

function boxOf({ name, kind, text, x, y, width, height }) {
  const rx = kind === "head" ? Math.min(width, height) / 2 : 1.5;
  return draw("g", { class: `node ${kind}`, tabindex: "-1", role: "button", "aria-label": name },
    draw("rect", { x: x - width / 2, y: y - height / 2, width, height, rx }),
    draw("text", { x, y, "font-size": Math.min(7, height / 1.25, 1.45 * width / text.length) }, text));
}

/** What of the drawing is in view: x, y, width and height. */
function inView() {
  const width = data.panel / state.zoom, height = HEIGHT / state.zoom;
  return [Math.min(state.x, data.panel - width), data.top + Math.min(state.y, HEIGHT - height), width, height];
}

/** Zoom around a place of the drawing, or move it, in points. */
export function zoomTo(zoom, x, y) {
  const [left, top, width, height] = inView(), to = Math.min(8, Math.max(1, zoom)), part = state.zoom / to;
  const [middleX, middleY] = [x ?? left + width / 2, y ?? top + height / 2];
  state.zoom = +to.toFixed(2);
  moveTo(middleX - (middleX - left) * part, middleY - (middleY - top) * part);
}

function moveTo(left, top) {
  const within = (value, most) => +Math.max(0, Math.min(value, most - most / state.zoom)).toFixed(1);
  state.x = within(left, data.panel);
  state.y = within(top - data.top, HEIGHT);
}

function pixelsOf({ canvas }) {  // width and height that fit the screen
  const width = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
  return [width, Math.round(width / RATIO)];
}

/** Edges of these panels, the faintest first. All are measured before one is drawn: a canvas of a new size has the page laid out anew. */
export function paint(seen) {
  seen.map(pixelsOf).forEach((size, i) => { if (size[0]) paintOne(seen[i], size); });
}

function paintOne(panel, size) {
  const { canvas, edges } = panel, [left, top, width] = inView(), scale = size[0] / width;
  const context = canvas.getContext("2d"), styles = inks(panel.view);
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  context.resetTransform();
  context.clearRect(0, 0, ...size);
  context.setTransform(scale, 0, 0, scale, -scale * left, -scale * top);
  for (let end = edges.length, first; end > 0; end = first) {
    first = end > FINE ? Math.max(FINE, end - TOGETHER) : end - 1;
    const [thick, opacity] = stroke(edges[first].size, edges.length), coarse = end > FINE;
    context.lineWidth = coarse ? Math.min(thick, 1 / scale) : thick;  // up to a pixel, lines take half the time
    context.globalAlpha = opacity;
    strokeTogether(context, edges.slice(first, end), styles, coarse);
  }
}

/** Edges of nearly one size, whose strength one stroke gives them: a stroke each takes twice as long. */
function strokeTogether(context, edges, styles, coarse) {
  for (const [style, alike] of grouped(edges, edge => edge.style)) {
    context.strokeStyle = styles[style].colour;
    context.setLineDash(coarse ? [] : styles[style].dash);
    context.beginPath();
    for (const edge of alike) trace(context, placesOf(edge), coarse && state.zoom === 1);
    context.stroke();
  }
}

export function inks(view) {
  const computed = getComputedStyle(document.documentElement);
  return data.styles[view].map(([name, dash]) => ({ colour: computed.getPropertyValue(`--${name}`).trim(), dash, variable: `var(--${name})` }));
}

/** Everything of a panel but its canvas: `paint` asks for its size, and what changes after that is laid out anew. */
export function update(panel) {
  panel.edges = panel.list();
  const { text, note } = panel.say(panel.edges), used = new Set(panel.edges.flatMap(edge => [edge.source, edge.owner]));
  const kept = pins(), sought = found();
  panel.heading.textContent = text;
  panel.note.textContent = note;
  if (panel.at !== String(inView())) panel.svg.setAttribute("viewBox", panel.at = String(inView()));  // lays all words out
  panel.svg.setAttribute("aria-label", text);
  nodes.forEach((node, i) => {
    const { classList, style } = panel.boxes[i], marked = node.name === state.chosen || node.name in kept;
    classList.toggle("unused", !used.has(i));
    classList.toggle("chosen", node.name === state.chosen);
    classList.toggle("pinned", node.name in kept);
    classList.toggle("found", sought.includes(node));
    style.display = state.hide && !used.has(i) && !marked ? "none" : "";
  });
  drawPins(panel, kept);
}

function drawPins(panel, kept) {
  if (panel.pins === state.pins) return;
  panel.pins = state.pins;
  const edges = Object.keys(kept).filter(name => !nodeOf.has(name)).map(edgeNamed);
  panel.pinned.replaceChildren(...edges.map(edge => draw("path", { class: "edge pin", d: pathOf(edge) })));
  panel.words.replaceChildren(...nodes.filter(node => kept[node.name]?.note || kept[node.name]?.group).map(({ name, x, y, height }) =>
    draw("text", { class: "word", x, y: y - height / 2 - 3.5, "font-size": 5.5 }, shorter([kept[name].group, kept[name].note].filter(Boolean).join(": "), 28))));
}

/** The nodes whose name, label or note holds what is sought. */
export function found() {
  const text = state.find.trim().toLowerCase(), kept = pins();
  if (!text) return [];
  const said = node => [node.name, kept[node.name]?.note, kept[node.name]?.group, ...models.map(model => (Object.hasOwn(model.labels, node.name) ? model.labels[node.name] : ""))];
  return nodes.filter(node => said(node).some(words => words?.toLowerCase().includes(text)));
}

export function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

export function aboutModel(model, edges) {
  const share = model.total ? edges.reduce((sum, edge) => sum + Math.abs(edge.score), 0) / model.total : 0;
  const text = `${model.name}: ${thousands(edges.length)} of ${thousands(model.edges)} edges, ${percent(share)} of |score|`;
  return { text, note: [faithfulness(model, edges), deadEnds(model), held(model)].filter(Boolean).join("; ") };
}

/** What the chosen circuit does, where all of it is drawn; else of what the drawing is a part. */
function faithfulness(model, edges) {
  const { faithful, pruned } = model;
  if (state.mode !== "faithful" && state.mode !== "pruned") return "";
  const own = state.mode === "pruned" && pruned;
  if (!own && !faithful) return `no circuit of this model was found to be faithful: here ${percent(state.share)} of |score|`;
  const n = own ? pruned.list.length : faithful.edges, { mean } = own || faithful;
  if (mean === null) return "";
  const does = `does ${percent(mean)} of what the whole model does${own ? ", on prompts that did not choose it" : ""}`;
  return edges.length + drawn(model).dead === n ? does : `part of a circuit of ${thousands(n)} edges, which ${does}`;
}

function deadEnds(model) {
  const { dead } = drawn(model);
  return dead ? `${thousands(dead)} dead end${dead === 1 ? "" : "s"} left out` : "";
}

function held(model) {
  if (holdsAll(model) || (state.mode === "pruned" && model.pruned)) return "";
  const said = `this page holds the ${thousands(model.list.length)} largest, ${percent(model.total ? model.held / model.total : 0)} of |score|`;
  return runsOut(model) ? `the threshold asks for more: ${said}` : said;
}

export function aboutDifference(edges) {
  const kinds = grouped(edges, edge => edge.kind), [first, second, both] = [0, 1, 2].map(kind => thousands(kinds.get(kind)?.length ?? 0));
  const notes = models.map((model, i) => aboutModel(model, edges.filter(edge => edge.kind === i || edge.kind === 2).map(edge => model.of.get(edge.code))).text);
  return { text: `only ${models[0].name}: ${first}, only ${models[1].name}: ${second}, both: ${both} edges`, note: notes.join("; ") };
}

// -- pointing

function hit(panel, x, y) {
  const node = nodes.find(({ x: left, y: top, width, height, index }) => Math.abs(x - left) <= width / 2 + 0.5 && Math.abs(y - top) <= height / 2 + 0.5 && panel.boxes[index].style.display !== "none");
  if (node) return { node };
  let best = null, least = (3 / state.zoom) ** 2;  // points, squared
  for (const edge of panel.edges) {
    const distance = distanceTo(edge, x, y, 3);
    if (distance < least) { least = distance; best = edge; }
  }
  return best && { edge: best };
}

export function nameOf(target) {
  return target ? (target.node ? target.node.name : edgeName(target.edge)) : "";
}

export function point(target, describes = true) {  // in every panel, whichever it was pointed at in
  shown = target;
  for (const panel of panels) light(panel, target);
  if (describes) describe(target || targetNamed(state.chosen));
}

export function targetNamed(name) {
  return nodeOf.has(name) ? { node: nodeOf.get(name) } : name && edgeNamed(name) ? { edge: edgeNamed(name) } : null;
}

export function touches(edge, target) {
  return target.node ? edge.source === target.node.index || edge.owner === target.node.index : edge.code === target.edge.code;
}

function light(panel, target) {
  const styles = inks(panel.view), lit = target ? panel.edges.filter(edge => touches(edge, target)) : [];
  const near = new Set(lit.flatMap(edge => [edge.source, edge.owner]));
  panel.stage.classList.toggle("lit", !!target);
  panel.light.replaceChildren(...lit.slice(0, LIT).reverse().map(edge => {
    const { variable, dash } = styles[edge.style], width = Math.max(0.7, stroke(edge.size, 1)[0]);
    return draw("path", { class: "edge", d: pathOf(edge), stroke: variable, "stroke-width": target.node ? width : width + 0.8, "stroke-dasharray": dash.join(" ") });
  }));
  panel.boxes.forEach((box, i) => { box.classList.toggle("on", near.has(i)); box.classList.toggle("now", !!target && target.node === nodes[i]); });
}

export function choose(target) {
  const name = nameOf(target);
  state.chosen = name === state.chosen ? "" : name;
  refresh();
  point(shown);
}

export function pin(target) {
  const kept = pins(), name = nameOf(target);
  if (name in kept) delete kept[name]; else kept[name] = { note: "", group: "" };
  setPins(kept);
  refresh();
}

function listenTo(panel) {
  const { svg } = panel;
  const place = event => {
    const box = svg.getBoundingClientRect(), [left, top, width] = inView(), scale = width / box.width;
    return [left + (event.clientX - box.left) * scale, top + (event.clientY - box.top) * scale, scale];
  };
  const under = event => { const [x, y] = place(event); return hit(panel, x, y); };
  let held = null, moved = false;  // where the mouse went down, and whether it has been dragged since: then it chooses nothing
  svg.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY, inView()]; moved = false; });
  svg.addEventListener("pointermove", event => {
    if (held && event.buttons) {
      const [, , scale] = place(event), [x, y, [left, top]] = held, [alongX, alongY] = [event.clientX - x, event.clientY - y];
      moved ||= Math.hypot(alongX, alongY) > 4;
      if (moved && state.zoom > 1) { moveTo(left - alongX * scale, top - alongY * scale); refresh(); }
      return;
    }
    const target = under(event);
    svg.style.cursor = target ? "pointer" : state.zoom > 1 ? "grab" : "";
    if (nameOf(target) !== nameOf(shown)) point(target);
  });
  svg.addEventListener("wheel", event => {  // a page that scrolls goes on doing so: only with Ctrl, as a pinch has it
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const [x, y] = place(event);
    zoomTo(state.zoom * Math.exp(-event.deltaY / 300), x, y);
    refresh();
  }, { passive: false });
  svg.addEventListener("pointerleave", () => { held = null; point(null, false); });
  svg.addEventListener("focusout", () => point(null, false));
  svg.addEventListener("click", event => {
    const target = moved ? null : under(event);
    held = null;
    if (target && event.shiftKey) pin(target); else if (target) choose(target);
  });
  svg.addEventListener("focusin", event => { const i = panel.boxes.indexOf(event.target); if (i >= 0) { stopAt(i); point({ node: nodes[i] }); } });
  svg.addEventListener("keydown", event => walk(panel, event));
}

function stopAt(index) {  // one node of each panel can be reached with the Tab key, the others with arrows
  for (const { boxes } of panels) boxes.forEach((box, i) => box.setAttribute("tabindex", i === index ? "0" : "-1"));
}

/** Puts the keyboard on a node, and brings it into view. */
export function goTo(node) {
  const panel = panels.find(one => one.view === state.tab) ?? panels[0];
  if (state.zoom > 1) { const [, , width, height] = inView(); moveTo(node.x - width / 2, node.y - height / 2); refresh(); }
  panel.boxes[node.index].style.display = "";
  panel.boxes[node.index].focus();
}

function walk(panel, event) {
  const from = nodes[panel.boxes.indexOf(event.target)];
  if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose({ node: from }); return; }
  if (event.key.toLowerCase() === "p") { pin({ node: from }); return; }
  const zoom = { "+": state.zoom * 1.5, "-": state.zoom / 1.5, "0": 1 }[event.key];
  if (zoom) { zoomTo(zoom, from.x, from.y); refresh(); return; }
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const cost = node => {
    const x = node.x - from.x, y = node.y - from.y, along = x * step[0] + y * step[1], aside = Math.abs(step[0] ? y : x);
    return along < 1 || (step[0] && aside > 0.6 * data.band) || panel.boxes[node.index].style.display === "none" ? Infinity : along + 2 * aside / (step[0] ? 1 : 8);
  };
  const next = nodes.reduce((best, node) => (cost(node) < cost(best) ? node : best), from);
  if (next !== from) goTo(next);
}
