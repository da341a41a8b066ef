/** All heads' patterns (queries downward, keys to the right), layers upward, and one of them large. */

const LEVELS = 6, CELL = 15;

function patternsOf(app, model) {
  return make("figure", { class: "patterns" },
    make("figcaption", {}, make("b", { class: `ink ${model.gated ? "sparse" : "dense"}` }, model.name), " heads: a click cuts one"),
    make("div", { class: "pair" }, gridOf(app, model), largeOf(app, model)));
}

function gridOf(app, model) {
  const grid = make("div", { class: "grid", role: "group", "aria-label": `heads of ${model.name}` });
  grid.style.gridTemplateColumns = `auto repeat(${model.head}, minmax(1.4rem, 4.2rem))`;
  const byHead = grouped(model.list, headName);
  for (let layer = model.layer - 1; layer >= 0; layer--) {
    grid.append(make("span", { class: "layer" }, `layer ${layer}`));
    for (let head = 0; head < model.head; head++) grid.append(headOf(app, model, `a${layer}.h${head}`, byHead));
  }
  return grid;
}

const headName = edge => `a${edge.layer}.h${edge.head}`;

function grouped(list, key) {
  const groups = new Map();
  for (const item of list) {
    if (!groups.has(key(item))) groups.set(key(item), []);
    groups.get(key(item)).push(item);
  }
  return groups;
}

function headOf(app, model, name, byHead) {
  const n = app.state.tokens.length, { head } = partOf(name);
  return make("button", { ...buttonOf(app, model, name), type: "button", title: name },
    draw("svg", { viewBox: `0 0 ${n} ${n}`, "aria-hidden": "true" }, squaresOf(byHead.get(name) || [], head)));
}

/** Squares of few strengths, a path each: a page of many heads stays quick. */
function squaresOf(edges, head) {
  const levels = grouped(edges.filter(edge => edge.after > 0), edge => Math.ceil((LEVELS * edge.after) / 1000));
  return [...levels].map(([level, members]) => draw("path", {
    d: members.map(edge => `M${edge.key} ${edge.query}h1v1h-1z`).join(""), fill: `var(--head${head % 8})`, "fill-opacity": 0.1 + (0.9 * level) / LEVELS,
  }));
}

/** One head with its tokens; every square is an edge to cut. */
function largeOf(app, model) {
  const name = app.view.head, tokens = app.state.tokens, n = tokens.length, part = partOf(name);
  const edges = model.list.filter(edge => headName(edge) === name);
  const margin = Math.max(...tokens.map(token => Math.min(LONGEST, token.length))) * 0.62 * 11 + 10, side = margin + CELL * n + 4;
  const label = (i, attributes) => draw("text", { "font-size": 11, class: "word", ...attributes }, shorter(tokens[i], LONGEST));
  const [x, y] = [i => margin + CELL * i, i => margin + CELL * i];
  return make("div", { class: "large", "data-model": model.name },
    make("p", {}, make("b", {}, name), ` ${count(edges.filter(edge => edge.after >= 0).length, "edge")}`),
    make("div", { class: "scroll" }, draw("svg", { viewBox: `0 0 ${side} ${side}`, width: side, height: side, role: "group", "aria-label": `pattern of ${name}, ${model.name}` },
      draw("rect", { class: "paper", x: margin, y: margin, width: CELL * n, height: CELL * n }),
      tokens.map((_, i) => [
        label(i, { x: margin - 5, y: y(i + 0.5), "text-anchor": "end" }),
        label(i, { x: x(i + 0.5), y: margin - 5, transform: `rotate(-90 ${x(i + 0.5)} ${margin - 5})` })]),
      edges.map(edge => squareOf(app, edge, x(edge.key), y(edge.query), part.head)))));
}

function squareOf(app, edge, x, y, head) {
  const gone = edge.fate === CUT || edge.fate === CLOSED;
  return draw("g", { class: `square fate${edge.fate}`, "data-name": edge.name },
    draw("rect", { x, y, width: CELL - 1, height: CELL - 1, fill: `var(--head${head % 8})`, "fill-opacity": gone ? 0 : 0.1 + 0.9 * (edge.after / 1000) }),
    MARKS[edge.fate] && draw("text", { class: `mark fate${edge.fate}`, x: x + CELL / 2, y: y + CELL / 2 }, MARKS[edge.fate]),
    draw("title", {}, app.describe(edge.name)));
}
