// What the headings and notes of the panels say: how many edges are shown, how faithful they are, what is hidden.

import { grouped, thousands } from "./dom.js";
import { drawn, holdsAll, models, runsOut, state } from "./state.js";

export function number(value) {
  return value === 0 ? "0" : Math.abs(value) >= 0.001 && Math.abs(value) < 10000 ? value.toPrecision(3) : value.toExponential(1);
}

export function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

export function modelCaption(model, edges) {
  const share = model.total ? edges.reduce((sum, edge) => sum + Math.abs(edge.score), 0) / model.total : 0;
  const text = `${model.name}: ${thousands(edges.length)} of ${thousands(model.edges)} edges, ${percent(share)} of |score|`;
  return { text, note: [faithfulness(model, edges), deadEnds(model), held(model)].filter(Boolean).join("; ") };
}

/** The faithfulness of the chosen circuit, or of the circuit of which only a part is drawn. */
function faithfulness(model, edges) {
  const { faithful, pruned } = model;
  if (state.mode !== "faithful" && state.mode !== "pruned") return "";
  const own = state.mode === "pruned" && pruned;
  if (!own && !faithful) return `no faithful circuit was found for this model; shown instead: ${percent(state.share)} of |score|`;
  const n = own ? pruned.list.length : faithful.edges, { mean } = own || faithful;
  if (mean === null) return "";
  const measured = `faithfulness ${percent(mean)}${own ? " on held-out prompts" : ""}`;
  return edges.length + drawn(model).dead === n ? measured : `part of a circuit of ${thousands(n)} edges with ${measured}`;
}

function deadEnds(model) {
  const { dead } = drawn(model);
  return dead ? `${thousands(dead)} dead end${dead === 1 ? "" : "s"} hidden` : "";
}

function held(model) {
  if (holdsAll(model)) return state.mode === "top" && state.top > model.list.length ? "all other edges score zero" : "";
  if (state.mode === "pruned" && model.pruned) return "";
  const stored = `the ${thousands(model.list.length)} largest edges, ${percent(model.total ? model.held / model.total : 0)} of |score|`;
  return runsOut(model) ? `this threshold needs more edges than this page stores (${stored})` : `this page stores only ${stored}`;
}

export function differenceCaption(edges) {
  const kinds = grouped(edges, edge => edge.kind), [first, second, both] = [0, 1, 2].map(kind => thousands(kinds.get(kind)?.length ?? 0));
  const notes = models.map((model, i) => modelCaption(model, edges.filter(edge => edge.kind === i || edge.kind === 2).map(edge => model.of.get(edge.code))).text);
  return { text: `only ${models[0].name}: ${first}, only ${models[1].name}: ${second}, both: ${both} edges`, note: notes.join("; ") };
}
