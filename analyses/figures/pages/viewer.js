// Tabs and controls of the circuit viewer; starts the page.

import { byId, draw, make, offer, offerPng } from "./dom.js";
import { alongPaths, applyState, data, difference, keepState, largest, models, modes, signed, state, stateText } from "./state.js";
import { differenceCaption, modelCaption } from "./captions.js";
import { addPanel, found, paint, panels, update, zoomTo } from "./graph.js";
import { goTo, point, targetNamed } from "./pointing.js";
import { describe, described } from "./card.js";
import { listPins } from "./pins.js";
import { updatePatterns } from "./grids.js";
import { addPlot } from "./plots.js";
import { DRAWINGS, TABLES, asText } from "./files.js";

const CUTS = { pruned: "pruned circuit", faithful: "faithful circuit", share: "% of total |score|", score: "|score| at least", top: "largest edges" };
const TABS = { circuit: "Circuit", difference: "Difference", tokens: "Tokens", patterns: "Patterns", curves: "Curves" };
const present = Object.keys(TABS).filter(tab => !{ difference: models.length < 2, tokens: !data.tokens, patterns: !data.patterns, curves: !data.plots.length }[tab]);

function addTabs() {
  for (const tab of present) {
    const button = byId("tabs").appendChild(make("button", { type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": tab }, TABS[tab]));
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
  const graph = isGraph();
  for (const element of all(".for-graph")) element.hidden = !graph;
  byId("prompts").hidden = !data.patterns || !(graph || state.tab === "patterns");
  byId("svg").hidden = byId("png").hidden = !DRAWINGS[state.tab];
  byId("json").hidden = !TABLES[state.tab];
  byId("controls").hidden = state.tab === "tokens" || state.tab === "curves";
  if (state.tab === "curves" && !document.querySelector(".plots figure")) data.plots.forEach(addPlot);
  if (state.tab === "tokens" && !byId("tokens").firstChild) byId("tokens").appendChild(make("iframe", { title: "attention edges over tokens", sandbox: "allow-scripts allow-downloads", srcdoc: data.tokens }));
}

// -- the threshold: the number field has its exact value, the slider changes it

const most = Math.max(1, ...models.map(model => model.list.length));
const weakest = models.map(model => model.list.at(-1)).filter(Boolean);
const least = Math.min(largest, ...weakest.map(edge => Math.abs(edge.score)));
const SLIDERS = {
  pruned: null,
  faithful: null,
  share: { most: 100, text: () => +(100 * state.share).toPrecision(12), read: value => value / 100, at: () => 1000 * state.share, from: place => place / 1000 },
  score: { most: largest, text: () => +state.score.toPrecision(4), read: value => value, at: () => along(state.score || least, least, largest), from: place => +between(place, least, largest).toPrecision(4) },
  top: { most, text: () => state.top, read: Math.round, at: () => along(state.top, 1, most), from: place => Math.round(between(place, 1, most)) },
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
  for (const element of all(".for-cut")) element.hidden ||= !slider;
  if (slider) {
    byId("slider").value = slider.at();
    byId("number").max = slider.most;
    if (document.activeElement !== byId("number")) byId("number").value = slider.text();
  }
  for (const id of ["dead", "hide"]) byId(id).checked = state[id];
  if (document.activeElement !== byId("find")) byId("find").value = state.find;
  byId("matches").textContent = state.find.trim() ? `${found().length} found` : "";
  byId("chosen").textContent = `only paths through ${state.chosen} ×`;
  byId("chosen").hidden = !state.chosen || !isGraph();
  byId("whole").disabled = byId("further").disabled = state.zoom === 1;
  if (data.patterns) byId("prompt").value = state.prompt;
}

const isGraph = () => state.tab === "circuit" || state.tab === "difference";

export function refresh() {
  showTab();
  showControls();
  if (state.tab === "difference" && !panels.some(panel => panel.view === "difference")) addDifference();
  const seen = panels.filter(panel => panel.view === state.tab);
  seen.forEach(update);
  paint(seen);
  if (!byId("card").contains(document.activeElement)) describe(described);
  if (isGraph()) listPins();
  if (state.tab === "patterns") updatePatterns();
  keepState();
}

function addDifference() {  // only when the tab is first opened, so that a page of many nodes loads faster
  addPanel("difference", difference, differenceCaption);
  panels.at(-1).name = "either model";
}

function listen() {
  const set = (id, event, act) => byId(id).addEventListener(event, () => { act(byId(id)); refresh(); });
  set("mode", "input", ({ value }) => { if (value === "score" && !state.score) state.score = +(largest / 10).toPrecision(2); state.mode = value; });
  set("sign", "input", ({ value }) => { state.sign = value; });
  for (const id of ["dead", "hide"]) set(id, "input", ({ checked }) => { state[id] = checked; });
  set("find", "input", ({ value }) => { state.find = value; });
  byId("find").addEventListener("keydown", event => { if (event.key === "Enter" && found().length) goTo(found()[0]); });
  set("closer", "click", () => zoomTo(state.zoom * 1.5));
  set("further", "click", () => zoomTo(state.zoom / 1.5));
  set("whole", "click", () => zoomTo(1));
  set("prompt", "input", ({ value }) => { state.prompt = +value; });
  set("chosen", "click", () => { state.chosen = ""; });
  byId("slider").addEventListener("input", oncePerFrame(() => { state[state.mode] = SLIDERS[state.mode].from(+byId("slider").value); }));
  set("number", "input", field => { if (field.value !== "" && field.validity.valid) state[state.mode] = SLIDERS[state.mode].read(+field.value); });
  byId("number").addEventListener("change", ({ target }) => { if (!target.reportValidity() || target.value === "") target.value = SLIDERS[state.mode].text(); });
  byId("address").addEventListener("change", ({ target }) => goToState(target.value));
  byId("copy").onclick = copyState;
  byId("svg").onclick = () => offer(new Blob([asText(DRAWINGS[state.tab]())], { type: "image/svg+xml" }), `${state.tab}.svg`);
  byId("png").onclick = () => {
    const svg = DRAWINGS[state.tab](), { width, height } = svg.viewBox.baseVal;
    offerPng(asText(svg), width, height, `${state.tab}.png`);
  };
  byId("json").onclick = () => offer(new Blob([JSON.stringify(TABLES[state.tab](), null, 1)], { type: "application/json" }), `${state.tab}.json`);
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    state.chosen = state.head = state.find = "";
    const focused = /** @type {HTMLElement} */ (document.activeElement);
    if (focused.closest(".stage")) focused.blur();
    refresh();
    point(null);
  });
  window.addEventListener("beforeprint", toPaper);
  window.addEventListener("hashchange", () => goToState(location.hash));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
}

function goToState(text) {
  applyState(text);
  refresh();
  point(null);
}

function oncePerFrame(act) {  // acts at once, redraws at most once per animation frame
  let waiting = false;
  return () => {
    act();
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; refresh(); });
  };
}

/** Prints the current tab's drawing as in its SVG file, since a canvas may come out blank. */
function toPaper() {
  byId("paper").replaceChildren(...(DRAWINGS[state.tab] ? [DRAWINGS[state.tab]()] : []));
}

function copyState() {  // a sandboxed frame may not write to the clipboard, but may copy a selection
  byId("address").value = stateText();
  byId("address").select();
  byId("copy").textContent = document.execCommand("copy") ? "copied" : "copy failed";
  setTimeout(() => { byId("copy").textContent = "copy state"; }, 1500);
  byId("copy").focus();
}

function addLegends() {
  for (const view of Object.keys(data.legends)) {
    const { labels, swatches } = data.legends[view];
    document.querySelector(`#${view} .legend`).append(...labels.map(([, , text], i) => make("span", {}, swatches[i] && swatchOf(swatches[i]), text)));
  }
}

function swatchOf([, , ink, dash]) {
  return draw("svg", { viewBox: "0 0 24 9" }, draw("path", { d: "M0 4.5h24", stroke: `var(--${ink})`, "stroke-width": 2.4, "stroke-dasharray": dash.map(length => 1.8 * length).join(" ") }));
}

addTabs();
models.forEach(model => {
  addPanel("circuit", () => alongPaths(signed(model)), edges => modelCaption(model, edges));
  panels.at(-1).name = model.name;
});
addLegends();
byId("mode").append(...modes.map(mode => new Option(CUTS[mode], mode)));
byId("patterns").style.setProperty("--models", String(models.length));
if (data.patterns) byId("prompt").append(...data.patterns.titles.map((title, i) => new Option(title, i)));
listen();
applyState(location.hash);
refresh();
describe(targetNamed(state.chosen));
