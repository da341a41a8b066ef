/** The page: the exploration's `state`, display settings (`view`), and `send` for commands to the session (null on a recorded page). */

import { make, offer, pageData } from "../pages/dom.js";
import { answerOf, positionHeading } from "./answers.js";
import { circuitChoice } from "./circuit.js";
import { drawingOf, legendOf } from "./drawing.js";
import { headsOf } from "./heads.js";
import { count, partOf, quoted } from "./names.js";
import { partsOf } from "./parts.js";
import { RECORDED, hover, listen } from "./pointing.js";
import { whyOf } from "./why.js";

class Explorer {
  constructor(root, data, send) {
    this.root = root;
    this.title = data.title;
    this.send = send;
    this.view = { position: null, head: "a0.h0", circuit: false, thresholds: {}, ...data.view };
    this.pending = 0;
    this.queue = Promise.resolve();
    this.build();
    listen(this);
    this.receive({ state: data.state });
    if (data.note) this.showMessage(data.note);
  }

  // -- state

  get position() {
    const last = this.state.tokens.length - 1;
    return this.view.position === null ? last : Math.min(this.view.position, last);
  }

  get width() { return this.drawings.clientWidth || 900; }
  isCut(name) { return this.state.cuts.includes(name); }
  noteOf(name) { return this.state.notes[name] ?? { label: "", group: "", pinned: false }; }
  isPinned(name) { return this.noteOf(name).pinned; }
  threshold(model) { return this.view.thresholds[model.name] ?? (model.gated ? 0 : 0.1); }

  describe(name) {
    const part = partOf(name), at = i => `${i} ${quoted(this.state.tokens[i] ?? "?")}`;
    if (!part) return name;
    const label = this.state.notes[name]?.label, end = `${label ? `, ${quoted(label)}` : ""}${this.isCut(name) ? ", cut" : ""}`;
    if (part.pos !== undefined) return `token ${at(part.pos)}${end}`;
    if (part.mlp !== undefined) return `MLP of layer ${part.mlp}${end}`;
    if (part.head === undefined) return `attention of layer ${part.layer}, all heads${end}`;
    if (part.key === undefined) return `layer ${part.layer}, head ${part.head}${end}`;
    return `layer ${part.layer}, head ${part.head}: ${at(part.query)} attends to ${at(part.key)}. ${this.state.models.map(model => this.weightOf(model, name)).join("; ")}${end}`;
  }

  weightOf(model, name) {
    const edge = model.byName?.get(name);
    if (!edge) return `${model.name}: no edge`;
    const [before, after] = [edge.before, edge.after].map(weight => (weight < 0 ? "closed" : (weight / 1000).toFixed(2)));
    return `${model.name}: weight ${this.state.cuts.length && before !== after ? `${before} → ${after}` : before}`;
  }

  // -- commands

  cut(names) { this.ask({ do: "cut", names }); }
  note(name, { label, group, pinned }) { this.ask({ do: "note", name, label, group, pinned }); }
  pin(name) {
    const note = this.noteOf(name);
    this.note(name, { ...note, pinned: !note.pinned });
  }

  why(name) { this.ask({ do: "why", name }); }
  explain(why) {
    this.view.why = why;
    this.render();
    if (why) this.reasons.scrollIntoView({ block: "nearest" });
  }

  /** Send a command after all earlier ones; draws the reply, or shows the error. */
  ask(command) {
    if (!this.send) return this.showMessage(RECORDED);
    this.pending += 1;
    this.showStatus();
    this.queue = this.queue
      .then(() => this.send(command))
      .then(reply => this.receive(reply), error => this.showMessage(`no reply: ${error.message || error}`))
      .finally(() => { this.pending -= 1; this.showStatus(); });
  }

  receive(reply) {
    if (reply.error) return this.showMessage(reply.error);
    if (reply.page) return offer(new Blob([reply.page], { type: "text/html" }), "explore.html");
    if (reply.why) return this.explain(reply.why);
    const before = this.state;
    this.state = reply.state;
    if (before && (before.prompt !== this.state.prompt || String(before.cuts) !== String(this.state.cuts))) this.view.why = null;
    for (const model of this.state.models) readEdges(model);
    if (before?.prompt !== this.state.prompt) this.changePrompt(before);
    if (!this.state.models.some(model => model.layer > partOf(this.view.head).layer)) this.view.head = "a0.h0";
    this.render();
  }

  /** After a change of prompt, show the prediction at its last token. Cuts of edges and tokens belonged to the old prompt. */
  changePrompt(before) {
    this.prompt.value = this.state.prompt;
    if (!before) return;
    this.view.position = null;
    const lost = before.cuts.filter(name => /[p:]/.test(name) && !this.isCut(name)).length;
    if (lost) this.showMessage(`The new prompt removed ${count(lost, "cut")} of edges and tokens; Undo goes back to the old prompt.`);
  }

  /** Show an error or a notice until it is dismissed. */
  showMessage(text) {
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

  // -- layout and drawing

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
      make("form", { class: "prompt", onsubmit: event => { event.preventDefault(); this.ask({ do: "ask", prompt: this.prompt.value }); } }, this.prompt, make("button", { class: "controls" }, "Run")),
      this.errors, this.status,
      make("div", { class: "sides" }, make("div", { class: "left" }, this.answers, this.parts), make("div", { class: "right" }, this.about, this.reasons, this.drawings, this.patterns)));
    new ResizeObserver(() => { if (this.drawn !== this.width) this.render(); }).observe(this.drawings);
  }

  /** Redraw everything and restore the focus. */
  render() {
    if (!this.state) return;
    const key = this.root.getRootNode().activeElement?.dataset?.key, scrolled = [...this.root.querySelectorAll(".scroll")].map(box => box.scrollLeft);
    const models = this.state.tokens.length ? this.state.models : [];
    this.drawn = this.width;
    this.tools.replaceChildren(...this.toolbar());
    this.answers.replaceChildren(...(models.length ? [positionHeading(this)] : []), ...models.map(model => answerOf(this, model)));
    this.parts.replaceChildren(...partsOf(this).filter(Boolean));
    this.reasons.replaceChildren(...whyOf(this));
    this.drawings.replaceChildren(...(models.length ? [circuitChoice(this)] : []), ...models.map(model => drawingOf(this, model)), ...(models.length ? [legendOf(this)] : []));
    this.patterns.replaceChildren(...models.map(model => headsOf(this, model)));
    [...this.root.querySelectorAll(".scroll")].forEach((box, i) => { box.scrollLeft = scrolled[i] || 0; });
    this.showStatus();
    hover(this, null);
    if (key) (this.root.querySelector(`[data-key="${CSS.escape(key)}"]`) ?? this.root).focus({ preventScroll: true });  // so that Ctrl+Z keeps working
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
      this.showMessage(`${file.name} is not JSON: ${error.message}`);
    }
  }

  showStatus() {
    const { tokens, cuts, milliseconds } = this.state;
    this.root.classList.toggle("busy", this.pending > 0);
    this.root.setAttribute("aria-busy", String(this.pending > 0));
    const idle = tokens.length ? `${count(tokens.length, "token")}, ${count(cuts.length, "cut")}, computed in ${milliseconds} ms` : "";
    this.status.textContent = this.pending ? "computing…" : this.send ? idle : "recorded";
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

/** Start a stand-alone page; a live one sends commands to its server. */
export function startPage() {
  const data = pageData();
  const token = new URLSearchParams(location.search).get("token") ?? "";
  const send = async command => {
    const options = { method: "POST", headers: { "Content-Type": "application/json", "X-Sparselens-Token": token }, body: JSON.stringify(command) };
    const reply = await fetch("/ask", options).catch(() => { throw new Error("the server has stopped; run `sparselens explore` again"); });
    return reply.json();
  };
  return new Explorer(document.getElementById("explore"), data, data.live ? send : null);
}

/** Start in a notebook, where anywidget carries the messages. */
export function startWidget({ model, el }) {
  const waiting = new Map();
  let last = 0;
  model.on("msg:custom", reply => { waiting.get(reply.id)?.(reply); waiting.delete(reply.id); });
  const send = command => new Promise(resolve => { waiting.set(++last, resolve); model.send({ id: last, command }); });
  const root = el.appendChild(make("div"));
  new Explorer(root, model.get("data"), send);
}
