/** Why an edge is open: a sentence, and a table of what each pair adds to its score: writers of the query in rows, of the key in columns. */

import { make } from "../pages/dom.js";
import { partOf } from "./names.js";

export function whyOf(app) {
  if (!app.view.why) return [];
  const close = make("button", { type: "button", "aria-label": "close", "data-key": "close why", onclick: () => app.explain(null) }, "×");
  return [make("h2", {}, "Why? ", close), ...app.view.why.map(found => make("figure", {},
    make("p", {}, app.view.why.length > 1 && make("b", {}, `${found.model}: `), found.sentence),
    make("div", { class: "scroll" }, pairsOf(found))))];
}

function pairsOf({ model, rows, columns, values }) {
  const most = Math.max(...values.flat().map(Math.abs)) || 1;
  const head = (name, scope) => make("th", { scope }, partOf(name) ? make("button", { type: "button", "data-name": name, "data-key": `why ${model} ${scope} ${name}` }, name) : name);
  return make("table", { class: "pairs" },
    make("caption", {}, "contributions to the score; rows: what wrote the query, columns: what wrote the key"),
    make("thead", {}, make("tr", {}, make("td"), columns.map(name => head(name, "col")))),
    make("tbody", {}, rows.map((name, i) => make("tr", {}, head(name, "row"), values[i].map(value => cellOf(value, most))))));
}

function cellOf(value, most) {
  const text = Math.abs(value) < 0.005 ? "" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
  const cell = make("td", {}, text);
  cell.style.background = `color-mix(in srgb, var(--${value < 0 ? "negative" : "positive"}) ${Math.round((55 * Math.abs(value)) / most)}%, transparent)`;
  return cell;
}
