/** The token x layer drawing: positions left to right, layers bottom to top, one line from key to query for every edge. */

import { draw, make, shorter, thousands } from "../pages/dom.js";
import { leadingTo } from "./circuit.js";
import { count, quoted, visible } from "./names.js";

export const [KEPT, CUT, CLOSED, OPENED] = [0, 1, 2, 3];
export const MARKS = { [CUT]: "×", [CLOSED]: "−", [OPENED]: "+" };
const LEFT = 64, FONT = 12, CHARACTER = 0.58 * FONT, LONGEST_WORD = 16, WIDEST = 84, NARROWEST = 20;

export function drawingOf(app, model) {
  const plan = planOf(app, model), least = Math.round(1000 * app.threshold(model));
  const strong = model.list.filter(edge => Math.max(edge.before, edge.after) >= least);
  const circuit = app.view.circuit ? leadingTo(app.position, strong.filter(edge => edge.after >= 0)) : new Set(strong);
  const shown = model.list.filter(edge => app.isCut(edge.name) || circuit.has(edge));
  const faintFirst = [...shown].sort((a, b) => Math.max(a.before, a.after) - Math.max(b.before, b.after));
  const svg = draw("svg", { viewBox: `0 0 ${plan.width} ${plan.height}`, width: plan.width, height: plan.height, role: "group", "aria-label": `attention edges, ${model.name}` },
    draw("g", { class: "nodes" }, nodesOf(plan)),
    draw("g", { class: "edges" }, faintFirst.map(edge => edgeOf(app, model, plan, edge, faintFirst.length))),
    draw("g", { class: "marks" }, shown.map(edge => markOf(app, model, plan, edge))),
    layersOf(app, model, plan),
    app.state.tokens.map((token, i) => tokenOf(app, model, plan, i, token)),
    model.answers.map((answer, i) => saidOf(app, model, plan, i, answer.says)));
  svg.querySelector(".edge")?.setAttribute("tabindex", "0");
  return make("figure", { class: "drawing" }, captionOf(app, model, app.view.circuit ? circuit.size : shown.length), make("div", { class: "scroll" }, svg));
}

/** The layout of the drawing, in pixels. */
function planOf(app, model) {
  const n = app.state.tokens.length;
  const pitch = Math.min(WIDEST, Math.max(NARROWEST, (app.width - LEFT - 8) / n));
  const length = texts => Math.max(...texts.map(text => Math.min(LONGEST_WORD, text.length))) * CHARACTER;
  const words = [length(app.state.tokens), length(model.answers.map(answer => answer.says[1]))];
  const [below, above] = words.map(width => (width > pitch - 4 ? { upright: true, height: width + 8 } : { upright: false, height: 22 }));
  const band = Math.min(46, Math.max(15, 320 / model.layer));
  const top = above.height + 6, floor = top + band * model.layer;
  const spread = Math.min(3, (0.6 * pitch) / model.head);
  return {
    pitch, band, top, floor, below, above, width: LEFT + pitch * n + 8, height: floor + below.height + 8,
    x: position => LEFT + pitch * (position + 0.5),
    port: (position, head) => LEFT + pitch * (position + 0.5) + spread * (head - (model.head - 1) / 2),
    y: line => floor - band * line,
  };
}

function nodesOf(plan) {
  const width = 0.66 * plan.pitch, nodes = [];
  for (let y = plan.floor; y > plan.top - 1; y -= plan.band)
    for (let x = LEFT + (plan.pitch - width) / 2; x < plan.width - width; x += plan.pitch) nodes.push(draw("rect", { x, y: y - 1.5, width, height: 3, rx: 1.5 }));
  return nodes;
}

function edgeOf(app, model, plan, edge, drawn) {
  const weight = Math.max(0, edge.fate === KEPT || edge.fate === OPENED ? edge.after : edge.before) / 1000;
  const [from, to] = [plan.port(edge.key, edge.head), plan.port(edge.query, edge.head)];
  const [low, high] = [plan.y(edge.layer) - 2, plan.y(edge.layer + 1) + 2], bend = 0.55 * (high - low);
  const faintest = 0.04 + 0.66 / (1 + drawn / 50);  // among thousands of overlapping edges weak ones fade, as in the other figures
  return draw("path", {
    class: `edge fate${edge.fate}${app.isPinned(edge.name) ? " pinned" : ""}`,
    d: `M${from} ${low}C${from} ${low + bend} ${to} ${high - bend} ${to} ${high}`,
    stroke: `var(--head${edge.head % 8})`, "stroke-width": 0.7 + 2.3 * weight, "stroke-opacity": faintest + (0.95 - faintest) * weight,
    tabindex: -1, role: "button", "aria-pressed": app.isCut(edge.name), "aria-label": app.describe(edge.name),
    "data-name": edge.name, "data-key": `${model.name} ${edge.name}`,
  });
}

/** A mark on an edge's line: whether it was cut, closed or opened, and its label. Its height depends on the head, to avoid overlaps. */
function markOf(app, model, plan, edge) {
  const text = [MARKS[edge.fate], app.state.notes[edge.name]?.label].filter(Boolean).join(" ");
  const t = 0.32 + (0.36 * edge.head) / Math.max(1, model.head - 1), along = t * t * (3 - 2 * t);
  const [from, to] = [plan.port(edge.key, edge.head), plan.port(edge.query, edge.head)];
  const rise = 3 * 0.55 * t * (1 - t) * (1 - 2 * t) + along;  // along the curve that edgeOf draws
  const attributes = { x: from + (to - from) * along, y: plan.y(edge.layer + rise), fill: `var(--head${edge.head % 8})`, class: `mark fate${edge.fate}` };
  return text && draw("text", attributes, shorter(text, 24));
}

function layersOf(app, model, plan) {
  const size = Math.min(FONT, 0.8 * plan.band), labels = [];
  for (let layer = 0; layer < model.layer; layer++) {
    labels.push(partButton(app, model, `a${layer}`, 16, plan.y(layer + 0.5), size));
    if (layer < model.mlp) labels.push(partButton(app, model, `m${layer}`, 46, plan.y(layer + 1) + 2, size));
  }
  return labels;
}

function partButton(app, model, name, x, y, size) {
  return draw("g", buttonOf(app, model, name), draw("rect", { x: x - 14, y: y - size / 2 - 1, width: 28, height: size + 2, rx: 3 }), draw("text", { x, y, "font-size": size, "text-anchor": "middle" }, name));
}

export function buttonOf(app, model, name) {
  return { class: `part${app.isPinned(name) ? " pinned" : ""}`, role: "button", tabindex: 0, "aria-pressed": app.isCut(name), "aria-label": app.describe(name), "data-name": name, "data-key": `${model.name} ${name}` };
}

function tokenOf(app, model, plan, position, token) {
  const label = app.state.notes[`p${position}`]?.label;
  return draw("g", buttonOf(app, model, `p${position}`), wordOf(plan, plan.below, position, plan.floor, 1, token), label && draw("title", {}, label));
}

/** The most likely next token at a position; a click shows the others. */
function saidOf(app, model, plan, position, [before, after]) {
  const moved = before !== after, chosen = position === app.position;
  const what = moved ? `predicts ${quoted(after)}, before the cuts ${quoted(before)}` : `predicts ${quoted(after)}`;
  return draw("g", {
    class: `said${moved ? " moved" : ""}${chosen ? " chosen" : ""}`, role: "button", tabindex: 0, "aria-pressed": chosen,
    "aria-label": `position ${position} ${what}`, "data-position": position, "data-key": `${model.name} said ${position}`,
  }, wordOf(plan, plan.above, position, plan.top, -1, after), draw("title", {}, what));
}

/** A word below (down = 1) or above (-1) a line of nodes, rotated if it does not fit horizontally. */
function wordOf(plan, { upright, height }, position, line, down, text) {
  const x = plan.x(position), y = line + down * (upright ? 7 : 14);
  const box = draw("rect", { x: x - plan.pitch / 2 + 1, y: down > 0 ? line + 4 : line - height, width: plan.pitch - 2, height: height - 2, rx: 3 });
  const anchor = upright ? (down > 0 ? "end" : "start") : "middle";
  return [box, draw("text", { x, y, "text-anchor": anchor, transform: upright ? `rotate(-90 ${x} ${y})` : null }, shorter(visible(text), LONGEST_WORD))];
}

function captionOf(app, model, drawn) {
  const [, cut, closed, opened] = model.edges.fates;
  const fates = [cut && `${cut} cut`, closed && `${closed} closed by the cuts`, opened && `${opened} opened`].filter(Boolean).join(", ");
  const all = model.list.length;
  return make("figcaption", {},
    make("b", { class: `ink ${model.gated ? "sparse" : "dense"}` }, model.name),
    ` ${count(model.edges.after, model.gated ? "open edge" : "edge")}${fates ? ` (${fates})` : ""}`,
    drawn < all ? `, ${thousands(drawn)} ${app.view.circuit ? "lead to the answer" : "drawn"}` : "",
    model.edges.left_out ? `; this page stores the ${thousands(all)} strongest` : "",
    make("label", {}, " weight ≥ ", make("input", {
      type: "range", min: 0, max: 100, value: Math.round(100 * Math.sqrt(app.threshold(model))), "data-key": `${model.name} threshold`,
      "aria-label": `smallest weight drawn, ${model.name}`,
      oninput: event => app.setThreshold(model, (Number(event.target.value) / 100) ** 2),
    }), make("output", {}, app.threshold(model).toFixed(2))));
}

export function legendOf(app) {
  const all = Math.max(...app.state.models.map(model => model.head)), heads = Math.min(8, all);
  const key = head => make("span", { class: "key" }, swatch(head), `head ${head}`);
  return make("p", { class: "legend" }, Array.from({ length: heads }, (_, head) => key(head)),
    all > heads && make("span", {}, `colours repeat from head ${heads} on`), make("span", {}, "thicker: more attention"), make("span", {}, "below: the prompt; above: the predicted next token (click for probabilities)"), app.state.cuts.length > 0 && make("span", {}, "× cut, − closed by the cuts, + opened by them"));
}

function swatch(head) {
  const line = make("i", { class: "swatch" });
  line.style.background = `var(--head${head % 8})`;
  return line;
}
