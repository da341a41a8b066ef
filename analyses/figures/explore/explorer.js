/** The page: what is known (`state`), how it is looked at (`view`), and a way to ask for more (`send`, or null). */

import { make, offer, pageData } from "../pages/dom.js";
import { answerOf, askedOf } from "./answers.js";
import { circuitChoice } from "./circuit.js";
import { drawingOf, legendOf } from "./drawing.js";
import { enlarged, headsOf } from "./heads.js";
import { count, partOf, quoted } from "./names.js";
import { partsOf } from "./parts.js";
import { whyOf } from "./why.js";

const HINT = "Click an edge, a head, a token, a0 (all heads of layer 0) or m0 (its MLP) to cut it, again to restore it. Tab and arrow keys walk, Enter cuts, P pins. W, or Alt and a click, asks why an edge is open.";
const RECORDED = "This page is recorded: it shows one state and has no model to cut. Run `sparselens explore`, or import its state there.";
const ARROWS = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down" };

class Explorer {
  constructor(root, data, send) {
    this.root = root;
    this.title = data.title;
    this.send = send;
    this.view = { position: null, head: "a0.h0", circuit: false, thresholds: {}, ...data.view };
    this.pending = 0;
    this.queue = Promise.resolve();
    this.build();
    this.listen();
    this.take({ state: data.state });
    if (data.note) this.complain(data.note);
  }

  // -- what there is

  get position() {
    const last = this.state.tokens.length - 1;
    return this.view.position === null ? last : Math.min(this.view.position, last);
  }

  get width() { return this.drawings.clientWidth || 900; }
  isCut(name) { return this.state.cuts.includes(name); }
  isPinned(name) { return this.state.notes[name]?.pinned === true; }
  threshold(model) { return this.view.thresholds[model.name] ?? (model.gated ? 0 : 0.1); }

  describe(name) {
    const part = partOf(name), at = i => `${i} ${quoted(this.state.tokens[i] ?? "?")}`;
    if (!part) return name;
    const label = this.state.notes[name]?.label, end = `${label ? `, ${quoted(label)}` : ""}${this.isCut(name) ? ", cut" : ""}`;
    if (part.pos !== undefined) return `token ${at(part.pos)}${end}`;
    if (part.mlp !== undefined) return `MLP of layer ${part.mlp}${end}`;
    if (part.head === undefined) return `attention of layer ${part.layer}, all heads${end}`;
    if (part.key === undefined) return `layer ${part.layer}, head ${part.head}${end}`;
    return `layer ${part.layer}, head ${part.head}: ${at(part.query)} reads ${at(part.key)}. ${this.state.models.map(model => this.weightOf(model, name)).join("; ")}${end}`;
  }

  weightOf(model, name) {
    const edge = model.byName?.get(name);
    if (!edge) return `${model.name}: no edge`;
    const [before, after] = [edge.before, edge.after].map(weight => (weight < 0 ? "closed" : (weight / 1000).toFixed(2)));
    return `${model.name}: weight ${this.state.cuts.length && before !== after ? `${before} → ${after}` : before}`;
  }

  // -- what can be done

  cut(names) { this.ask({ do: "cut", names }); }
  note(name, { label, group, pinned }) { this.ask({ do: "note", name, label, group, pinned }); }
  pin(name) {
    const note = this.state.notes[name] || { label: "", group: "", pinned: false };
    this.note(name, { ...note, pinned: !note.pinned });
  }

  why(name) { this.ask({ do: "why", name }); }
  explain(why) {
    this.view.why = why;
    this.render();
    if (why) this.reasons.scrollIntoView({ block: "nearest" });
  }

  /** One command after the other; the answer is drawn, or the mistake shown. */
  ask(command) {
    if (!this.send) return this.complain(RECORDED);
    this.pending += 1;
    this.tellStatus();
    this.queue = this.queue
      .then(() => this.send(command))
      .then(reply => this.take(reply), error => this.complain(`no answer: ${error.message || error}`))
      .finally(() => { this.pending -= 1; this.tellStatus(); });
  }

  take(reply) {
    if (reply.error) return this.complain(reply.error);
    if (reply.page) return offer(new Blob([reply.page], { type: "text/html" }), "explore.html");
    if (reply.why) return this.explain(reply.why);
    const before = this.state;
    this.state = reply.state;
    if (before && (before.prompt !== this.state.prompt || String(before.cuts) !== String(this.state.cuts))) this.view.why = null;
    for (const model of this.state.models) readEdges(model);
    if (before?.prompt !== this.state.prompt) this.turn(before);
    if (!this.state.models.some(model => model.layer > partOf(this.view.head).layer)) this.view.head = "a0.h0";
    this.render();
  }

  /** Another prompt: its last token is asked about; what was cut by position went with the old one. */
  turn(before) {
    this.prompt.value = this.state.prompt;
    if (!before) return;
    this.view.position = null;
    const lost = before.cuts.filter(name => /[p:]/.test(name) && !this.isCut(name)).length;
    if (lost) this.complain(`${count(lost, "cut")} of edges and tokens went with the old prompt; Undo brings it back.`);
  }

  /** A mistake stays until it is waved away. */
  complain(text) {
    const line = make("p", {}, make("span", {}, text), make("button", { type: "button", "aria-label": "dismiss", onclick: () => line.remove() }, "×"));
    this.errors.append(line);
    while (this.errors.children.length > 3) this.errors.firstChild.remove();
  }

  select(position) {
    this.view.position = position;
    this.render();
  }

  setThreshold(model, threshold) {
    this.view.thresholds[model.name] = threshold;
    this.render();
  }

  // -- how it looks

  build() {
    this.root.classList.add("explore");
    this.root.tabIndex = -1;
    this.root.classList.toggle("recorded", !this.send);
    this.prompt = make("textarea", { rows: 2, "aria-label": "prompt", placeholder: "Type a prompt and press Enter", spellcheck: "false", readonly: !this.send });
    const section = name => make("section", { class: name });
    this.tools = section("tools");
    this.answers = section("answers");
    this.parts = section("parts");
    this.reasons = section("reasons");
    this.drawings = section("drawings");
    this.patterns = section("patterns");
    this.errors = make("div", { class: "errors", role: "alert" });
    this.status = make("p", { class: "status", role: "status" });
    this.about = make("p", { class: "about" });
    this.root.append(
      make("header", {}, make("h1", {}, "Explore ", make("span", { class: "quiet" }, this.title)), this.tools),
      make("form", { class: "prompt", onsubmit: event => { event.preventDefault(); this.ask({ do: "ask", prompt: this.prompt.value }); } }, this.prompt, make("button", { class: "controls" }, "Ask")),
      this.errors, this.status,
      make("div", { class: "sides" }, make("div", { class: "left" }, this.answers, this.parts), make("div", { class: "right" }, this.about, this.reasons, this.drawings, this.patterns)));
    new ResizeObserver(() => { if (this.drawn !== this.width) this.render(); }).observe(this.drawings);
  }

  /** Draws everything anew and puts the focus back to where it was. */
  render() {
    if (!this.state) return;
    const key = this.root.getRootNode().activeElement?.dataset?.key, scrolled = [...this.root.querySelectorAll(".scroll")].map(box => box.scrollLeft);
    const asked = this.state.tokens.length ? this.state.models : [];
    this.drawn = this.width;
    this.tools.replaceChildren(...this.toolbar());
    this.answers.replaceChildren(...(asked.length ? [askedOf(this)] : []), ...asked.map(model => answerOf(this, model)));
    this.parts.replaceChildren(...partsOf(this).filter(Boolean));
    this.reasons.replaceChildren(...whyOf(this));
    this.drawings.replaceChildren(...(asked.length ? [circuitChoice(this)] : []), ...asked.map(model => drawingOf(this, model)), ...(asked.length ? [legendOf(this)] : []));
    this.patterns.replaceChildren(...asked.map(model => headsOf(this, model)));
    [...this.root.querySelectorAll(".scroll")].forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
    this.tellStatus();
    this.hover(null);
    if (key) (this.root.querySelector(`[data-key="${CSS.escape(key)}"]`) ?? this.root).focus({ preventScroll: true });  // so that Ctrl+Z goes on
  }

  toolbar() {
    const { can, cuts } = this.state;
    const tool = (text, act, enabled = true) => make("button", { type: "button", disabled: !enabled, "data-key": `tool ${text}`, onclick: act }, text);
    const share = tool("Export state", () => offer(new Blob([JSON.stringify(this.sharedState(), null, 2)], { type: "application/json" }), "exploration.json"), this.state.tokens.length > 0);
    if (!this.send) return [share];
    const file = make("input", { type: "file", accept: ".json,application/json", class: "hidden", tabindex: -1, "aria-hidden": "true", onchange: event => this.importFile(event.target.files[0]) });
    return [
      tool("Undo", () => this.ask({ do: "undo" }), can.undo), tool("Redo", () => this.ask({ do: "redo" }), can.redo),
      tool("Restore all", () => this.ask({ do: "restore" }), cuts.length > 0), share,
      tool("Import", () => file.click()), file, tool("Save page", () => this.ask({ do: "page", view: this.view }), this.state.tokens.length > 0),
    ];
  }

  sharedState() {
    const { sparselens, prompt, cuts, notes, models } = this.state;
    return { sparselens, models: models.map(model => model.name), prompt, cuts, notes };
  }

  async importFile(file) {
    try {
      this.ask({ do: "load", shared: JSON.parse(await file.text()) });
    } catch (error) {
      this.complain(`${file.name} is not JSON: ${error.message}`);
    }
  }

  tellStatus() {
    const { tokens, cuts, milliseconds } = this.state;
    this.root.classList.toggle("busy", this.pending > 0);
    this.root.setAttribute("aria-busy", String(this.pending > 0));
    const idle = tokens.length ? `${count(tokens.length, "token")}, ${count(cuts.length, "cut")}, computed in ${milliseconds} ms` : "";
    this.status.textContent = this.pending ? "computing…" : this.send ? idle : "recorded";
  }

  // -- pointing, clicking, walking

  listen() {
    this.root.addEventListener("click", event => {
      const hit = this.hit(event);
      if (hit?.dataset.position) this.select(Number(hit.dataset.position));
      else if (hit && event.shiftKey) this.pin(hit.dataset.name);
      else if (hit && event.altKey && partOf(hit.dataset.name).key !== undefined) this.why(hit.dataset.name);
      else if (hit) this.cut([hit.dataset.name]);
    });
    this.root.addEventListener("pointermove", event => this.hover(this.hit(event)?.dataset.name ?? null));
    this.root.addEventListener("pointerleave", () => this.hover(null));
    this.root.addEventListener("focusin", event => this.hover(event.target.closest("[data-name]")?.dataset.name ?? null));
    this.root.addEventListener("keydown", event => this.press(event));
  }

  /** What is under the pointer; thin lines are hard to hit, so near is good enough. */
  hit(event) {
    const direct = event.target.closest("[data-name], [data-position]");
    if (direct || !event.target.closest(".drawing svg") || event.detail === 0 && event.type === "click") return direct;
    const root = this.root.getRootNode();
    for (let radius = 2; radius <= 6; radius += 2)
      for (let turn = 0; turn < 8; turn++) {
        const near = root.elementFromPoint(event.clientX + radius * Math.cos((turn * Math.PI) / 4), event.clientY + radius * Math.sin((turn * Math.PI) / 4));
        if (near?.matches(".edge")) return near;
      }
    return null;
  }

  hover(name) {
    if (name === this.pointed && name !== null) return;
    this.pointed = name;
    for (const lit of this.root.querySelectorAll(".on")) lit.classList.remove("on");
    this.drawings.classList.toggle("lit", name !== null);
    this.about.textContent = name === null ? (this.send ? HINT : RECORDED) : this.describe(name);
    if (name === null) return;
    for (const edge of this.drawings.querySelectorAll(".edge")) if (belongs(edge.dataset.name, name)) edge.classList.add("on");
    for (const part of this.root.querySelectorAll("[data-name]")) if (part.dataset.name === name) part.classList.add("on");
    const head = /^a\d+\.h\d+/.exec(name)?.[0];
    if (head && head !== this.view.head) this.enlarge(head);
  }

  enlarge(head) {
    this.view.head = head;
    for (const model of this.state.models) {
      const old = [...this.patterns.querySelectorAll(".large")].find(large => large.dataset.model === model.name);
      old?.replaceWith(enlarged(this, model));
    }
  }

  press(event) {
    const part = event.target.closest("[data-name], [data-position]"), typing = event.target.matches("input, textarea");
    if (event.target === this.prompt && event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.ask({ do: "ask", prompt: this.prompt.value }); }
    else if (!typing && (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); if (this.state.can[event.shiftKey ? "redo" : "undo"]) this.ask({ do: event.shiftKey ? "redo" : "undo" }); }
    else if (part && !(part instanceof HTMLElement) && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); part.dispatchEvent(new MouseEvent("click", { bubbles: true })); }
    else if (part?.dataset.name && !event.ctrlKey && event.key.toLowerCase() === "p") this.pin(part.dataset.name);
    else if (part?.dataset.name && !event.ctrlKey && event.key.toLowerCase() === "w" && partOf(part.dataset.name).key !== undefined) this.why(part.dataset.name);
    else if (part?.matches(".edge") && event.key in ARROWS) { event.preventDefault(); this.walk(part, ARROWS[event.key]); }
  }

  /** From edge to edge: left and right to the next, up and down to the next layer. */
  walk(edge, way) {
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
}

function readEdges(model) {
  const [layer, head, key, query, before, after, fate] = model.edges?.columns ?? [[], [], [], [], [], [], []];
  model.list = layer.map((_, i) => ({
    layer: layer[i], head: head[i], key: key[i], query: query[i], before: before[i], after: after[i], fate: fate[i],
    name: `a${layer[i]}.h${head[i]}:${key[i]}->${query[i]}`,
  }));
  model.byName = new Map(model.list.map(edge => [edge.name, edge]));
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

/** A page of its own; a live one asks the server that it came from. */
export function startPage() {
  const data = pageData();
  const token = new URLSearchParams(location.search).get("token") ?? "";
  const send = async command => {
    const options = { method: "POST", headers: { "Content-Type": "application/json", "X-Sparselens-Token": token }, body: JSON.stringify(command) };
    const reply = await fetch("/ask", options).catch(() => { throw new Error("the server has stopped; start `sparselens explore` again"); });
    return reply.json();
  };
  return new Explorer(document.getElementById("explore"), data, data.live ? send : null);
}

/** In a notebook: anywidget carries the messages. */
export function startWidget({ model, el }) {
  const waiting = new Map();
  let last = 0;
  model.on("msg:custom", reply => { waiting.get(reply.id)?.(reply); waiting.delete(reply.id); });
  const send = command => new Promise(resolve => { waiting.set(++last, resolve); model.send({ id: last, command }); });
  const root = el.appendChild(make("div"));
  new Explorer(root, model.get("data"), send);
}
