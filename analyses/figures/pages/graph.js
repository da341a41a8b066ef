// The layer x head panels: edges on a canvas, nodes and what is pointed at in SVG above it.

import { draw, make } from "./dom.js";
import { data, edgeName, edgeNamed, models, nodeOf, nodes, runsOut, state } from "./state.js";
import { describe } from "./card.js";
import { refresh } from "./viewer.js";

const RATIO = data.panel / (data.bottom - data.top), LIT = 400;  // at most so many edges of a node are lit
const DASHED = 400;  // among more, dashes of the weaker ones are not seen, and most of the time would go into them
export const panels = [];
let shown = null;  // what is pointed at: { node } or { edge }

function curve({ source, destination }) {  // x and y of four control points
  const x = data.leaves[2 * source], y = data.leaves[2 * source + 1];
  const toX = data.enters[2 * destination], toY = data.enters[2 * destination + 1];
  const rise = y - toY, bow = Math.abs(x - toX) < data.pitch / 3 && rise > data.band ? data.bow * data.pitch : 0;
  return [x, y, x + bow, y - data.bend * rise, toX + bow, toY + data.bend * rise, toX, toY];
}

export function stroke(size, drawn) {  // width and opacity
  const weight = data.faintest + (1 - data.faintest) * Math.sqrt(size), least = 0.04 + 0.66 / (1 + drawn / 50);
  return [0.35 + 1.25 * weight, least + (0.95 - least) * weight];
}

export function pathOf(edge) {
  const at = curve(edge).map(value => +value.toFixed(2));
  return `M${at.slice(0, 2).join(" ")}C${at.slice(2).join(" ")}`;
}

export function number(value) {
  return value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 10000 ? value.toPrecision(3) : value.toExponential(1);
}

export function addPanel(view, list, say) {
  const holder = /** @type {HTMLElement} */ (document.querySelector(`#${view} .panels`));
  holder.style.setProperty("--ratio", String(RATIO));
  const section = make(holder, "section", { class: "panel" });
  const heading = make(section, "h2"), note = make(section, "p", { class: "note" }), stage = make(section, "div", { class: "stage" });
  const canvas = make(stage, "canvas", { "aria-hidden": "true" });
  const svg = draw(stage, "svg", { viewBox: `0 ${data.top} ${data.panel} ${data.bottom - data.top}`, role: "group" });
  const panel = { view, list, say, heading, note, stage, canvas, svg, edges: [], light: draw(svg, "g", {}), boxes: [] };
  for (const [x, y, text, size] of data.rulers) draw(svg, "text", { class: "ruler", x, y, "font-size": size }, text);
  for (const node of nodes) panel.boxes.push(addNode(panel, node));
  panel.boxes[0].setAttribute("tabindex", "0");
  panels.push(panel);
  listenTo(panel);
  new ResizeObserver(() => { if (canvas.width !== pixelsOf(panel)[0]) paint(panel); }).observe(stage);
}

function addNode(panel, node) {
  const { name, kind, text, x, y, width, height } = node;
  const box = draw(panel.svg, "g", { class: `node ${kind}`, tabindex: "-1", role: "button", "aria-label": name });
  const rx = kind === "head" ? Math.min(width, height) / 2 : 1.5;
  draw(box, "rect", { x: x - width / 2, y: y - height / 2, width, height, rx });
  draw(box, "text", { x, y, "font-size": Math.min(7, height / 1.25, 1.45 * width / text.length) }, text);
  return box;
}

function pixelsOf({ canvas }) {  // width and height that fit the screen
  const width = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
  return [width, Math.round(width / RATIO)];
}

function paint(panel) {  // the faintest first
  const { canvas, edges } = panel, size = pixelsOf(panel), scale = size[0] / data.panel;
  if (!scale) return;
  const context = canvas.getContext("2d"), styles = inks(panel.view);
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  context.resetTransform();
  context.clearRect(0, 0, ...size);
  context.setTransform(scale, 0, 0, scale, 0, -scale * data.top);
  for (let i = edges.length - 1; i >= 0; i--) {
    const edge = edges[i], at = edge.curve || (edge.curve = curve(edge)), [width, opacity] = stroke(edge.size, edges.length);
    context.strokeStyle = styles[edge.style].colour;
    context.setLineDash(i < DASHED ? styles[edge.style].dash : []);
    context.lineWidth = width;
    context.globalAlpha = opacity;
    context.beginPath();
    context.moveTo(at[0], at[1]);
    context.bezierCurveTo(at[2], at[3], at[4], at[5], at[6], at[7]);
    context.stroke();
  }
}

export function inks(view) {
  const computed = getComputedStyle(document.documentElement);
  return data.styles[view].map(([name, dash]) => ({ colour: computed.getPropertyValue(`--${name}`).trim(), dash, variable: `var(--${name})` }));
}

export function update(panel) {
  panel.edges = panel.list();
  const { text, note } = panel.say(panel.edges), used = new Set(panel.edges.flatMap(edge => [edge.source, edge.owner]));
  panel.heading.textContent = text;
  panel.note.textContent = note;
  panel.svg.setAttribute("aria-label", text);
  nodes.forEach((node, i) => {
    const box = panel.boxes[i];
    box.classList.toggle("unused", !used.has(i));
    box.classList.toggle("chosen", node.name === state.chosen);
    box.style.display = state.hide && !used.has(i) && node.name !== state.chosen ? "none" : "";
  });
  paint(panel);
}

export function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

export function aboutModel(model, edges) {
  const share = model.total ? edges.reduce((sum, edge) => sum + Math.abs(edge.score), 0) / model.total : 0;
  const text = `${model.name}: ${edges.length.toLocaleString("en")} of ${model.edges.toLocaleString("en")} edges, ${percent(share)} of |score|`;
  if (model.list.length === model.edges) return { text, note: "" };
  const held = `this page holds the ${model.list.length.toLocaleString("en")} largest, ${percent(model.total ? model.held / model.total : 0)} of |score|`;
  return { text, note: runsOut(model) ? `the threshold asks for more: ${held}` : held };
}

export function aboutDifference(edges) {
  const [first, second, both] = [0, 1, 2].map(style => edges.filter(edge => edge.style === style).length.toLocaleString("en"));
  const notes = models.map((model, i) => aboutModel(model, edges.filter(edge => edge.style === i || edge.style === 2).map(edge => model.of.get(edge.code))).text);
  return { text: `only ${models[0].name}: ${first}, only ${models[1].name}: ${second}, both: ${both} edges`, note: notes.join("; ") };
}

// -- pointing

function hit(panel, x, y) {
  const node = nodes.find(({ x: left, y: top, width, height, index }) => Math.abs(x - left) <= width / 2 + 0.5 && Math.abs(y - top) <= height / 2 + 0.5 && panel.boxes[index].style.display !== "none");
  if (node) return { node };
  let best = null, least = 3 ** 2;  // points, squared
  for (const edge of panel.edges) {
    const at = edge.curve || (edge.curve = curve(edge)), reach = 3;
    if (y > at[1] + reach || y < at[7] - reach || x < Math.min(at[0], at[6]) - reach || x > Math.max(at[2], at[4], at[0], at[6]) + reach) continue;
    const distance = distanceTo(at, x, y);
    if (distance < least) { least = distance; best = edge; }
  }
  return best && { edge: best };
}

function distanceTo(at, x, y) {  // squared, to sixteen pieces of the curve
  let least = Infinity, fromX = at[0], fromY = at[1];
  for (let i = 1; i <= 16; i++) {
    const t = i / 16, u = 1 - t, a = u * u * u, b = 3 * u * u * t, c = 3 * u * t * t, d = t * t * t;
    const toX = a * at[0] + b * at[2] + c * at[4] + d * at[6], toY = a * at[1] + b * at[3] + c * at[5] + d * at[7];
    const alongX = toX - fromX, alongY = toY - fromY, length = alongX * alongX + alongY * alongY || 1;
    const part = Math.max(0, Math.min(1, ((x - fromX) * alongX + (y - fromY) * alongY) / length));
    least = Math.min(least, (fromX + part * alongX - x) ** 2 + (fromY + part * alongY - y) ** 2);
    fromX = toX; fromY = toY;
  }
  return least;
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
  panel.light.replaceChildren();
  for (const edge of lit.slice(0, LIT).reverse()) {
    const { variable, dash } = styles[edge.style], width = Math.max(0.7, stroke(edge.size, 1)[0]);
    draw(panel.light, "path", { class: "edge", d: pathOf(edge), stroke: variable, "stroke-width": target.node ? width : width + 0.8, "stroke-dasharray": dash.join(" ") });
  }
  panel.boxes.forEach((box, i) => { box.classList.toggle("on", near.has(i)); box.classList.toggle("now", !!target && target.node === nodes[i]); });
}

export function choose(target) {
  const name = nameOf(target);
  state.chosen = name === state.chosen ? "" : name;
  refresh();
  point(shown);
}

function listenTo(panel) {
  const { svg } = panel;
  const under = event => {
    const box = svg.getBoundingClientRect(), scale = data.panel / box.width;
    return hit(panel, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale + data.top);
  };
  svg.addEventListener("pointermove", event => { const target = under(event); svg.style.cursor = target ? "pointer" : ""; if (nameOf(target) !== nameOf(shown)) point(target); });
  svg.addEventListener("pointerleave", () => point(null, false));
  svg.addEventListener("focusout", () => point(null, false));
  svg.addEventListener("click", event => { const target = under(event); if (target) choose(target); });
  svg.addEventListener("focusin", event => { const i = panel.boxes.indexOf(event.target); if (i >= 0) { stopAt(i); point({ node: nodes[i] }); } });
  svg.addEventListener("keydown", event => walk(panel, event));
}

function stopAt(index) {  // one node of each panel can be reached with the Tab key, the others with arrows
  for (const { boxes } of panels) boxes.forEach((box, i) => box.setAttribute("tabindex", i === index ? "0" : "-1"));
}

function walk(panel, event) {
  const from = nodes[panel.boxes.indexOf(event.target)];
  if (!from) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose({ node: from }); return; }
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const cost = node => {
    const x = node.x - from.x, y = node.y - from.y, along = x * step[0] + y * step[1], aside = Math.abs(step[0] ? y : x);
    return along < 1 || (step[0] && aside > 0.6 * data.band) || panel.boxes[node.index].style.display === "none" ? Infinity : along + 2 * aside / (step[0] ? 1 : 8);
  };
  const next = nodes.reduce((best, node) => (cost(node) < cost(best) ? node : best), from);
  if (next !== from) panel.boxes[next.index].focus();
}
