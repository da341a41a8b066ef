/** The attention patterns of all heads, and an enlarged one, whose squares are edges that can be cut. */

import { draw, grouped, make } from "../pages/dom.js";
import { gridOf, largeOf } from "../pages/patterns.js";
import { CLOSED, CUT, MARKS, buttonOf } from "./drawing.js";
import { count, partOf } from "./names.js";

export function headsOf(app, model) {
  return make("figure", { class: "patterns" },
    make("figcaption", {}, make("b", { class: `ink ${model.gated ? "sparse" : "dense"}` }, model.name), app.send ? " heads: click one to cut it" : " heads"),
    make("div", { class: "pair" }, gridOf(patternsOf(app, model), (layer, head) => buttonOf(app, model, `a${layer}.h${head}`)), enlarged(app, model)));
}

/** What `patterns.js` draws of a model, after the cuts; edges that are cut or closed have a negative weight. */
function patternsOf(app, model) {
  const heads = grouped(model.list, edge => `${edge.layer} ${edge.head}`);
  const cell = ({ query, key, after, name, fate }) => ({ query, key, weight: after / 1000, name, fate });
  return {
    name: model.name, layers: model.layer, heads: model.head, tokens: app.state.tokens, faintest: model.gated ? 0.3 : 0,
    cells: (layer, head) => (heads.get(`${layer} ${head}`) || []).map(cell),
  };
}

export function enlarged(app, model) {
  const { layer, head } = partOf(app.view.head), of = patternsOf(app, model);
  return make("div", { class: "large", "data-model": model.name },
    make("p", {}, make("b", {}, app.view.head), ` ${count(of.cells(layer, head).filter(cell => cell.weight >= 0).length, "edge")}`),
    make("div", { class: "scroll" }, largeOf(of, layer, head, cell => squareOf(app, cell))));
}

/** @type {(app: any, cell: import("../pages/patterns.js").Cell) => any} */
function squareOf(app, { name, fate, rect, x, y }) {
  if (fate === CUT || fate === CLOSED) rect.setAttribute("fill-opacity", 0);
  return draw("g", { class: `square fate${fate}`, "data-name": name }, rect,
    MARKS[fate] && draw("text", { class: `mark fate${fate}`, x, y }, MARKS[fate]),
    draw("title", {}, app.describe(name)));
}
