// What is on the screen as a file of its own: no variables, nothing hidden.

import { draw, withoutVariables } from "./dom.js";
import { alongPaths, data, edgeName, models, nodes, signed, stateText } from "./state.js";
import { inks, panels, pathOf, stroke } from "./graph.js";

const NAMESPACE = "http://www.w3.org/2000/svg";

function sheet(width, height) {
  const svg = document.createElementNS(NAMESPACE, "svg");
  for (const [name, value] of Object.entries({ xmlns: NAMESPACE, viewBox: `0 0 ${width} ${height}`, width: `${width}pt`, height: `${height}pt` })) svg.setAttribute(name, value);
  draw(svg, "style", {}, `text { font-family: system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); }`);
  draw(svg, "rect", { width, height, fill: "var(--paper)" });
  return svg;
}

export function asText(svg) {
  return withoutVariables(new XMLSerializer().serializeToString(svg));
}

function graphSvg(view) {
  const drawn = panels.filter(panel => panel.view === view), legend = data.legends[view], { width } = legend;
  const step = drawn.length > 1 ? width - data.panel : 0, floor = data.header - data.top, svg = sheet(width, floor + data.bottom + legend.height);
  drawn.forEach((panel, i) => {
    const group = draw(svg, "g", { transform: `translate(${i * step} ${floor})` }), styles = inks(view), text = panel.heading.textContent;
    draw(group, "text", { x: 1, y: data.top - data.header + 8, "font-size": Math.min(7, 400 / text.length), "font-weight": 600 }, text);
    for (const edge of [...panel.edges].reverse()) {
      const [thick, opacity] = stroke(edge.size, panel.edges.length), { variable, dash } = styles[edge.style];
      draw(group, "path", { d: pathOf(edge), fill: "none", stroke: variable, "stroke-width": thick.toFixed(2), "stroke-opacity": opacity.toFixed(3), ...(dash.length ? { "stroke-dasharray": dash.join(" ") } : {}) });
    }
    for (const [x, y, said, size] of data.rulers) draw(group, "text", { x, y, "font-size": size, "text-anchor": "end", "dominant-baseline": "central" }, said);
    nodes.forEach((node, j) => { if (panel.boxes[j].style.display !== "none") addPlainNode(group, node, panel.boxes[j].classList.contains("unused")); });
  });
  addPlainLegend(draw(svg, "g", { transform: `translate(0 ${floor + data.bottom})` }), view);
  return svg;
}

function addPlainNode(group, { kind, text, x, y, width, height }, unused) {
  const box = draw(group, "g", { opacity: unused ? 0.28 : 1 }), fill = { head: "var(--paper)", mlp: "var(--mlp)" }[kind] || "var(--node)";
  draw(box, "rect", { x: x - width / 2, y: y - height / 2, width, height, rx: kind === "head" ? Math.min(width, height) / 2 : 1.5, fill, stroke: "var(--ink)", "stroke-width": 0.5 });
  draw(box, "text", { x, y, "font-size": Math.min(7, height / 1.25, 1.45 * width / text.length), "text-anchor": "middle", "dominant-baseline": "central" }, text);
}

function addPlainLegend(group, view) {
  const { labels, swatches } = data.legends[view];
  for (const [x, y, text] of labels) draw(group, "text", { x, y, "font-size": 7, "dominant-baseline": "central" }, text);
  swatches.forEach(([x, y], i) => { const { variable, dash } = inks(view)[i]; draw(group, "path", { d: `M${x} ${y}h12`, stroke: variable, "stroke-width": 1.3, "stroke-dasharray": dash.join(" ") }); });
}

function stacked(parts) {  // drawings of the page above each other, each with what stands above it
  const heights = parts.map(({ width, height }) => 24 + 480 * height / width), svg = sheet(490, heights.reduce((sum, height) => sum + height, 0));
  parts.forEach(({ text, element }, i) => {
    const y = heights.slice(0, i).reduce((sum, one) => sum + one, 0);
    draw(svg, "text", { x: 5, y: y + 15, "font-size": 11, "font-weight": 600 }, text);
    for (const [name, value] of Object.entries({ x: 5, y: y + 22, width: 480, height: heights[i] - 24 })) element.setAttribute(name, value);
    element.removeAttribute("style");
    svg.append(element);
  });
  return svg;
}

function plotsSvg() {
  return stacked([...document.querySelectorAll("#curves figure")].map(partOf));
}

function patternsSvg() {
  const grids = [...document.querySelectorAll("#patterns .grids figure")].map(figure => {
    const canvas = figure.querySelector("canvas"), element = document.createElementNS(NAMESPACE, "image");
    element.setAttribute("href", canvas.toDataURL());
    return { text: figure.firstChild.textContent, element, width: canvas.width, height: canvas.height };
  });
  return stacked([...grids, ...[...document.querySelectorAll("#patterns .large figure")].map(partOf)]);
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
      edges: Object.fromEntries(model.list.map(edge => [edgeName(edge), { score: edge.score, in_graph: kept.has(edge) }])),
    };
  });
  return { state: stateText(), circuits: all };
}

export const DRAWINGS = { circuit: () => graphSvg("circuit"), difference: () => graphSvg("difference"), patterns: patternsSvg, curves: plotsSvg };
export const TABLES = { circuit: circuitsJson, difference: circuitsJson, curves: () => data.plots };
