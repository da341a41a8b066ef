// The card about the node or edge under the pointer: labels, scores, its strongest edges, its head's patterns.

import { byId, make, thousands } from "./dom.js";
import { data, edgeName, holdsAll, models, nodeOf, pins, signed, state } from "./state.js";
import { number, percent } from "./captions.js";
import { panels } from "./graph.js";
import { choose, nameOf, pin, point, touches } from "./pointing.js";
import { headNumber, patternsOf } from "./grids.js";
import { patternOf } from "./patterns.js";

const HINT = "Point at a node or an edge, or move between nodes with Tab and the arrow keys. Click or Enter: show only the paths through it. Shift+click or P: pin it. Escape: clear the selection. Ctrl+wheel, + and −: zoom; drag to pan.";
export let described = null;  // what the card shows: { node } or { edge }
const LISTED = 8, RECEIVERS = { q: "queries", k: "keys", v: "values" };

export function describe(target) {
  described = target;
  if (!target) { byId("card").replaceChildren(make("p", {}, HINT)); return; }
  byId("card").replaceChildren(
    make("div", { class: "title" }, make("h2", { tabindex: "-1" }, nameOf(target)), pinButton(target)),
    ...(target.node ? aboutNode(target.node) : aboutEdge(target.edge)).flat(Infinity).filter(Boolean));
}

function pinButton(target) {
  const pinned = nameOf(target) in pins();
  return make("button", { type: "button", class: "pin", "aria-pressed": pinned, onclick: () => { pin(target); describe(target); byId("card").querySelector(".pin").focus(); } }, pinned ? "unpin" : "pin");
}

function inWords(name) {
  const [, layer, head, receiver] = name.match(/^a(\d+)\.h(\d+)(?:<(\w)>)?$/) || [];
  if (layer !== undefined) return `${receiver ? `the ${RECEIVERS[receiver]} of ` : ""}head ${head} of layer ${layer}`;
  return name[0] === "m" ? `the MLP of layer ${name.slice(1)}` : `the ${name}`;
}

function aboutNode(node) {
  return [make("div", {}, inWords(node.name)), labelsOf(node), patterns(node.name), panels.filter(one => one.view === state.tab).map(panel => edgesOf(panel, node))];
}

function edgesOf(panel, node) {
  const touching = panel.edges.filter(edge => touches(edge, { node })), into = touching.filter(edge => edge.owner === node.index).length;
  const more = touching.length - LISTED;
  return [
    make("h3", {}, `${panel.name}: ${thousands(into)} in, ${thousands(touching.length - into)} out`),
    make("ul", {}, touching.slice(0, LISTED).map(edge => make("li", {}, edgeButton(edge, node))), more > 0 && make("li", {}, make("span", { class: "faint" }, `and ${thousands(more)} weaker`))),
  ];
}

function labelsOf(node) {
  return models.filter(model => Object.hasOwn(model.labels, node.name)).map(model => make("div", {}, `${model.name}: ${model.labels[node.name]}`));
}

function edgeButton(edge, node) {
  const inward = edge.owner === node.index, receiver = (data.destinations[edge.destination].match(/<(\w)>/) || [])[1];
  const show = () => point({ edge }, false), leave = () => point(null, false);
  return make("button", {
    type: "button", "aria-label": `${edgeName(edge)}, score ${number(edge.score)}`, onfocus: show, onpointerenter: show, onblur: leave, onpointerleave: leave,
    onclick: () => { choose({ edge }); describe({ edge }); byId("card").querySelector("h2").focus(); },
  }, make("span", {}, inward ? `from ${data.sources[edge.source]}${receiver ? ` (${receiver})` : ""}` : `to ${data.destinations[edge.destination]}`), make("span", { class: "faint" }, number(edge.score)));
}

function aboutEdge(edge) {
  const start = data.sources[edge.source], end = data.destinations[edge.destination];
  const heads = [...new Set([start, end.split("<")[0]])].filter(name => /^a/.test(name));
  return [
    make("div", {}, `from ${inWords(start)} to ${inWords(end)}`),
    models.map(model => [make("h3", {}, model.name), make("div", {}, scoreOf(model, edge))]),
    heads.map(name => [make("h3", {}, name), labelsOf(nodeOf.get(name)), patterns(name)]),
  ];
}

function scoreOf(model, { code }) {
  const known = model.of.get(code);
  if (!known) return holdsAll(model) ? "score 0, or not measured" : "not among the edges stored in this page";
  const share = model.total ? `, ${percent(Math.abs(known.score) / model.total)} of |score|` : "";
  return `score ${number(known.score)}, ${Number.isFinite(known.rank) ? `rank ${thousands(known.rank + 1)}` : `not among the ${thousands(model.list.length)} largest`}${share}${signed(model).includes(known) ? "" : "; not shown"}`;
}

/** A head's attention patterns in all models on the chosen prompt. */
function patterns(name) {
  const head = data.patterns ? headNumber(name) : -1;
  if (head < 0) return [];
  const place = [Math.floor(head / data.patterns.heads), head % data.patterns.heads];
  const figures = models.map((model, i) => {
    const of = patternsOf(i), drawing = patternOf(of, ...place);
    drawing.setAttribute("aria-label", `attention of ${name} in ${model.name}`);
    return make("figure", {}, drawing, make("figcaption", {}, `${model.name}: ${of.cells(...place).length} edges`));
  });
  return [make("div", { class: "pair" }, figures), make("p", { class: "note" }, `on the prompt “${data.patterns.titles[state.prompt]}”`)];
}
