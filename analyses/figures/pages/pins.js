// The list of pinned nodes and edges, each with a note and a group; they are part of the page's state, and so of its address.

import { byId, grouped, make } from "./dom.js";
import { pins, setPins } from "./state.js";
import { describe } from "./card.js";
import { choose, point, targetNamed } from "./pointing.js";
import { refresh } from "./viewer.js";

let listed = "";  // the names now in the list

export function listPins() {
  const names = Object.keys(pins()), typing = byId("pins").contains(document.activeElement);
  if (typing && listed === names.join()) return;
  listed = names.join();
  const key = typing ? /** @type {HTMLElement} */ (document.activeElement).dataset.key : "";
  const groups = [...grouped(names, name => pins()[name].group)].sort(([a], [b]) => a.localeCompare(b));
  byId("pins").replaceChildren(...(names.length ? [make("h2", {}, "Pinned"), ...groups.map(groupOf)] : []));
  byId("pins").hidden = !names.length;
  if (key) byId("pins").querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

function sortAgain() {  // after the focus has moved to the next field
  setTimeout(() => { listed = ""; listPins(); });
}

function groupOf([group, names]) {
  return make("div", {}, group && make("h3", {}, group), make("ul", {}, names.map(entryOf)));
}

function entryOf(name) {
  const target = targetNamed(name), { note, group } = pins()[name];
  const field = (what, value) => make("input", { type: "text", value, placeholder: what, "data-key": `${what} of ${name}`, maxlength: 200, "aria-label": `${what} of ${name}`, oninput: event => change(name, { [what]: event.target.value }), onchange: sortAgain });
  return make("li", {},
    make("button", { type: "button", title: "show only paths through it", onclick: () => { choose(target); describe(target); }, onpointerenter: () => point(target, false), onpointerleave: () => point(null, false) }, name),
    field("note", note), field("group", group),
    make("button", { type: "button", "aria-label": `unpin ${name}`, onclick: () => { change(name, null); byId("find").focus(); } }, "×"));
}

function change(name, said) {
  const kept = pins();
  if (said) Object.assign(kept[name], said); else delete kept[name];
  setPins(kept);
  refresh();
}

