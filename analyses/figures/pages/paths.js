// Paths of edges that avoid all nodes, the same as in `lanes.py`: a curve, a line up a lane, another curve.

import { data } from "./state.js";

const { left, pitch, room, row, own, under, middle, last, bend, spread } = data.lanes;

/** @returns {number[]} x and y of eight points; if the edge is a single curve, the last five coincide */
export function curve({ source, destination }) {
  const x = data.leaves[2 * source], y = data.leaves[2 * source + 1];
  const toX = data.enters[2 * destination], toY = data.enters[2 * destination + 1];
  const goal = middle[destination], toLogits = destination === under.length - 1;
  if (toY >= row[source] - 0.01 || (Math.abs(x - goal) < pitch / 3 && !toLogits && toY >= own[source] - 0.01)) return points(x, y, toX, toY, toY, toX, toY);
  const [column, way] = toLogits && source > 0 ? [x, goal - x] : [goal, x - goal];
  const lane = Math.floor((column - left) / pitch + (way < -pitch / 3 ? -0.25 : 0.75));
  const beside = room * (((13 * source + 29 * destination) % spread) / ((spread - 1) / 2) - 1);
  const low = toLogits ? own[source] : row[source];
  return points(x, y, toX, toY, low, left + pitch * lane + beside, Math.min(low, toLogits ? last : under[destination]));
}

function points(x, y, toX, toY, low, lane, high) {
  const rise = bend * (y - low), fall = bend * (high - toY);
  return [x, y, x, y - rise, lane, low + rise, lane, low, lane, high, lane, high - fall, toX, toY + fall, toX, toY];
}

const isOne = at => at[7] === at[15];

/** Add an edge to the canvas path. Straight lines take half the time of curves; weak edges among thousands look the same either way. */
export function trace(context, at, straight) {
  context.moveTo(at[0], at[1]);
  if (straight) { for (const i of [6, 8, 14]) context.lineTo(at[i], at[i + 1]); return; }
  context.bezierCurveTo(at[2], at[3], at[4], at[5], at[6], at[7]);
  if (isOne(at)) return;
  context.lineTo(at[8], at[9]);
  context.bezierCurveTo(at[10], at[11], at[12], at[13], at[14], at[15]);
}

export function pathOf(edge) {
  const at = placesOf(edge).map(value => +value.toFixed(2)), first = `M${at[0]} ${at[1]}C${at.slice(2, 8).join(" ")}`;
  return isOne(at) ? first : `${first}L${at[8]} ${at[9]}C${at.slice(10).join(" ")}`;
}

/** The points of an edge, computed once. */
export function placesOf(edge) {
  return edge.places || (edge.places = curve(edge));
}

/** Squared distance of a point from an edge; Infinity if the edge clearly lies further away than `reach`. */
export function distanceTo(edge, x, y, reach) {
  const at = placesOf(edge);
  if (y > at[1] + reach || y < at[15] - reach) return Infinity;
  const first = toCurve(at, 0, x, y);
  if (isOne(at)) return first;
  return Math.min(first, toPiece(at[6], at[7], at[8], at[9], x, y), toCurve(at, 8, x, y));
}

function toCurve(at, i, x, y) {  // approximated by sixteen straight pieces
  let least = Infinity, fromX = at[i], fromY = at[i + 1];
  for (let piece = 1; piece <= 16; piece++) {
    const t = piece / 16, u = 1 - t, a = u * u * u, b = 3 * u * u * t, c = 3 * u * t * t, d = t * t * t;
    const nextX = a * at[i] + b * at[i + 2] + c * at[i + 4] + d * at[i + 6], nextY = a * at[i + 1] + b * at[i + 3] + c * at[i + 5] + d * at[i + 7];
    least = Math.min(least, toPiece(fromX, fromY, nextX, nextY, x, y));
    fromX = nextX; fromY = nextY;
  }
  return least;
}

function toPiece(fromX, fromY, toX, toY, x, y) {
  const alongX = toX - fromX, alongY = toY - fromY, length = alongX * alongX + alongY * alongY || 1;
  const part = Math.max(0, Math.min(1, ((x - fromX) * alongX + (y - fromY) * alongY) / length));
  return (fromX + part * alongX - x) ** 2 + (fromY + part * alongY - y) ** 2;
}
