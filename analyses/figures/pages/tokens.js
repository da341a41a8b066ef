// The token x layer drawing: attention edges between positions, layer by layer, dense model above sparse.

import { byId, draw, make, offer, offerPng, pageData, thousands, withoutVariables } from "./dom.js";

const data = pageData();
const svg = byId("drawing");
const state = { column: -1, threshold: data.threshold, heads: new Set(), layers: new Set(), pinned: null };
const edges = [], tokens = [], edgeOf = new Map(), tokenOf = new Map();
const LEGIBLE = 1.3;  // pixels per point: a drawing that is taller than the screen scrolls instead of shrinking further
const HINT = "Point at an edge or a token, or move to one with the Tab key. Click: keep it selected. Escape: clear the selection.";

function write(parent, label) {
  const attributes = { x: label.x, y: label.y, "font-size": label.size, "text-anchor": label.anchor };
  if (label.bold) attributes.class = "bold";
  if (label.upright) attributes.transform = `rotate(-90 ${label.x} ${label.y})`;
  return parent.appendChild(draw("text", attributes, label.text));
}

function stroke(head) {
  return { stroke: `var(--head${head % data.colours.length})` };
}

function addPanel(panel) {
  const group = panel.group = svg.appendChild(draw("g", {}));
  const { band, nodes, node } = data;
  for (let line = 0; line <= data.layers; line++) for (const x of nodes)
    group.appendChild(draw("rect", { class: "node", x: x - node[0] / 2, y: -band * line - node[1] / 2, width: node[0], height: node[1], rx: node[1] / 2 }));
  const walkable = panel.edges.flat().length <= 400;  // at most 200 edges (two numbers each): few enough to visit with the Tab key
  panel.edges.forEach((flat, layer) => {
    const level = group.appendChild(draw("g", { transform: `translate(0 ${-band * layer})` }));
    for (let i = 0; i < flat.length; i += 2) addEdge(level, panel, layer, data.curves[flat[i]], flat[i + 1], walkable);
  });
  for (const [line, tip] of panel.arrows) { group.appendChild(draw("path", { class: "arrow", d: line })); group.appendChild(draw("path", { class: "tip", d: tip })); }
  panel.heading = write(group, panel.header);
  for (const label of panel.labels) addToken(group, panel, label);
}

function addEdge(level, panel, layer, [head, query, key, from, to], weight, walkable) {
  const y = data.heights, d = `M${from} ${y[0]}C${from} ${y[1]} ${to} ${y[2]} ${to} ${y[3]}`;
  const [width, opacity] = panel.strokes[Math.round(weight / 10)];
  const element = level.appendChild(draw("path", { class: "edge", d, "stroke-width": width, "stroke-opacity": opacity, ...stroke(head) }));
  const edge = { panel, layer, head, query, key, weight: weight / 1000, element };
  if (walkable) {
    element.setAttribute("tabindex", "0");
    element.setAttribute("aria-label", `${panel.name}: ${describe(edge)}, weight ${edge.weight.toFixed(3)}`);
  }
  edges.push(edge);
  edgeOf.set(element, edge);
}

function addToken(group, panel, label) {
  const half = data.pitch / 2, height = label.upright ? 0.62 * label.size * label.text.length : 9;
  const top = label.upright ? (label.anchor === "end" ? label.y : label.y - height) : label.y - height / 2;
  const token = group.appendChild(draw("g", { class: "token", tabindex: 0, role: "button", "aria-label": `${panel.name}, position ${label.position}: ${label.text}` }));
  token.appendChild(draw("rect", { class: "place", x: label.x - half, y: top, width: 2 * half, height }));
  write(token, label);
  const entry = { panel, position: label.position, element: token };
  tokens.push(entry);
  tokenOf.set(token, entry);
}

const name = (panel, position) => `${position} “${data.tokens[panel.column][position]}”`;
const describe = e => `layer ${e.layer}, head ${e.head}: query ${name(e.panel, e.query)} attends to key ${name(e.panel, e.key)}`;
const isShown = e => !e.element.classList.contains("off");
const isSame = (a, b) => a.panel.column === b.panel.column && a.layer === b.layer && a.head === b.head && a.query === b.query && a.key === b.key;

function aboutEdge(edge) {
  const same = edges.filter(e => isSame(e, edge));
  const weights = data.rows.map((row, i) => {
    const found = same.find(e => e.panel.row === i);
    return `${row}: ${found ? `weight ${found.weight.toFixed(3)}` : "no edge"}`;
  });
  return { edges: same, tokens: [edge.query, edge.key], text: `${describe(edge)}. ${weights.join(", ")}`, one: true };
}

function aboutToken(token) {
  const touching = edges.filter(e => e.panel.column === token.panel.column && isShown(e) && (e.query === token.position || e.key === token.position));
  const counts = data.rows.map((row, i) => {
    const here = touching.filter(e => e.panel.row === i);
    const few = here.length && here.length <= 4 ? ` (${here.map(e => `layer ${e.layer} head ${e.head}, ${e.query} attends to ${e.key}, weight ${e.weight.toFixed(3)}`).join("; ")})` : "";
    return `${row}: ${here.length} edge${here.length === 1 ? "" : "s"}${few}`;
  });
  return { edges: touching, tokens: [token.position], text: `position ${name(token.panel, token.position)}. ${counts.join(", ")}`, one: false };
}

function about(element) {
  if (edgeOf.has(element)) return aboutEdge(edgeOf.get(element));
  const token = element && element.closest && element.closest(".token");
  return token ? aboutToken(tokenOf.get(token)) : null;
}

function highlight(element) {
  for (const marked of svg.querySelectorAll(".on")) marked.classList.remove("on", "one");
  const found = about(element);
  svg.classList.toggle("lit", !!found);
  byId("says").textContent = found ? found.text : HINT;
  if (!found) return;
  const { column } = (edgeOf.get(element) || tokenOf.get(element.closest(".token"))).panel;
  for (const edge of found.edges) { edge.element.classList.add("on"); edge.element.classList.toggle("one", found.one); }
  for (const token of tokens) if (token.panel.column === column && found.tokens.includes(token.position)) token.element.classList.add("on");
}

function nearest(x, y) {  // thin lines are hard to hit, so look around the pointer too
  for (let radius = 0; radius <= 6; radius += 2)
    for (let turn = 0; turn < (radius ? 8 : 1); turn++) {
      const element = document.elementFromPoint(x + radius * Math.cos(turn * Math.PI / 4), y + radius * Math.sin(turn * Math.PI / 4));
      if (edgeOf.has(element) || (element && element.closest(".token"))) return element;
    }
  return null;
}

function refresh() {
  const drawn = new Map(data.panels.map(panel => [panel, 0]));
  for (const edge of edges) {
    const shown = state.heads.has(edge.head) && state.layers.has(edge.layer) && (edge.panel.row > 0 || edge.weight >= state.threshold);
    edge.element.classList.toggle("off", !shown);
    if (shown) drawn.set(edge.panel, drawn.get(edge.panel) + 1);
  }
  for (const [panel, count] of drawn) panel.heading.textContent = heading(panel, count);
  byId("shown").textContent = state.threshold.toFixed(3);
  showColumn();
  highlight(state.pinned);
}

function heading(panel, drawn) {
  const all = thousands(panel.total);
  return drawn === panel.total ? `${panel.name}: ${all} edge${panel.total === 1 ? "" : "s"}` : `${panel.name}: ${thousands(drawn)} of ${all} edges drawn`;
}

function showColumn() {  // all prompts: models one above the other; one prompt: models side by side, larger
  const alone = state.column >= 0, step = data.columnWidth + data.gutter;
  for (const panel of data.panels) {
    panel.group.classList.toggle("off", alone && panel.column !== state.column);
    panel.group.setAttribute("transform", alone ? `translate(${data.left + panel.row * step} ${data.panels[0].y})` : `translate(${panel.x} ${panel.y})`);
  }
  [...byId("titles").children].forEach((title, column) => {
    title.classList.toggle("off", alone && column !== state.column);
    title.setAttribute("x", alone ? data.left : data.titles[column].x);
  });
  [...byId("rulers").children].forEach((ruler, i) => ruler.classList.toggle("off", alone && i >= data.layers));
  byId("legend").classList.toggle("off", alone);
  const [width, height] = alone ? [data.left + data.rows.length * step, data.rowEnd] : [data.width, data.height];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.minHeight = `max(28rem, min(${(height / width).toFixed(4)} * (100vw - 2.5rem), ${Math.ceil(LEGIBLE * height)}px))`;
}

function toggles(id, count, chosen, label, colour) {
  for (let i = 0; i < count; i++) {
    const key = colour && make("span", { class: "key", style: `--colour: var(--head${i % data.colours.length})` });
    const button = make("button", { type: "button", "aria-label": `${label} ${i}`, "aria-pressed": true, onclick: () => {
      if (!chosen.delete(i)) chosen.add(i);
      button.setAttribute("aria-pressed", String(chosen.has(i)));
      refresh();
    } }, key, String(i));
    byId(id).append(button);
    chosen.add(i);
  }
}

function picture() {  // the drawing as on the screen, as a stand-alone SVG: no CSS variables, nothing hidden
  const copy = svg.cloneNode(true), box = svg.viewBox.baseVal;
  for (const hidden of copy.querySelectorAll(".off, .place")) hidden.remove();
  for (const element of copy.querySelectorAll("[tabindex]")) element.removeAttribute("tabindex");
  copy.setAttribute("width", `${box.width}pt`);
  copy.setAttribute("height", `${box.height}pt`);
  return { text: withoutVariables(new XMLSerializer().serializeToString(copy)), width: box.width, height: box.height };
}

function colourSheet() {
  const rules = theme => data.colours.map((pair, i) => `--head${i}: ${pair[theme]};`).join(" ");
  const sheet = document.head.appendChild(document.createElement("style"));
  sheet.textContent = `:root { ${rules(0)} } @media screen and (prefers-color-scheme: dark) { :root { ${rules(1)} } }`;
}

function controls() {
  byId("prompt").append(...["all", ...data.titles.map((label, i) => label.text || `prompt ${i}`)].map((title, i) => new Option(title, String(i - 1))));
  if (data.titles.length === 1) byId("prompt").parentElement.hidden = true;
  byId("prompt").oninput = event => { state.column = +event.target.value; state.pinned = null; refresh(); };
  byId("row0").textContent = data.rows[0];
  byId("threshold").value = 100 * Math.sqrt(data.threshold);
  byId("threshold").oninput = event => { state.threshold = Math.max(data.threshold, (event.target.value / 100) ** 2); refresh(); };
  toggles("heads", data.heads, state.heads, "head", true);
  toggles("layers", data.layers, state.layers, "layer", false);
  byId("svg").onclick = () => offer(new Blob([picture().text], { type: "image/svg+xml" }), "attention_edges.svg");
  byId("png").onclick = () => {
    const { text, width, height } = picture();
    offerPng(text, width, height, "attention_edges.png");
  };
}

function listen() {
  let waiting = false;
  svg.addEventListener("pointermove", event => {
    if (waiting || state.pinned) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; highlight(nearest(event.clientX, event.clientY)); });
  });
  svg.addEventListener("pointerleave", () => highlight(state.pinned));
  svg.addEventListener("focusin", event => { state.pinned = null; highlight(event.target); });
  svg.addEventListener("focusout", () => highlight(state.pinned));
  svg.addEventListener("click", event => { const hit = nearest(event.clientX, event.clientY); state.pinned = hit === state.pinned ? null : hit; highlight(hit); });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") { state.pinned = null; /** @type {HTMLElement} */ (document.activeElement).blur(); highlight(null); }
    if ((event.key === "Enter" || event.key === " ") && svg.contains(event.target)) { state.pinned = event.target; event.preventDefault(); }
  });
}

colourSheet();
svg.setAttribute("aria-label", document.title);
const [titles, rulers, legend] = ["titles", "rulers", "legend"].map(id => svg.appendChild(draw("g", { id })));
for (const label of data.titles) write(titles, label);
for (const label of data.rulers) write(rulers, label);
for (const label of data.legend) {
  if ("head" in label) legend.appendChild(draw("path", { d: `M${label.x - 13} ${label.y}h10`, "stroke-width": 1.6, ...stroke(label.head) }));
  write(legend, label);
}
data.panels.forEach(addPanel);
controls();
listen();
refresh();
