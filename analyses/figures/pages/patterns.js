// Attention patterns, for viewer and explorer: rows are queries, columns keys; a grid of all heads, and one head enlarged.

import { draw, grouped, make, shorter } from "./dom.js";

/**
 * An attention edge of a head; a weight below 0 means that it is closed. `largeOf` adds its square and the square's middle.
 * @typedef {object} Cell
 * @property {number} query
 * @property {number} key
 * @property {number} weight
 * @property {string=} name
 * @property {number=} fate
 * @property {any=} rect
 * @property {number=} x
 * @property {number=} y
 *
 * The patterns of one model.
 * @typedef {object} Patterns
 * @property {string} name
 * @property {number} layers
 * @property {number} heads
 * @property {string[]} tokens
 * @property {number} faintest opacity of the weakest edge
 * @property {(layer: number, head: number) => Cell[]} cells
 */

const INK = "var(--weight)", LEVELS = 16, CELL = 15, WORD = 11, LONGEST = 16;

/** A button for every head: Tab reaches one of them, the arrow keys the others. @type {(of: Patterns, attributes: (layer: number, head: number) => Record<string, any>) => any} */
export function gridOf(of, attributes) {
  const grid = make("div", { class: "grid", role: "group", "aria-label": `heads of ${of.name}`, onkeydown: walkHeads });
  grid.style.gridTemplateColumns = `max-content repeat(${of.heads}, minmax(.8rem, 4.2rem))`;
  for (let layer = of.layers - 1; layer >= 0; layer--) {
    grid.append(make("span", { class: "layer" }, `L${layer}`));
    for (let head = 0; head < of.heads; head++)
      grid.append(make("button", { title: `a${layer}.h${head}`, ...attributes(layer, head), type: "button", tabindex: layer || head ? -1 : 0, "data-place": `${layer} ${head}` }, patternOf(of, layer, head)));
  }
  grid.append(make("span"), ...Array.from({ length: of.heads }, (_, head) => make("span", { class: "layer number" }, String(head))));
  return grid;
}

function walkHeads(event) {
  const grid = event.currentTarget, from = event.target.closest("[data-place]");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  if (!from || !step) return;
  const [layer, head] = from.dataset.place.split(" ").map(Number);
  const next = grid.querySelector(`[data-place="${layer + step[0]} ${head + step[1]}"]`);
  event.preventDefault();
  if (!next) return;
  from.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** A head's pattern without tokens. Weights are rounded to a few levels with one path each, to stay fast with many heads. */
export function patternOf(of, layer, head) {
  const n = of.tokens.length, levels = grouped(of.cells(layer, head).filter(cell => cell.weight >= 0), cell => Math.ceil(LEVELS * cell.weight));
  return draw("svg", { viewBox: `0 0 ${n} ${n}`, "aria-hidden": "true" }, [...levels].map(([level, members]) => draw("path", {
    d: members.map(cell => `M${cell.key} ${cell.query}h1v1h-1z`).join(""), fill: INK, "fill-opacity": opacity(of, level / LEVELS),
  })));
}

const opacity = (of, weight) => +(of.faintest + (1 - of.faintest) * Math.max(0, weight)).toFixed(3);

/** One head with its tokens. @type {(of: Patterns, layer: number, head: number, square?: (cell: Cell) => any) => any} */
export function largeOf(of, layer, head, square = cell => cell.rect) {
  const { tokens } = of, n = tokens.length, cells = of.cells(layer, head);
  const margin = Math.max(...tokens.map(token => Math.min(LONGEST, token.length))) * 0.62 * WORD + 10, side = margin + CELL * n + 4;
  const at = i => margin + CELL * i;
  const word = (i, attributes) => draw("text", { "font-size": WORD, class: "word", "data-token": i, ...attributes }, shorter(tokens[i], LONGEST));
  return draw("svg", { viewBox: `0 0 ${side} ${side}`, width: side, height: side, role: "group", "aria-label": `pattern of a${layer}.h${head}, ${of.name}` },
    draw("rect", { class: "paper", x: margin, y: margin, width: CELL * n, height: CELL * n }),
    tokens.map((_, i) => [
      word(i, { x: margin - 5, y: at(i + 0.5), "text-anchor": "end" }),
      word(i, { x: at(i + 0.5), y: margin - 5, transform: `rotate(-90 ${at(i + 0.5)} ${margin - 5})` })]),
    cells.map(cell => {
      const rect = draw("rect", { x: at(cell.key), y: at(cell.query), width: CELL - 1, height: CELL - 1, fill: INK, "fill-opacity": cell.weight < 0 ? 0 : opacity(of, cell.weight) });
      return square(Object.assign(cell, { rect, x: at(cell.key + 0.5), y: at(cell.query + 0.5) }));
    }));
}
