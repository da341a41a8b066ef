/** Mouse and keyboard on the page: what is under the pointer is highlighted and described; clicks and keys cut, pin and explain. */

import { enlarged } from "./heads.js";
import { isEdge, partOf } from "./names.js";

const HINT = "Click an edge, a head, a token, a0 (all heads of layer 0) or m0 (its MLP) to cut it; click again to restore it. Tab and the arrow keys move the focus, Enter cuts, P or Shift+click pins. W or Alt+click explains why an edge is open. Ctrl+Z undoes.";
export const RECORDED = "This page is a recording of one state and cannot run the model. To continue, export the state and import it in `sparselens explore`.";
const ARROWS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down" };

export function listen(app) {
  app.root.addEventListener("click", event => {
    const target = hit(app, event), name = target?.dataset.name;
    if (target?.dataset.position) app.select(Number(target.dataset.position));
    else if (target && event.shiftKey) app.pin(name);
    else if (target && event.altKey && isEdge(name)) app.why(name);
    else if (target) app.cut([name]);
  });
  app.root.addEventListener("pointermove", event => hover(app, hit(app, event)?.dataset.name ?? null));
  app.root.addEventListener("pointerleave", () => hover(app, null));
  app.root.addEventListener("focusin", event => hover(app, event.target.closest("[data-name]")?.dataset.name ?? null));
  app.root.addEventListener("keydown", event => press(app, event));
}

/** The element under the pointer, or an edge near it, since thin lines are hard to hit. */
function hit(app, event) {
  const direct = event.target.closest("[data-name], [data-position]");
  if (direct || !event.target.closest(".drawing svg") || event.detail === 0 && event.type === "click") return direct;
  const root = app.root.getRootNode();
  for (let radius = 2; radius <= 6; radius += 2)
    for (let turn = 0; turn < 8; turn++) {
      const near = root.elementFromPoint(event.clientX + radius * Math.cos((turn * Math.PI) / 4), event.clientY + radius * Math.sin((turn * Math.PI) / 4));
      if (near?.matches(".edge")) return near;
    }
  return null;
}

export function hover(app, name) {
  if (name === app.pointed && name !== null) return;
  app.pointed = name;
  for (const lit of app.root.querySelectorAll(".on")) lit.classList.remove("on");
  app.drawings.classList.toggle("lit", name !== null);
  app.about.textContent = name === null ? (app.send ? HINT : RECORDED) : app.describe(name);
  if (name === null) return;
  for (const edge of app.drawings.querySelectorAll(".edge")) if (belongs(edge.dataset.name, name)) edge.classList.add("on");
  for (const part of app.root.querySelectorAll("[data-name]")) if (part.dataset.name === name) part.classList.add("on");
  const head = /^a\d+\.h\d+/.exec(name)?.[0];
  if (head && head !== app.view.head) enlarge(app, head);
}

function enlarge(app, head) {
  app.view.head = head;
  for (const model of app.state.models) {
    const old = [...app.patterns.querySelectorAll(".large")].find(large => large.dataset.model === model.name);
    old?.replaceWith(enlarged(app, model));
  }
}

function press(app, event) {
  const part = event.target.closest("[data-name], [data-position]"), typing = event.target.matches("input, textarea");
  if (event.target === app.prompt && event.key === "Enter" && !event.shiftKey) { event.preventDefault(); app.ask({ do: "ask", prompt: app.prompt.value }); }
  else if (!typing && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); if (app.state.can[event.shiftKey ? "redo" : "undo"]) app.ask({ do: event.shiftKey ? "redo" : "undo" }); }
  else if (part && !(part instanceof HTMLElement) && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); part.dispatchEvent(new MouseEvent("click", { bubbles: true })); }
  else if (part?.dataset.name && !event.ctrlKey && event.key.toLowerCase() === "p") app.pin(part.dataset.name);
  else if (part?.dataset.name && !event.ctrlKey && event.key.toLowerCase() === "w" && isEdge(part.dataset.name)) app.why(part.dataset.name);
  else if (part?.matches(".edge") && event.key in ARROWS) { event.preventDefault(); walk(part, ARROWS[event.key]); }
}

/** Move the focus between edges: left and right to the next, up and down to the next layer. */
function walk(edge, way) {
  const place = name => { const { layer, head, query, key } = partOf(name); return [layer, head, query, key]; };
  const edges = [...edge.parentNode.children].sort((a, b) => compare(place(a.dataset.name), place(b.dataset.name)));
  const here = edges.indexOf(edge), layer = partOf(edge.dataset.name).layer;
  const next = way === "up" ? edges.find(other => partOf(other.dataset.name).layer > layer)
    : way === "down" ? edges.findLast(other => partOf(other.dataset.name).layer < layer) : edges[here + way];
  if (!next) return;
  edge.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

/** Is this edge the part, or one of its edges? */
function belongs(edge, name) {
  const part = partOf(name), { layer, head, key, query } = partOf(edge);
  if (part.pos !== undefined) return key === part.pos || query === part.pos;
  return part.mlp === undefined && layer === part.layer && [head, key, query].every((n, i) => [n, undefined].includes([part.head, part.key, part.query][i]));
}

function compare(a, b) {
  const i = a.findIndex((value, place) => value !== b[place]);
  return i < 0 ? 0 : a[i] - b[i];
}
