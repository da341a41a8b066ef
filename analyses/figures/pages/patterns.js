// Attention patterns of all heads: dense and sparse as two grids, layers upward; one head large with its tokens.

import { draw, make } from "./dom.js";
import { bytes, data, models, state } from "./state.js";
import { refresh } from "./viewer.js";

const unpacked = new Map(), RULER = 30, BETWEEN = 3, FAINTEST = 0.3;
const cursor = { layer: 0, head: 0 };

export function headNumber(name) {
  const [, layer, head] = name.match(/^a(\d+)\.h(\d+)$/) || [];
  return layer === undefined ? -1 : layer * data.patterns.heads + +head;
}

export function attentionOf(model) {  // for every head: query, key, weight in 255ths, one after the other
  const key = `${model} ${state.prompt}`;
  if (!unpacked.has(key)) unpacked.set(key, unpack(data.patterns.models[model][state.prompt]));
  return unpacked.get(key);
}

function unpack({ gaps, weights }) {
  const { layers, heads, pos } = data.patterns, area = pos * pos, found = Array.from({ length: layers * heads }, () => []);
  const weight = bytes(weights);
  let cell = -1, i = 0;
  for (const gap of bytes(gaps)) {
    cell += gap;
    if (gap === 255) continue;
    const place = cell % area;
    found[(cell - place) / area].push(Math.floor(place / pos), place % pos, weight[i++]);
  }
  return found;
}

export function paintPattern(context, model, head, x, y, size) {
  const cells = attentionOf(model)[head], faintest = data.patterns.lossy[model] ? 0 : FAINTEST;  // an open gate is seen, however small its weight
  context.fillStyle = patternInk(model);
  for (let i = 0; i < cells.length; i += 3) {
    context.globalAlpha = Math.max(faintest, cells[i + 2] / 255);
    context.fillRect(x + cells[i + 1] * size, y + cells[i] * size, size, size);
  }
  context.globalAlpha = 1;
}

function patternInk(model) {
  return getComputedStyle(document.documentElement).getPropertyValue(data.patterns.lossy[model] ? "--dense" : "--sparse").trim();
}

export function addGrids() {
  models.forEach((model, i) => {
    const figure = make(document.querySelector("#patterns .grids"), "figure");
    make(figure, "figcaption");
    const canvas = make(figure, "canvas", { tabindex: "0", role: "group", "aria-label": `attention of every head, ${model.name}: arrow keys move, Enter shows a head large` });
    canvas.onpointermove = event => moveTo(headAt(canvas, event));
    canvas.onclick = event => { moveTo(headAt(canvas, event)); enlarge(); };
    canvas.onkeydown = event => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
      if (event.key === "Enter" || event.key === " ") enlarge(); else if (step) moveTo({ layer: cursor.layer + step[0], head: cursor.head + step[1] }); else return;
      event.preventDefault();
    };
    canvas.onfocus = () => moveTo(cursor);
    new ResizeObserver(() => paintGrid(i)).observe(figure);
  });
}

/** @returns {any} */
function gridCanvas(model) {
  return document.querySelectorAll("#patterns .grids canvas")[model];
}

function cellSize(canvas) {
  return (canvas.clientWidth - RULER) / data.patterns.heads;
}

function headAt(canvas, event) {
  const box = canvas.getBoundingClientRect(), cell = cellSize(canvas);
  return { layer: data.patterns.layers - 1 - Math.floor((event.clientY - box.top) / cell), head: Math.floor((event.clientX - box.left - RULER) / cell) };
}

function moveTo({ layer, head }) {
  cursor.layer = Math.max(0, Math.min(data.patterns.layers - 1, layer));
  cursor.head = Math.max(0, Math.min(data.patterns.heads - 1, head));
  const name = `a${cursor.layer}.h${cursor.head}`;
  const said = models.filter(model => Object.hasOwn(model.labels, name)).map(model => `; ${model.name}: ${model.labels[name]}`);
  document.querySelector("#patterns .note").textContent = name + said.join("");
  models.forEach((_, i) => paintGrid(i));
}

function paintGrid(model) {
  const canvas = gridCanvas(model), { layers, heads, pos } = data.patterns, cell = cellSize(canvas), scale = window.devicePixelRatio || 1;
  if (cell <= 0) return;
  const height = cell * layers + 16, computed = getComputedStyle(document.documentElement);
  canvas.style.height = `${height}px`;
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d"), chosen = headNumber(state.head);
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  for (let layer = 0; layer < layers; layer++) for (let head = 0; head < heads; head++) {
    const x = RULER + head * cell, y = (layers - 1 - layer) * cell, at = layer === cursor.layer && head === cursor.head;
    context.strokeStyle = computed.getPropertyValue(at || layer * heads + head === chosen ? "--mark" : "--line");
    context.lineWidth = at ? 2 : 1;
    context.strokeRect(x + 0.5, y + 0.5, cell - BETWEEN, cell - BETWEEN);
    paintPattern(context, model, layer * heads + head, x + 1, y + 1, (cell - BETWEEN - 1) / pos);
  }
  context.fillStyle = computed.getPropertyValue("--quiet");
  context.textBaseline = "middle";
  for (let layer = 0; layer < layers; layer++) context.fillText(`L${layer}`, 0, (layers - layer - 0.5) * cell);
  for (let head = 0; head < heads; head++) context.fillText(String(head), RULER + (head + 0.35) * cell, height - 7);
}

function enlarge() {
  const name = `a${cursor.layer}.h${cursor.head}`;
  state.head = state.head === name ? "" : name;
  refresh();
}

export function updatePatterns() {
  models.forEach((model, i) => {
    const edges = attentionOf(i).reduce((sum, cells) => sum + cells.length / 3, 0);
    gridCanvas(i).parentElement.firstChild.textContent = `${model.name}: ${edges.toLocaleString("en")} attention edges${data.patterns.lossy[i] ? " of weight 1/510 or more" : ""}`;
    paintGrid(i);
  });
  const large = document.querySelector("#patterns .large"), head = headNumber(state.head);
  if (head >= 0) moveTo({ layer: Math.floor(head / data.patterns.heads), head: head % data.patterns.heads });
  large.replaceChildren();
  if (head >= 0 && head < data.patterns.layers * data.patterns.heads) models.forEach((_, i) => addLarge(large, i, head));
}

function addLarge(large, model, head) {
  const { pos } = data.patterns, tokens = data.patterns.tokens[state.prompt], cells = attentionOf(model)[head], cell = 10;
  const figure = make(large, "figure"), margin = 6 + 4.6 * Math.min(14, Math.max(...tokens.map(token => token.length))), side = cell * pos;
  const said = Object.hasOwn(models[model].labels, state.head) ? `, ${models[model].labels[state.head]}` : "";
  make(figure, "figcaption", {}, `${models[model].name} ${state.head}: ${cells.length / 3} edges${said}. A row is a query, a column a key.`);
  const svg = draw(figure, "svg", { viewBox: `0 0 ${margin + side + 1} ${side + margin + 1}`, role: "img", style: `max-height: 80vh` });
  draw(svg, "rect", { x: margin, y: 0.5, width: side, height: side, fill: "none", stroke: "var(--line)" });
  for (let i = 0; i < cells.length; i += 3) {
    const opacity = Math.max(data.patterns.lossy[model] ? 0 : FAINTEST, cells[i + 2] / 255).toFixed(3);
    const box = draw(svg, "rect", { x: margin + cells[i + 1] * cell, y: 0.5 + cells[i] * cell, width: cell, height: cell, fill: data.patterns.lossy[model] ? "var(--dense)" : "var(--sparse)", "fill-opacity": opacity });
    draw(box, "title", {}, `${tokens[cells[i]]} reads ${tokens[cells[i + 1]]}: ${(cells[i + 2] / 255).toFixed(3)}`);
  }
  tokens.forEach((token, i) => {
    const text = token.length > 14 ? `${token.slice(0, 13)}…` : token, at = (i + 0.5) * cell;
    draw(svg, "text", { x: margin - 3, y: at + 0.5, "font-size": 7, "text-anchor": "end", "dominant-baseline": "central" }, text);
    draw(svg, "text", { x: 0, y: 0, "font-size": 7, "text-anchor": "end", "dominant-baseline": "central", transform: `translate(${margin + at} ${side + 4}) rotate(-90)` }, text);
  });
}
