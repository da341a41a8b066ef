// Tabs and controls; the first drawing. Times are in milliseconds.

import { byId, draw, make, offer, offerPng } from "./dom.js";
import { alongPaths, applyState, data, difference, keepState, largest, models, signed, state, stateText } from "./state.js";
import { aboutDifference, aboutModel, addPanel, inks, panels, point, targetNamed, update } from "./graph.js";
import { describe, described } from "./card.js";
import { addGrids, updatePatterns } from "./patterns.js";
import { addPlot } from "./plots.js";
import { DRAWINGS, TABLES, asText } from "./files.js";

const TABS = { circuit: "Circuit", difference: "Difference", tokens: "Tokens", patterns: "Patterns", curves: "Curves" };
const present = Object.keys(TABS).filter(tab => !{ difference: models.length < 2, tokens: !data.tokens, patterns: !data.patterns, curves: !data.plots.length }[tab]);
/** @type {Record<string, number>} */
const times = {};
Object.assign(window, { sparselensTimes: times });
const began = performance.now();

function addTabs() {
  for (const tab of present) {
    const button = make(byId("tabs"), "button", { type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": tab }, TABS[tab]);
    button.onclick = () => { state.tab = tab; refresh(); };
    button.onkeydown = event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      state.tab = present[(present.indexOf(tab) + step + present.length) % present.length];
      refresh();
      byId(`tab-${state.tab}`).focus();
    };
  }
}

/** @type {(selector: string) => NodeListOf<HTMLElement>} */
const all = selector => document.querySelectorAll(selector);

function showTab() {
  if (!present.includes(state.tab)) state.tab = "circuit";
  for (const tab of present) {
    const button = byId(`tab-${tab}`), now = tab === state.tab;
    button.setAttribute("aria-selected", String(now));
    button.setAttribute("tabindex", now ? "0" : "-1");
  }
  for (const tab of Object.keys(TABS)) byId(tab).hidden = tab !== state.tab;
  const graph = state.tab === "circuit" || state.tab === "difference";
  for (const element of all(".for-graph")) element.hidden = !graph;
  for (const element of all(".for-patterns")) element.hidden = state.tab !== "patterns";
  byId("svg").hidden = byId("png").hidden = !DRAWINGS[state.tab];
  byId("json").hidden = !TABLES[state.tab];
  byId("controls").hidden = state.tab === "tokens" || state.tab === "curves";
  if (state.tab === "tokens" && !byId("tokens").firstChild) make(byId("tokens"), "iframe", { title: "attention edges over tokens", sandbox: "allow-scripts allow-downloads", srcdoc: data.tokens });
}

// -- the threshold: the number says what holds, the slider moves it

const most = Math.max(1, ...models.map(model => model.list.length));
const scoresHeld = models.flatMap(model => model.list.map(edge => Math.abs(edge.score))).filter(size => size > 0);
const least = scoresHeld.reduce((low, size) => Math.min(low, size), largest);
const SLIDERS = {
  share: { text: () => +(100 * state.share).toPrecision(12), read: value => value / 100, at: () => 1000 * state.share, from: place => place / 1000 },
  score: { text: () => +state.score.toPrecision(4), read: value => value, at: () => along(state.score || least, least, largest), from: place => +between(place, least, largest).toPrecision(4) },
  top: { text: () => state.top, read: Math.round, at: () => along(state.top, 1, most), from: place => Math.round(between(place, 1, most)) },
};

function along(value, low, high) {
  return high > low ? 1000 * Math.log(Math.max(low, value) / low) / Math.log(high / low) : 1000;
}

function between(place, low, high) {
  return low * (high / low) ** (place / 1000);
}

function showControls() {
  const slider = SLIDERS[state.mode];
  for (const id of ["mode", "sign"]) byId(id).value = state[id];
  byId("slider").value = slider.at();
  if (document.activeElement !== byId("number")) byId("number").value = slider.text();
  byId("hide").checked = state.hide;
  byId("chosen").textContent = `paths through ${state.chosen} ×`;
  byId("chosen").hidden = !state.chosen || byId("slider").hidden;
  if (data.patterns) byId("prompt").value = state.prompt;
}

export function refresh() {
  const start = performance.now();
  showTab();
  showControls();
  for (const panel of panels) if (panel.view === state.tab) update(panel);
  if (!byId("card").contains(document.activeElement)) describe(described);
  if (state.tab === "patterns") updatePatterns();
  keepState();
  times.redraw = performance.now() - start;
}

function listen() {
  const set = (id, event, act) => byId(id).addEventListener(event, () => { act(byId(id)); refresh(); });
  set("mode", "input", ({ value }) => { if (value === "score" && !state.score) state.score = +(largest / 10).toPrecision(2); state.mode = value; });
  set("sign", "input", ({ value }) => { state.sign = value; });
  set("hide", "input", ({ checked }) => { state.hide = checked; });
  set("prompt", "input", ({ value }) => { state.prompt = +value; });
  set("chosen", "click", () => { state.chosen = ""; });
  byId("slider").addEventListener("input", inTurn(() => { state[state.mode] = SLIDERS[state.mode].from(+byId("slider").value); }));
  set("number", "input", ({ value }) => { if (value !== "" && +value >= 0) state[state.mode] = Math.min(state.mode === "share" ? 1 : Infinity, SLIDERS[state.mode].read(+value)); });
  set("address", "change", ({ value }) => applyState(value));
  byId("copy").onclick = copyState;
  byId("svg").onclick = () => offer(new Blob([asText(DRAWINGS[state.tab]())], { type: "image/svg+xml" }), `${state.tab}.svg`);
  byId("png").onclick = () => {
    const svg = DRAWINGS[state.tab](), { width, height } = svg.viewBox.baseVal;
    offerPng(asText(svg), width, height, `${state.tab}.png`);
  };
  byId("json").onclick = () => offer(new Blob([JSON.stringify(TABLES[state.tab](), null, 1)], { type: "application/json" }), `${state.tab}.json`);
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    state.chosen = state.head = "";
    const focused = /** @type {HTMLElement} */ (document.activeElement);
    if (focused.closest(".stage")) focused.blur();
    refresh();
    point(null);
  });
  window.addEventListener("hashchange", () => { applyState(location.hash); refresh(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
}

function inTurn(act) {  // at most once a frame
  let waiting = false;
  return () => {
    act();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; refresh(); });
  };
}

function copyState() {  // a frame may not write the clipboard, but may copy what is marked
  byId("address").value = stateText();
  byId("address").select();
  byId("copy").textContent = document.execCommand("copy") ? "copied" : "state:";
  setTimeout(() => { byId("copy").textContent = "copy state"; }, 1500);
  byId("copy").focus();
}

function addLegends() {
  for (const view of Object.keys(data.legends)) {
    const legend = document.querySelector(`#${view} .legend`), styles = inks(view);
    data.legends[view].labels.forEach(([, , text], i) => {
      const entry = make(legend, "span");
      if (styles[i]) draw(draw(entry, "svg", { viewBox: "0 0 24 9" }), "path", { d: "M0 4.5h24", stroke: styles[i].variable, "stroke-width": 2.4, "stroke-dasharray": styles[i].dash.map(length => 1.8 * length).join(" ") });
      entry.append(text);
    });
  }
}

addTabs();
models.forEach(model => {
  addPanel("circuit", () => alongPaths(signed(model)), edges => aboutModel(model, edges));
  panels.at(-1).name = model.name;
});
if (models.length > 1) {
  addPanel("difference", difference, aboutDifference);
  panels.at(-1).name = "edges of both";
}
addLegends();
if (data.patterns) {
  byId("prompt").append(...data.patterns.titles.map((title, i) => new Option(title, i)));
  addGrids();
}
data.plots.forEach(addPlot);
listen();
applyState(location.hash);
refresh();
describe(targetNamed(state.chosen));
times.draw = performance.now() - began;
