/** Names of parts, and numbers, in words. */

import { thousands } from "../pages/dom.js";

const PART = /^(?:a(\d+)(?:\.h(\d+)(?::(\d+)->(\d+))?)?|m(\d+)|p(\d+))$/;

/** The numbers in the name of a part: {layer, head, key, query, mlp, pos}, those that it has; null for other names. */
export function partOf(name) {
  const found = PART.exec(name);
  if (!found) return null;
  const [layer, head, key, query, mlp, pos] = found.slice(1).map(text => (text === undefined ? undefined : Number(text)));
  return { layer, head, key, query, mlp, pos };
}

/** A token as it can be seen: one of spaces alone is shown as such. */
export const visible = text => (text.trim() ? text : text.replaceAll(" ", "␣"));

export const percent = share => (100 * share).toFixed(1);
export const quoted = text => `“${text}”`;
export const count = (number, noun) => `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
