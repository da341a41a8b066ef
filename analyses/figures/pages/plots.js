// The plots of the last tab, each as its own SVG.

import { draw, make } from "./dom.js";
import { data } from "./state.js";

const BOX = { left: 52, right: 412, top: 8, bottom: 236, width: 420, height: 274 };

function ticks(low, high, log) {
  if (log) {
    const decades = [], full = Math.log10(high / low) > 1.5;
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) for (const digit of full ? [1] : [1, 2, 5]) decades.push(digit * 10 ** power);
    return decades.filter(value => value >= low * 0.999 && value <= high * 1.001);
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map(digit => digit * power).find(value => value >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function extent(values, pad) {
  const known = values.filter(Number.isFinite);
  const low = known.length ? Math.min(...known) : 0, high = known.length ? Math.max(...known) : 1;
  const extra = pad * (high - low) || (high === low ? Math.abs(high) / 2 || 1 : 0);
  return [low - extra, high + extra];
}

function scales(plot) {
  const all = name => plot.series.flatMap(series => series[name]);
  const logs = all("x").filter(x => x > 0);
  let [xLow, xHigh] = plot.log_x ? [Math.min(...logs), Math.max(...logs)] : extent(all("x"), 0.03);
  if (plot.log_x && !(xHigh > xLow)) [xLow, xHigh] = Number.isFinite(xLow) ? [xLow / 2, xHigh * 2] : [1, 10];
  else if (plot.log_x) [xLow, xHigh] = extent([xLow, xHigh].map(Math.log), 0.03).map(Math.exp);
  const [yLow, yHigh] = extent([...all("y"), ...all("low"), ...all("high"), ...plot.guides], 0.05);
  const part = x => (plot.log_x ? Math.log(x / xLow) / Math.log(xHigh / xLow) : (x - xLow) / (xHigh - xLow));
  const x = value => (Number.isFinite(value) && (!plot.log_x || value > 0) ? BOX.left + part(value) * (BOX.right - BOX.left) : NaN);
  const y = value => (Number.isFinite(value) ? BOX.bottom - (value - yLow) / (yHigh - yLow) * (BOX.bottom - BOX.top) : NaN);
  const yTicks = ticks(yLow, yHigh, false), widest = Math.max(...yTicks.map(value => widthOf(tickText(value, plot.percent_y), 11)));
  return { x, y, xTicks: ticks(xLow, xHigh, plot.log_x), yTicks, left: Math.min(0, BOX.left - 19 - widest) };  // left: below 0 if tick labels need more room
}

function tickText(value, percents) {
  const shown = +(percents ? 100 * value : value).toPrecision(6), size = Math.abs(shown);  // without trailing zeros
  const text = size >= 1e5 || (shown && size < 1e-3) ? shown.toExponential() : shown.toLocaleString("en", { maximumSignificantDigits: 6 });
  return percents ? `${text} %` : text;
}

function widthOf(text, size) {  // approximate
  return 0.6 * size * text.length;
}

export function addPlot(plot) {
  const figure = document.querySelector("#curves .plots").appendChild(make("figure"));
  figure.appendChild(make("h2", {}, plot.title));
  const svg = figure.appendChild(draw("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": `${plot.title}: ${plot.y_label} against ${plot.x_label}`, "font-size": 11 }));
  const scale = scales(plot);
  addAxes(svg, plot, scale);
  for (const series of plot.series) addSeries(svg, series, scale);
  plot.notes.forEach((note, i) => svg.appendChild(draw("text", { x: BOX.right - 5, y: BOX.bottom - 8 - 14 * (plot.notes.length - 1 - i), "text-anchor": "end", stroke: "var(--paper)", "stroke-width": 3, "paint-order": "stroke" }, note)));
  svg.setAttribute("viewBox", `${scale.left} 0 ${BOX.width - scale.left} ${addSeriesNames(svg, plot.series)}`);
}

function addSeriesNames(svg, all) {  // below the axes, as many per row as fit; returns the total height
  let x = BOX.left, y = BOX.height + 10;
  for (const series of all) {
    const width = 34 + 6.2 * series.name.length;
    if (x > BOX.left && x + width > BOX.width) { x = BOX.left; y += 16; }
    if (series.joined) svg.appendChild(draw("path", { d: `M${x} ${y}h22`, stroke: ink(series), "stroke-width": 1.8, "stroke-dasharray": series.dotted ? "2 3" : "none" }));
    addMarker(svg, series, x + 11, y);
    svg.appendChild(draw("text", { x: x + 28, y: y + 4 }, series.name));
    x += width + 8;
  }
  return y + 10;
}

function addAxes(svg, plot, { x, y, xTicks, yTicks, left }) {
  for (const value of yTicks) {
    svg.appendChild(draw("path", { d: `M${BOX.left} ${y(value)}H${BOX.right}`, stroke: "var(--line)", "stroke-width": 0.6 }));
    svg.appendChild(draw("text", { x: BOX.left - 5, y: y(value) + 4, "text-anchor": "end" }, tickText(value, plot.percent_y)));
  }
  for (const value of xTicks) {
    svg.appendChild(draw("path", { d: `M${x(value)} ${BOX.bottom}v4`, stroke: "var(--quiet)" }));
    const text = tickText(value, plot.percent_x);
    svg.appendChild(draw("text", { x: Math.min(x(value), BOX.width - widthOf(text, 11) / 2), y: BOX.bottom + 16, "text-anchor": "middle" }, text));
  }
  svg.appendChild(draw("path", { d: `M${BOX.left} ${BOX.top}V${BOX.bottom}H${BOX.right}`, stroke: "var(--quiet)", fill: "none" }));
  for (const value of plot.guides) svg.appendChild(draw("path", { d: `M${BOX.left} ${y(value)}H${BOX.right}`, stroke: "var(--quiet)" }));
  svg.appendChild(draw("text", { x: (BOX.left + BOX.right) / 2, y: BOX.height - 6, "text-anchor": "middle" }, plot.x_label));
  svg.appendChild(draw("text", { "text-anchor": "middle", transform: `translate(${left + 11} ${(BOX.top + BOX.bottom) / 2}) rotate(-90)` }, plot.y_label));
}

function ink(series) {
  return `var(--${series.model in data.markers ? series.model : "ink"})`;
}

function addSeries(svg, series, { x, y }) {
  const points = series.x.map((value, i) => ({ x: x(value), y: y(series.y[i]), low: y(series.low[i]), high: y(series.high[i]), label: series.labels[i] })).filter(point => Number.isFinite(point.x) && Number.isFinite(point.y));
  const at = (point, level) => `${point.x.toFixed(1)} ${point[level].toFixed(1)}`;
  const sure = points.filter(point => Number.isFinite(point.low) && Number.isFinite(point.high));
  if (series.joined && sure.length > 1) svg.appendChild(draw("path", { d: `M${[...sure.map(p => at(p, "high")), ...sure.reverse().map(p => at(p, "low"))].join("L")}Z`, fill: ink(series), "fill-opacity": 0.15 }));
  if (!series.joined) for (const point of sure) svg.appendChild(draw("path", { d: `M${at(point, "low")}V${point.high.toFixed(1)}`, stroke: ink(series) }));
  if (series.joined && points.length) svg.appendChild(draw("path", { d: `M${points.map(p => at(p, "y")).join("L")}`, fill: "none", stroke: ink(series), "stroke-width": 1.8, "stroke-dasharray": series.dotted ? "2 3" : "none", "stroke-linejoin": "round" }));
  if (!series.joined || points.length <= 25) for (const point of points) addMarker(svg, series, point.x, point.y);
  for (const point of points) if (point.label) addPointLabel(svg, point);
}

function addPointLabel(svg, { x, y, label }) {  // on the left if there is no room on the right
  const fits = x + 6 + widthOf(label, 10) <= BOX.width;
  svg.appendChild(draw("text", { x: fits ? x + 6 : x - 6, y: Math.max(y - 5, 10), "font-size": 10, "text-anchor": fits ? "start" : "end" }, label));
}

function addMarker(svg, series, x, y) {
  const shape = data.markers[series.model] || "o", place = { stroke: ink(series), "stroke-width": 1.4, fill: shape === "o" ? "var(--paper)" : ink(series) };
  if (shape === "o") svg.appendChild(draw("circle", { cx: x, cy: y, r: 3, ...place }));
  else if (shape === "s") svg.appendChild(draw("rect", { x: x - 2.6, y: y - 2.6, width: 5.2, height: 5.2, ...place }));
  else svg.appendChild(draw("path", { d: shape === "^" ? `M${x} ${y - 3.4}l3.2 5.8h-6.4Z` : `M${x} ${y - 3.6}l3.6 3.6l-3.6 3.6l-3.6 -3.6Z`, ...place }));
}
