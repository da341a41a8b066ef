// What is known of the node or edge that was pointed at: labels, scores, its strongest edges, its head's patterns.

import { byId, make } from "./dom.js";
import { data, edgeName, models, nodeOf, signed, state } from "./state.js";
import { choose, nameOf, number, panels, percent, point, touches } from "./graph.js";
import { attentionOf, headNumber, paintPattern } from "./patterns.js";

const HINT = "Point at a node or an edge, or move through the nodes with Tab and the arrow keys. A click or Enter keeps only what leads there and what follows; Escape drops the choice.";
export let described = null;  // what the card is about: { node } or { edge }
const LISTED = 8, RECEIVERS = { q: "queries", k: "keys", v: "values" };

export function describe(target) {
  const card = byId("card");
  described = target;
  card.replaceChildren();
  if (!target) { make(card, "p", {}, HINT); return; }
  make(card, "h2", { tabindex: "-1" }, nameOf(target));
  if (target.node) describeNode(card, target.node); else describeEdge(card, target.edge);
}

function inWords(name) {
  const [, layer, head, receiver] = name.match(/^a(\d+)\.h(\d+)(?:<(\w)>)?$/) || [];
  if (layer !== undefined) return `${receiver ? `the ${RECEIVERS[receiver]} of ` : ""}head ${head} of layer ${layer}`;
  return name[0] === "m" ? `the MLP of layer ${name.slice(1)}` : `the ${name}`;
}

function describeNode(card, node) {
  make(card, "div", {}, inWords(node.name));
  addLabels(card, node);
  addPatterns(card, node.name);
  for (const panel of panels.filter(one => one.view === state.tab)) {
    const touching = panel.edges.filter(edge => touches(edge, { node }));
    const into = touching.filter(edge => edge.owner === node.index).length;
    make(card, "h3", {}, `${panel.name}: ${into.toLocaleString("en")} in, ${(touching.length - into).toLocaleString("en")} out`);
    const list = make(card, "ul");
    for (const edge of touching.slice(0, LISTED)) addEdgeButton(make(list, "li"), edge, node);
    if (touching.length > LISTED) make(make(list, "li"), "span", { class: "faint" }, `and ${(touching.length - LISTED).toLocaleString("en")} weaker`);
  }
}

function addLabels(card, node) {
  for (const model of models) if (Object.hasOwn(model.labels, node.name)) make(card, "div", {}, `${model.name}: ${model.labels[node.name]}`);
}

function addEdgeButton(item, edge, node) {
  const inward = edge.owner === node.index, button = make(item, "button", { type: "button", "aria-label": `${edgeName(edge)}, score ${number(edge.score)}` });
  const receiver = (data.destinations[edge.destination].match(/<(\w)>/) || [])[1];
  make(button, "span", {}, inward ? `from ${data.sources[edge.source]}${receiver ? ` (${receiver})` : ""}` : `to ${data.destinations[edge.destination]}`);
  make(button, "span", { class: "faint" }, number(edge.score));
  button.onfocus = button.onpointerenter = () => point({ edge }, false);
  button.onblur = button.onpointerleave = () => point(null, false);
  button.onclick = () => { choose({ edge }); describe({ edge }); byId("card").querySelector("h2").focus(); };
}

function describeEdge(card, edge) {
  const start = data.sources[edge.source], end = data.destinations[edge.destination];
  make(card, "div", {}, `from ${inWords(start)} to ${inWords(end)}`);
  models.forEach(model => {
    const known = model.of.get(edge.code), kept = known && signed(model).includes(known);
    const share = known && model.total ? `, ${percent(Math.abs(known.score) / model.total)} of |score|` : "";
    make(card, "h3", {}, model.name);
    make(card, "div", {}, known ? `score ${number(known.score)}, rank ${(known.rank + 1).toLocaleString("en")}${share}${kept ? "" : ": not kept"}` : "not among the edges that this page holds");
  });
  for (const name of new Set([start, end.split("<")[0]])) {
    if (!/^a/.test(name)) continue;
    make(card, "h3", {}, name);
    addLabels(card, nodeOf.get(name));
    addPatterns(card, name);
  }
}

function addPatterns(card, name) {
  const head = data.patterns ? headNumber(name) : -1;
  if (head < 0) return;
  const pair = make(card, "div", { class: "pair" });
  models.forEach((model, i) => {
    const figure = make(pair, "figure"), canvas = make(figure, "canvas", { role: "img", "aria-label": `attention of ${name} in ${model.name}` });
    canvas.width = canvas.height = data.patterns.pos;
    paintPattern(canvas.getContext("2d"), i, head, 0, 0, 1);
    make(figure, "figcaption", {}, `${model.name}: ${attentionOf(i)[head].length / 3} edges`);
  });
}
