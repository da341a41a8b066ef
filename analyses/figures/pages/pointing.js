// Mouse and keyboard on the panels: highlight, select and pin nodes and edges, pan and zoom.

import { draw } from "./dom.js";
import { data, edgeName, edgeNamed, nodeOf, nodes, pins, setPins, state } from "./state.js";
import { inView, inks, moveTo, panels, stroke, zoomTo } from "./graph.js";
import { distanceTo, pathOf } from "./paths.js";
import { describe } from "./card.js";
import { refresh } from "./viewer.js";

const LIT = 400;  // at most this many edges of a node are highlighted
let shown = null;  // what the pointer or the focus is on: { node } or { edge }

function hit(panel, x, y) {
  const node = nodes.find(({ x: left, y: top, width, height, index }) => Math.abs(x - left) <= width / 2 + 0.5 && Math.abs(y - top) <= height / 2 + 0.5 && panel.boxes[index].style.display !== "none");
  if (node) return { node };
  let best = null, least = (3 / state.zoom) ** 2;  // points, squared
  for (const edge of panel.edges) {
    const distance = distanceTo(edge, x, y, 3);
    if (distance < least) { least = distance; best = edge; }
  }
  return best && { edge: best };
}

export function nameOf(target) {
  return target ? (target.node ? target.node.name : edgeName(target.edge)) : "";
}

export function point(target, describes = true) {  // highlights the target in every panel
  shown = target;
  for (const panel of panels) light(panel, target);
  if (describes) describe(target || targetNamed(state.chosen));
}

export function targetNamed(name) {
  return nodeOf.has(name) ? { node: nodeOf.get(name) } : name && edgeNamed(name) ? { edge: edgeNamed(name) } : null;
}

export function touches(edge, target) {
  return target.node ? edge.source === target.node.index || edge.owner === target.node.index : edge.code === target.edge.code;
}

function light(panel, target) {
  const styles = inks(panel.view), lit = target ? panel.edges.filter(edge => touches(edge, target)) : [];
  const near = new Set(lit.flatMap(edge => [edge.source, edge.owner]));
  panel.stage.classList.toggle("lit", !!target);
  panel.light.replaceChildren(...lit.slice(0, LIT).reverse().map(edge => {
    const { variable, dash } = styles[edge.style], width = Math.max(0.7, stroke(edge.size, 1)[0]);
    return draw("path", { class: "edge", d: pathOf(edge), stroke: variable, "stroke-width": target.node ? width : width + 0.8, "stroke-dasharray": dash.join(" ") });
  }));
  panel.boxes.forEach((box, i) => { box.classList.toggle("on", near.has(i)); box.classList.toggle("now", !!target && target.node === nodes[i]); });
}

export function choose(target) {
  const name = nameOf(target);
  state.chosen = name === state.chosen ? "" : name;
  refresh();
  point(shown);
}

export function pin(target) {
  const kept = pins(), name = nameOf(target);
  if (name in kept) delete kept[name]; else kept[name] = { note: "", group: "" };
  setPins(kept);
  refresh();
}

export function listenTo(panel) {
  const { svg } = panel;
  const place = event => {
    const box = svg.getBoundingClientRect(), [left, top, width] = inView(), scale = width / box.width;
    return [left + (event.clientX - box.left) * scale, top + (event.clientY - box.top) * scale, scale];
  };
  const under = event => { const [x, y] = place(event); return hit(panel, x, y); };
  let held = null, moved = false;  // where the mouse went down, and whether it has moved since: a drag selects nothing
  svg.addEventListener("pointerdown", event => { held = [event.clientX, event.clientY, inView()]; moved = false; });
  svg.addEventListener("pointermove", event => {
    if (held && event.buttons) {
      const [, , scale] = place(event), [x, y, [left, top]] = held, [alongX, alongY] = [event.clientX - x, event.clientY - y];
      moved ||= Math.hypot(alongX, alongY) > 4;
      if (moved && state.zoom > 1) { moveTo(left - alongX * scale, top - alongY * scale); refresh(); }
      return;
    }
    const target = under(event);
    svg.style.cursor = target ? "pointer" : state.zoom > 1 ? "grab" : "";
    if (nameOf(target) !== nameOf(shown)) point(target);
  });
  svg.addEventListener("wheel", event => {  // only with Ctrl, which a pinch sets too, so that the page can still be scrolled
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const [x, y] = place(event);
    zoomTo(state.zoom * Math.exp(-event.deltaY / 300), x, y);
    refresh();
  }, { passive: false });
  svg.addEventListener("pointerleave", () => { held = null; point(null, false); });
  svg.addEventListener("focusout", () => point(null, false));
  svg.addEventListener("click", event => {
    const target = moved ? null : under(event);
    held = null;
    if (target && event.shiftKey) pin(target); else if (target) choose(target);
  });
  svg.addEventListener("focusin", event => { const i = panel.boxes.indexOf(event.target); if (i >= 0) { stopAt(i); point({ node: nodes[i] }); } });
  svg.addEventListener("keydown", event => walk(panel, event));
}

function stopAt(index) {  // Tab reaches one node of each panel, the arrow keys the others
  for (const { boxes } of panels) boxes.forEach((box, i) => box.setAttribute("tabindex", i === index ? "0" : "-1"));
}

/** Focus a node and bring it into view. */
export function goTo(node) {
  const panel = panels.find(one => one.view === state.tab) ?? panels[0];
  if (state.zoom > 1) { const [, , width, height] = inView(); moveTo(node.x - width / 2, node.y - height / 2); refresh(); }
  panel.boxes[node.index].style.display = "";
  panel.boxes[node.index].focus();
}

function walk(panel, event) {
  const from = nodes[panel.boxes.indexOf(event.target)];
  if (!from || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose({ node: from }); return; }
  if (event.key.toLowerCase() === "p") { pin({ node: from }); return; }
  const zoom = { "+": state.zoom * 1.5, "-": state.zoom / 1.5, "0": 1 }[event.key];
  if (zoom) { zoomTo(zoom, from.x, from.y); refresh(); return; }
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  const cost = node => {
    const x = node.x - from.x, y = node.y - from.y, along = x * step[0] + y * step[1], aside = Math.abs(step[0] ? y : x);
    return along < 1 || (step[0] && aside > 0.6 * data.band) || panel.boxes[node.index].style.display === "none" ? Infinity : along + 2 * aside / (step[0] ? 1 : 8);
  };
  const next = nodes.reduce((best, node) => (cost(node) < cost(best) ? node : best), from);
  if (next !== from) goTo(next);
}
