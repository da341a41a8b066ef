// The attention patterns of all heads of every model, next to an enlarged one: the head under the pointer, or the selected one.

import { byId, make, thousands } from "./dom.js";
import { bytes, data, models, state } from "./state.js";
import { gridOf, largeOf } from "./patterns.js";
import { refresh } from "./viewer.js";

const unpacked = new Map(), FAINTEST = 0.3;
let pointed = "a0.h0";

export function headNumber(name) {
  const [, layer, head] = name.match(/^a(\d+)\.h(\d+)$/) || [];
  const at = layer === undefined ? -1 : layer * data.patterns.heads + +head;
  return at < data.patterns.layers * data.patterns.heads && +head < data.patterns.heads ? at : -1;
}

/** The edges of every head of a model on the current prompt. */
function attentionOf(model) {
  const key = `${model} ${state.prompt}`;
  if (!unpacked.has(key)) unpacked.set(key, unpack(data.patterns.models[model][state.prompt]));
  return unpacked.get(key);
}

function unpack({ gaps, weights }) {
  const { layers, heads, pos } = data.patterns, area = pos * pos, found = Array.from({ length: layers * heads }, () => []);
  const weight = bytes(weights);
  let cell = -1, i = 0;
  for (const gap of bytes(gaps)) {
    cell += gap;
    if (gap === 255) continue;
    const place = cell % area;
    found[(cell - place) / area].push({ query: Math.floor(place / pos), key: place % pos, weight: weight[i++] / 255 });
  }
  return found;
}

/** What `patterns.js` draws of a model. An open gate stays visible, however small its weight. */
export function patternsOf(model) {
  const { layers, heads, lossy, tokens } = data.patterns;
  return { name: models[model].name, layers, heads, tokens: tokens[state.prompt], faintest: lossy[model] ? 0 : FAINTEST, cells: (layer, head) => attentionOf(model)[layer * heads + head] };
}

const shownHead = () => (headNumber(state.head) >= 0 ? state.head : pointed);

export function updatePatterns() {
  const focused = /** @type {HTMLElement} */ (document.activeElement), grid = [...document.querySelectorAll("#patterns .grid")].indexOf(focused.parentElement);
  document.querySelector("#patterns .grids").replaceChildren(...models.map((model, i) => {
    const edges = attentionOf(i).reduce((sum, cells) => sum + cells.length, 0);
    return make("figure", {}, make("figcaption", {}, `${model.name}: ${thousands(edges)} attention edges${data.patterns.lossy[i] ? " with weight 1/510 or more" : ""}`), gridOf(patternsOf(i), buttonOf));
  }));
  if (grid >= 0) /** @type {HTMLElement} */ (document.querySelectorAll("#patterns .grid")[grid].querySelector(`[data-place="${focused.dataset.place}"]`)).focus();
  enlarge();
}

function buttonOf(layer, head) {
  const name = `a${layer}.h${head}`, show = () => { if (headNumber(state.head) < 0 && name !== pointed) { pointed = name; enlarge(); } };
  return { "aria-label": name, "aria-pressed": state.head === name, class: state.head === name ? "pinned" : null, "data-head": name, onpointerenter: show, onfocus: show, onclick: () => { pointed = name; state.head = state.head === name ? "" : name; refresh(); } };
}

/** Show the head next to the grids, for every model. A click on a head keeps it there. */
function enlarge() {
  const name = shownHead(), place = headNumber(name), { heads, tokens } = data.patterns, words = tokens[state.prompt];
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("#patterns .grid button"))) button.classList.toggle("on", button.dataset.head === name);
  byId("weight").textContent = state.head ? `${name} is selected; click it again to deselect it. Point at a square to see its weight.` : "Point at a head to enlarge it; click to keep it. Point at a square to see its weight.";
  document.querySelector("#patterns .large").replaceChildren(...models.map((model, i) => {
    const cells = attentionOf(i)[place], label = Object.hasOwn(model.labels, name) ? `, ${model.labels[name]}` : "";
    const drawing = largeOf(patternsOf(i), Math.floor(place / heads), place % heads);
    return make("figure", {}, make("figcaption", {}, make("b", {}, `${model.name} ${name}`), `: ${cells.length} edges${label}`), drawing);
  }));
  models.forEach((model, i) => showWeights(document.querySelectorAll("#patterns .large svg")[i], model, attentionOf(i)[place], words));
}

function showWeights(drawing, model, cells, words) {
  for (const cell of cells) cell.rect.addEventListener("pointerenter", () => {
    byId("weight").textContent = `${model.name}: “${words[cell.query]}” (${cell.query}) attends to “${words[cell.key]}” (${cell.key}) with weight ${cell.weight.toFixed(3)}`;
    for (const word of drawing.querySelectorAll(".word")) word.classList.toggle("on", [cell.query, cell.key].includes(+word.dataset.token));
  });
}
