/** The list of parts that are cut or pinned, with their labels and groups, and a field to enter any part by name. */

import { grouped, make } from "../pages/dom.js";
import { isEdge } from "./names.js";

export function partsOf(app) {
  const names = [...new Set([...app.state.cuts, ...Object.keys(app.state.notes)])];
  const groups = grouped(names, name => app.state.notes[name]?.group || "");
  const sorted = [...groups].sort(([a], [b]) => a.localeCompare(b));
  return [
    make("h2", {}, "Cut and pinned parts"),
    names.length ? null : make("p", { class: "quiet" }, app.send ? "None yet. Click a part to cut it, click again to restore it; Shift+click or P pins it." : "None."),
    ...sorted.map(([group, members]) => groupOf(app, group, members)),
    fieldOf(app),
  ];
}

function groupOf(app, group, members) {
  const whole = members.every(name => app.isCut(name));
  return make("div", { class: "group" },
    group && make("h3", {}, group, make("button", { type: "button", class: "controls", "data-key": `group ${group}`, onclick: () => app.cut(members) }, whole ? "restore all" : "cut all")),
    make("ul", {}, members.map(name => entryOf(app, name))));
}

function entryOf(app, name) {
  const note = app.noteOf(name);
  const field = (what, hint) => make("input", {
    value: note[what], placeholder: hint, "aria-label": `${hint} of ${name}`, maxlength: 200, "data-key": `${what} ${name}`, readonly: !app.send,
    onchange: event => app.note(name, { ...note, [what]: event.target.value.trim() }),
  });
  return make("li", {},
    make("button", { type: "button", class: "cut", "aria-pressed": app.isCut(name), title: app.describe(name), "data-name": name, "data-key": `part ${name}` }, name),
    field("label", "label"), field("group", "group"),
    make("button", { type: "button", class: "pin controls", "aria-pressed": note.pinned, "aria-label": `pin ${name}`, "data-key": `pin ${name}`, onclick: () => app.pin(name) }, note.pinned ? "unpin" : "pin"),
    isEdge(name) && make("button", { type: "button", class: "controls", "aria-label": `why is ${name} open?`, "data-key": `why ${name}`, onclick: () => app.why(name) }, "why?"));
}

function fieldOf(app) {
  const field = make("input", { placeholder: "a0.h1:3->7, a0.h1, a0, m0, p3", "aria-label": "name of a part", spellcheck: "false", "data-key": "part by name" });
  const given = () => field.value.trim();
  return make("form", { class: "controls", onsubmit: event => { event.preventDefault(); if (given()) app.cut([given()]); } },
    field, make("button", {}, "Cut"), make("button", { type: "button", onclick: () => given() && app.pin(given()) }, "Pin"), make("button", { type: "button", onclick: () => given() && app.why(given()) }, "Why?"));
}
