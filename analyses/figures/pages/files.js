// Exports what is on the screen as stand-alone files: no CSS variables, nothing hidden.

import { draw, dress, withoutVariables } from "./dom.js";
import { alongPaths, data, edgeName, models, nodes, signed, stateText } from "./state.js";
import { inks, panels, stroke } from "./graph.js";
import { pathOf } from "./paths.js";

function sheet(width, height) {
  return draw("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, width: `${width}pt`, height: `${height}pt` },
    draw("style", {}, `text { font-family: system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }`),
    draw("rect", { width, height, fill: "var(--paper)" }));
}

export function asText(svg) {
  return withoutVariables(new XMLSerializer().serializeToString(svg));
}

function graphSvg(view) {
  const drawn = panels.filter(panel => panel.view === view), legend = data.legends[view], { width } = legend;
  const step = drawn.length > 1 ? width - data.panel : 0, floor = data.header - data.top, svg = sheet(width, floor + data.bottom + legend.height);
  drawn.forEach((panel, i) => {
    const group = svg.appendChild(draw("g", { transform: `translate(${i * step} ${floor})` })), styles = inks(view), text = panel.heading.textContent;
    group.appendChild(draw("text", { x: 1, y: data.top - data.header + 8, "font-size": Math.min(7, 400 / text.length), "font-weight": 600 }, text));
    for (const edge of [...panel.edges].reverse()) {
      const [thick, opacity] = stroke(edge.size, panel.edges.length), { variable, dash } = styles[edge.style];
      group.appendChild(draw("path", { d: pathOf(edge), fill: "none", stroke: variable, "stroke-width": thick.toFixed(2), "stroke-opacity": opacity.toFixed(3), ...(dash.length ? { "stroke-dasharray": dash.join(" ") } : {}) }));
    }
    for (const [x, y, said, size] of data.rulers) group.appendChild(draw("text", { x, y, "font-size": size, "text-anchor": "end", "dominant-baseline": "central" }, said));
    group.append(...[...panel.pinned.children, ...panel.words.children].map(mark => asFile(mark.cloneNode(true))));
    nodes.forEach((node, j) => { if (panel.boxes[j].style.display !== "none") addPlainNode(group, node, panel.boxes[j].classList.contains("unused")); });
  });
  addPlainLegend(svg.appendChild(draw("g", { transform: `translate(0 ${floor + data.bottom})` })), view);
  return svg;
}

function asFile(mark) {  // what the page's style sheet says about pins: the file has no style sheet
  const looks = mark.tagName === "path" ? { fill: "none", stroke: "var(--mark)", "stroke-width": 3.4, "stroke-opacity": 0.45 } : { "text-anchor": "middle", "dominant-baseline": "central", style: "fill: var(--mark)" };
  return dress(mark, looks);
}

function addPlainNode(group, { kind, text, x, y, width, height }, unused) {
  const box = group.appendChild(draw("g", { opacity: unused ? 0.28 : 1 })), fill = { head: "var(--paper)", mlp: "var(--mlp)" }[kind] || "var(--node)";
  box.appendChild(draw("rect", { x: x - width / 2, y: y - height / 2, width, height, rx: kind === "head" ? Math.min(width, height) / 2 : 1.5, fill, stroke: "var(--ink)", "stroke-width": 0.5 }));
  box.appendChild(draw("text", { x, y, "font-size": Math.min(7, height / 1.25, 1.45 * width / text.length), "text-anchor": "middle", "dominant-baseline": "central" }, text));
}

function addPlainLegend(group, view) {
  const { labels, swatches } = data.legends[view];
  for (const [x, y, text] of labels) group.appendChild(draw("text", { x, y, "font-size": 7, "dominant-baseline": "central" }, text));
  for (const [x, y, ink, dash] of swatches) group.appendChild(draw("path", { d: `M${x} ${y}h12`, stroke: `var(--${ink})`, "stroke-width": 1.3, "stroke-dasharray": dash.join(" ") }));
}

function stacked(parts) {  // drawings of the page one below the other, each under its heading
  const heights = parts.map(({ width, height }) => 24 + 480 * height / width), svg = sheet(490, heights.reduce((sum, height) => sum + height, 0));
  parts.forEach(({ text, element }, i) => {
    const y = heights.slice(0, i).reduce((sum, one) => sum + one, 0);
    svg.appendChild(draw("text", { x: 5, y: y + 15, "font-size": 11, "font-weight": 600 }, text));
    svg.append(dress(element, { x: 5, y: y + 22, width: 480, height: heights[i] - 24 }));
  });
  return svg;
}

function plotsSvg() {
  return stacked([...document.querySelectorAll("#curves figure")].map(partOf));
}

function patternsSvg() {
  const grids = [...document.querySelectorAll("#patterns .grids figure")].map(figure => ({ text: figure.firstChild.textContent, ...gridSvg(figure) }));
  return stacked([...grids, ...[...document.querySelectorAll("#patterns .large figure")].map(partOf)]);
}

function gridSvg(figure) {  // every head's pattern in its place, first layer at the bottom
  const { layers, heads } = data.patterns, step = 44, left = 24;
  const size = { width: left + step * heads, height: step * layers + 14 };
  const cells = [...figure.querySelectorAll(".grid button")].map(button => {
    const [layer, head] = button.dataset.place.split(" ").map(Number), pattern = button.firstChild.cloneNode(true);
    const place = { x: left + step * head, y: step * (layers - 1 - layer), width: step - 4, height: step - 4 };
    return [draw("rect", { ...place, fill: "none", stroke: "var(--line)" }), dress(pattern, place)];
  });
  const words = [...Array(layers).keys()].map(layer => draw("text", { x: 0, y: step * (layers - layer - 0.5), "font-size": 11 }, `L${layer}`));
  const numbers = [...Array(heads).keys()].map(head => draw("text", { x: left + step * (head + 0.4), y: size.height - 3, "font-size": 11 }, String(head)));
  return { ...size, element: draw("svg", { viewBox: `0 0 ${size.width} ${size.height}` }, cells, words, numbers) };
}

function partOf(figure) {
  const svg = figure.querySelector("svg"), { width, height } = svg.viewBox.baseVal;
  return { text: figure.firstChild.textContent, element: svg.cloneNode(true), width, height };
}

function circuitsJson() {  // each in the format of EAP-IG and MIB
  const all = {};
  models.forEach((model, i) => {
    const kept = new Set(alongPaths(signed(model))), name = i && model.name === models[0].name ? `${model.name} 2` : model.name;
    const used = new Set([...kept].flatMap(edge => [edge.source, edge.owner]));
    all[name] = {
      cfg: data.cfg,
      nodes: Object.fromEntries(nodes.map(node => [node.name, { in_graph: used.has(node.index) }])),
      edges: Object.fromEntries(model.every.map(edge => [edgeName(edge), { score: edge.score, in_graph: kept.has(edge) }])),
    };
  });
  return { state: stateText(), circuits: all };
}

export const DRAWINGS = { circuit: () => graphSvg("circuit"), difference: () => graphSvg("difference"), patterns: patternsSvg, curves: plotsSvg };
export const TABLES = { circuit: circuitsJson, difference: circuitsJson, curves: () => data.plots };
