// The page's data and settings: edges ordered by |score|, the threshold, the sign, the selected node or edge.

import { byId, pageData } from "./dom.js";

export const data = pageData();
const MODES = { pruned: data.models.some(model => model.pruned), faithful: data.models.some(model => model.faithful), share: true, score: true, top: true };
export const modes = Object.keys(MODES).filter(mode => MODES[mode]);
const START = {
  tab: "circuit", mode: data.begin !== null ? "top" : modes[0], share: data.share, score: 0, top: data.begin ?? 20, sign: "both",
  dead: false, hide: false, chosen: "", find: "", pins: "", zoom: 1, x: 0, y: 0, head: "", prompt: 0,
};
export const state = { ...START };
export const nodes = data.nodes.map(([name, kind, text, x, y, width, height], index) => ({ name, kind, text, x, y, width, height, index }));
export const nodeOf = new Map(nodes.map(node => [node.name, node]));
const owners = data.destinations.map(name => nodeOf.get(name.split("<")[0]).index);  // sources are in the order of the nodes
export const models = data.models.map(ranked);
export const largest = Math.max(...models.map(model => model.largest)) || 1;
for (const model of models) for (const edge of model.every) edge.size = Math.abs(edge.score) / largest;

export function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);  // Uint8Array.from with a function is ten times slower
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

function ranked(model) {
  const list = decoded(model), of = new Map(list.map(edge => [edge.code, edge]));
  const pruned = model.pruned && decoded(model.pruned).map(edge => of.get(edge.code) ?? { ...edge, rank: Infinity });
  const every = pruned ? list.concat(pruned.filter(edge => !of.has(edge.code))) : list;  // a pruned circuit may contain weak edges that the page does not store otherwise
  for (const edge of pruned ?? []) of.set(edge.code, edge);
  const upward = inOrder(every, "source"), downward = inOrder(every, "owner").reverse();
  return { ...model, pruned: pruned && { list: pruned, mean: model.pruned.mean }, list, every, upward, downward, held: list.at(-1)?.reached ?? 0, largest: list.length ? Math.abs(list[0].score) : 0, of };
}

function decoded(edges) {
  const scores = new (edges.double ? Float64Array : Float32Array)(bytes(edges.score).buffer);
  const sources = new Uint16Array(bytes(edges.source).buffer), destinations = new Uint16Array(bytes(edges.destination).buffer);
  let sum = 0;
  return Array.from(scores, (score, rank) => {
    const source = sources[rank], destination = destinations[rank];
    sum += Math.abs(score);
    return { source, destination, owner: owners[destination], score, rank, reached: sum, style: score < 0 ? 1 : 0, code: source * owners.length + destination };
  });
}

function inOrder(list, end) {  // of the nodes at that end; faster than sorting
  const at = nodes.map(() => []);
  for (const edge of list) at[edge[end]].push(edge);
  return [].concat(...at);  // flat() is three times slower
}

export function edgeName(edge) {
  return `${data.sources[edge.source]}->${data.destinations[edge.destination]}`;
}

export function edgeNamed(name) {
  const [start, end] = name.split("->");
  const source = data.sources.indexOf(start), destination = data.destinations.indexOf(end);
  return source < 0 || destination < 0 ? null : { source, destination, owner: owners[destination], code: source * owners.length + destination };
}

function countAtLeast(list, keeps) {  // binary search: the list is sorted, with the kept edges first
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (keeps(list[middle])) low = middle + 1; else high = middle;
  }
  return low;
}

const asPruned = model => state.mode === "pruned" && model.pruned;
const asFaithful = model => (state.mode === "pruned" || state.mode === "faithful") && model.faithful;

function cut(model) {  // how many of the largest edges the threshold keeps, as EdgeScores.smallest and .top do, but without edges of score 0
  const { list, total } = model;
  if (asFaithful(model)) return Math.min(list.length, model.faithful.edges);
  if (state.mode === "top") return Math.min(list.length, state.top);
  if (state.mode === "score") return countAtLeast(list, edge => Math.abs(edge.score) >= state.score);
  const goal = state.share * total * (1 - 1e-12);
  return total > 0 && state.share > 0 ? Math.min(list.length, countAtLeast(list, edge => edge.reached < goal) + 1) : 0;
}

/** Does the page store every edge of nonzero score? */
export const holdsAll = model => model.list.length === model.edges || model.held >= model.total * (1 - 1e-12);

export function runsOut(model) {  // does the threshold need more edges than the page stores?
  if (holdsAll(model) || asPruned(model)) return false;
  if (asFaithful(model)) return model.faithful.edges > model.list.length;
  if (state.mode === "top") return state.top > model.list.length;
  if (state.mode === "score") return cut(model) === model.list.length;
  return model.held < state.share * model.total * (1 - 1e-12);
}

/** The edges of a model that are drawn, and how many selected edges are hidden because they are dead ends. */
export function drawn(model) {
  const pruned = asPruned(model), n = pruned ? "pruned" : cut(model), key = `${n} ${state.sign} ${state.dead}`;
  if (model.drawn?.key !== key) {
    const first = pruned ? pruned.list : model.list.slice(0, n), inside = pruned && new Set(first);
    const keeps = inside ? edge => inside.has(edge) : edge => edge.rank < n;
    const alive = state.dead ? first : first.filter(livelyIn(model, keeps));
    model.drawn = { key, list: state.sign === "both" ? alive : alive.filter(edge => (edge.score < 0) === (state.sign === "negative")), dead: first.length - alive.length };
  }
  return model.drawn;
}

export const signed = model => drawn(model).list;

function livelyIn(model, keeps) {  // on a path from the input to the logits, as in Circuit.pruned; nodes are in topological order
  const from = new Uint8Array(nodes.length), to = new Uint8Array(nodes.length);
  from[0] = to[nodes.length - 1] = 1;
  for (const edge of model.upward) if (from[edge.source] && keeps(edge)) from[edge.owner] = 1;
  for (const edge of model.downward) if (to[edge.owner] && keeps(edge)) to[edge.source] = 1;
  return edge => to[edge.owner] && (from[edge.source] || !data.from_input);
}

export function alongPaths(list) {  // the edges on paths through the chosen node or edge; nodes are in topological order
  if (!state.chosen) return list;
  const node = nodeOf.get(state.chosen), edge = node ? null : edgeNamed(state.chosen);
  const before = new Set([node ? node.index : edge.source]), after = new Set([node ? node.index : edge.owner]);
  const kept = new Set(edge ? [edge.code] : []);
  for (const one of [...list].sort((a, b) => b.owner - a.owner))
    if (before.has(one.owner)) { before.add(one.source); kept.add(one.code); }
  for (const one of [...list].sort((a, b) => a.source - b.source))
    if (after.has(one.source)) { after.add(one.owner); kept.add(one.code); }
  return list.filter(one => kept.has(one.code));
}

export function difference() {  // edges only in the first (kind 0), only in the second (1), in both (2), each in the style of its kind
  const kept = models.map(signed), [inFirst, inSecond] = kept.map(list => new Set(list.map(edge => edge.code)));
  const all = [], [first, second] = kept.map(alongPaths), listed = new Set(first.map(edge => edge.code));
  for (const edge of first) all.push({ ...edge, style: inSecond.has(edge.code) ? 2 : 0 });
  for (const edge of second) if (!listed.has(edge.code)) all.push({ ...edge, style: inFirst.has(edge.code) ? 2 : 1 });
  for (const edge of all) {
    const own = models.filter((_, i) => edge.style === 2 || edge.style === i).map(model => model.of.get(edge.code));
    const { size, score } = own.reduce((one, other) => (other.size > one.size ? other : one));
    Object.assign(edge, { size, score, kind: edge.style, style: edge.style + (score < 0 ? 3 : 0) });
  }
  return all.sort((a, b) => b.size - a.size);
}

// -- pins: names of nodes and edges with a note and a group

/** @returns {Record<string, { note: string, group: string }>} */
export function pins() {
  return state.pins ? JSON.parse(state.pins) : {};
}

export function setPins(all) {
  state.pins = Object.keys(all).length ? JSON.stringify(all) : "";
}

/** Is this the name of a node, or of an edge stored in the page? */
function isPart(name) {
  const edge = nodeOf.has(name) ? null : edgeNamed(name);
  return nodeOf.has(name) || (edge !== null && models.some(model => model.of.has(edge.code)));
}

/** Read pins from untrusted text: only of existing nodes and edges, at most 200, each text at most 200 characters. */
function readPins(text) {
  try {
    const said = Object.entries(JSON.parse(text)).filter(([name]) => isPart(name)).slice(0, 200);
    setPins(Object.fromEntries(said.map(([name, pin]) => [name, { note: String(pin.note ?? "").slice(0, 200), group: String(pin.group ?? "").slice(0, 200) }])));
  } catch {
    state.pins = "";
  }
}

// -- the state as text: after # in the address if the page has one, else only in the text field

export function stateText() {
  const changed = Object.entries(state).filter(([name, value]) => value !== START[name]);
  return new URLSearchParams(changed.map(([name, value]) => [name, String(value)])).toString();
}

export function applyState(text) {
  const said = new URLSearchParams(text.slice(text.indexOf("#") + 1));
  Object.assign(state, START);
  for (const [name, value] of said) {
    if (typeof START[name] === "number" && Number.isFinite(+value) && value !== "") state[name] = Math.max(0, +value);
    else if (typeof START[name] === "boolean") state[name] = value === "true";
    else if (typeof START[name] === "string") state[name] = value;
  }
  state.share = Math.min(1, state.share);
  state.zoom = Math.min(8, Math.max(1, state.zoom));
  state.top = Math.round(state.top);
  readPins(state.pins || "{}");
  state.prompt = data.patterns ? Math.min(Math.round(state.prompt), data.patterns.tokens.length - 1) : 0;
  if (!modes.includes(state.mode)) state.mode = START.mode;
  if (!["both", "positive", "negative"].includes(state.sign)) state.sign = START.sign;
  if (state.chosen && !nodeOf.has(state.chosen) && !edgeNamed(state.chosen)) state.chosen = "";
}

let written = null;
export function keepState() {
  const text = stateText();
  if (document.activeElement !== byId("address")) byId("address").value = text;
  if (text === written) return;
  written = text;
  try {
    history.replaceState(null, "", text ? `#${text}` : location.href.split("#")[0]);
  } catch { /* a frame has no address of its own: the text field has the state */ }
}
