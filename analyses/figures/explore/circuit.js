/** The circuit of one answer: those of the drawn edges that lie on a path to its position, as in `dependency_cone`. */

import { grouped, make } from "../pages/dom.js";

/** The edges that lead to a position of the last layer's output. The residual stream also carries each position to itself. */
export function leadingTo(position, edges) {
  const layers = grouped(edges, edge => edge.layer), reached = new Set([position]), found = new Set();
  for (const layer of [...layers.keys()].sort((a, b) => b - a)) {
    const here = layers.get(layer).filter(edge => reached.has(edge.query));
    for (const edge of here) found.add(edge);
    for (const edge of here) reached.add(edge.key);
  }
  return found;
}

export function circuitChoice(app) {
  const box = make("input", { type: "checkbox", checked: app.view.circuit, "data-key": "circuit", onchange: () => { app.view.circuit = box.checked; app.render(); } });
  return make("label", { class: "choice" }, box, " only edges that lead to the chosen answer");
}
