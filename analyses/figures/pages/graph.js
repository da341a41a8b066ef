// The layer x head panels: edges on a canvas, with nodes and highlights in SVG on top. All panels show the same part of the drawing.

import { draw, grouped, make, shorter } from "./dom.js";
import { data, edgeNamed, models, nodeOf, nodes, pins, state } from "./state.js";
import { pathOf, placesOf, trace } from "./paths.js";
import { listenTo } from "./pointing.js";

const HEIGHT = data.bottom - data.top, RATIO = data.panel / HEIGHT;
const FINE = 100;  // this many edges, the strongest, are drawn exactly; weaker ones without dashes and bends, which would take most of the time unseen
const TOGETHER = 32;  // this many weaker edges, of nearly equal size, are drawn with one stroke
export const panels = [];

/** @returns {[number, number]} width and opacity */
export function stroke(size, count) {
  const weight = data.faintest + (1 - data.faintest) * Math.sqrt(size), least = 0.04 + 0.66 / (1 + count / 50);
  return [0.35 + 1.25 * weight, least + (0.95 - least) * weight];
}

/** Add a panel that shows the edges of `list()` under `caption(edges)`, its heading and note. */
export function addPanel(view, list, caption) {
  const holder = /** @type {HTMLElement} */ (document.querySelector(`#${view} .panels`));
  holder.style.setProperty("--ratio", String(RATIO));
  holder.style.setProperty("--least", `${Math.round(data.panel * 1.6)}px`);
  const heading = make("h2"), note = make("p", { class: "note" }), canvas = make("canvas", { "aria-hidden": "true" });
  const boxes = panels.length ? panels[0].boxes.map(box => box.cloneNode(true)) : nodes.map(boxOf);  // cloning is much cheaper
  const [pinned, light] = [draw("g"), draw("g")], words = draw("g", { class: "words" });
  const svg = draw("svg", { role: "group" }, pinned, light, data.rulers.map(([x, y, text, size]) => draw("text", { class: "ruler", x, y, "font-size": size }, text)), boxes, words);
  const stage = make("div", { class: "stage" }, canvas, svg);
  holder.append(make("section", { class: "panel" }, heading, note, stage));
  const panel = { view, list, caption, heading, note, stage, canvas, svg, edges: [], light, pinned, words, boxes, viewBox: "", pins: "" };
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

/** The visible part of the drawing: x, y, width and height. */
export function inView() {
  const width = data.panel / state.zoom, height = HEIGHT / state.zoom;
  return [Math.min(state.x, data.panel - width), data.top + Math.min(state.y, HEIGHT - height), width, height];
}

/** Zoom around a point of the drawing, by default its middle. */
export function zoomTo(zoom, x, y) {
  const [left, top, width, height] = inView(), to = Math.min(8, Math.max(1, zoom)), part = state.zoom / to;
  const [middleX, middleY] = [x ?? left + width / 2, y ?? top + height / 2];
  state.zoom = +to.toFixed(2);
  moveTo(middleX - (middleX - left) * part, middleY - (middleY - top) * part);
}

export function moveTo(left, top) {
  const within = (value, most) => +Math.max(0, Math.min(value, most - most / state.zoom)).toFixed(1);
  state.x = within(left, data.panel);
  state.y = within(top - data.top, HEIGHT);
}

function pixelsOf({ canvas }) {  // width and height that fit the screen
  const width = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
  return [width, Math.round(width / RATIO)];
}

/** Draw the edges of these panels, faintest first. All sizes are read before anything is drawn, since resizing a canvas forces a new layout. */
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
    context.lineWidth = coarse ? Math.min(thick, 1 / scale) : thick;  // lines of at most a pixel take half the time
    context.globalAlpha = opacity;
    strokeTogether(context, edges.slice(first, end), styles, coarse);
  }
}

/** Draw edges of nearly equal size with one stroke per style: separate strokes take twice as long. */
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

/** Update all of a panel but its canvas. Call it before `paint`, which reads sizes: changes after that force a new layout. */
export function update(panel) {
  panel.edges = panel.list();
  const { text, note } = panel.caption(panel.edges), used = new Set(panel.edges.flatMap(edge => [edge.source, edge.owner]));
  const kept = pins(), sought = found();
  panel.heading.textContent = text;
  panel.note.textContent = note;
  const viewBox = String(inView());
  if (panel.viewBox !== viewBox) panel.svg.setAttribute("viewBox", panel.viewBox = viewBox);  // setting it lays out all text again
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

/** The nodes whose name, label, note or group contains the search text. */
export function found() {
  const text = state.find.trim().toLowerCase(), kept = pins();
  if (!text) return [];
  const said = node => [node.name, kept[node.name]?.note, kept[node.name]?.group, ...models.map(model => (Object.hasOwn(model.labels, node.name) ? model.labels[node.name] : ""))];
  return nodes.filter(node => said(node).some(words => words?.toLowerCase().includes(text)));
}
