/** The most likely next tokens at one position, before and after the cuts. */

import { make } from "../pages/dom.js";
import { percent, visible } from "./names.js";

export function answerOf(app, model) {
  const answer = model.answers[app.position], isCut = app.state.cuts.length > 0;
  const most = Math.max(...answer.top.flatMap(([, before, after]) => [before, after]));
  return make("table", { class: "answer" },
    make("caption", {},
      make("b", { class: `ink ${model.gated ? "sparse" : "dense"}` }, model.name),
      isCut ? `: KL divergence ${answer.moved.toFixed(3)} nats` : " predicts"),
    make("thead", { class: "hidden" }, make("tr", {}, ["token", "bar", isCut ? "before" : "probability", isCut && "after", isCut && "change"]
      .filter(Boolean).map(name => make("th", { scope: "col" }, name)))),
    make("tbody", {}, answer.top.map(([token, before, after]) => rowOf(model, token, before / most, after / most, isCut
      ? [percent(before), `→ ${percent(after)} %`, change(after - before)] : [`${percent(after)} %`]))));
}

function rowOf(model, token, before, after, numbers) {
  const [low, high] = [Math.min(before, after), Math.max(before, after)];
  const bar = make("div", { class: `bar ink ${model.gated ? "sparse" : "dense"}` },
    piece(numbers.length === 1 ? "all" : "same", 0, low), piece(after < before ? "lost" : "won", low, high), before !== after && piece("was", before, before));
  return make("tr", {},
    make("th", { scope: "row" }, make("span", { class: "token" }, visible(token))),
    make("td", {}, bar),
    numbers.map((text, i) => make("td", { class: i === 2 ? `number ${after < before ? "negative" : "positive"}` : "number" }, text)));
}

function piece(kind, start, end) {
  const element = make("i", { class: kind });
  element.style.left = `${100 * start}%`;
  element.style.width = `${100 * (end - start)}%`;
  return element;
}

function change(difference) {
  const points = percent(Math.abs(difference));
  return points === "0.0" ? "" : `${difference < 0 ? "−" : "+"}${points}`;
}

/** The heading above the tables: the position whose next token is predicted. */
export function positionHeading(app) {
  const last = app.position === app.state.tokens.length - 1;
  return make("h2", {}, `After ${app.position} `, make("span", { class: "token" }, visible(app.state.tokens[app.position])), last ? ", the last token" : "");
}
