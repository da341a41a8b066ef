/** Why an edge is open: the sentence, and what each pair adds, who wrote the query downward and the key to the right. */

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
    make("caption", {}, "rows wrote the query, columns the key"),
    make("thead", {}, make("tr", {}, make("td"), columns.map(name => head(name, "col")))),
    make("tbody", {}, rows.map((name, i) => make("tr", {}, head(name, "row"), values[i].map(value => cellOf(value, most))))));
}

function cellOf(value, most) {
  const text = Math.abs(value) < 0.005 ? "" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
  const cell = make("td", {}, text);
  cell.style.background = `color-mix(in srgb, var(--${value < 0 ? "negative" : "positive"}) ${Math.round((55 * Math.abs(value)) / most)}%, transparent)`;
  return cell;
}
