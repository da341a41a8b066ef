/** Names of parts, and texts for tokens and numbers. */

import { thousands } from "../pages/dom.js";

const PART = /^(?:a(\d+)(?:\.h(\d+)(?::(\d+)->(\d+))?)?|m(\d+)|p(\d+))$/;

/** The numbers in a part's name: {layer, head, key, query, mlp, pos}, undefined where it has none; null if it is not a part's name. */
export function partOf(name) {
  const found = PART.exec(name);
  if (!found) return null;
  const [layer, head, key, query, mlp, pos] = found.slice(1).map(text => (text === undefined ? undefined : Number(text)));
  return { layer, head, key, query, mlp, pos };
}

/** Is this the name of an attention edge? */
export const isEdge = name => partOf(name)?.key !== undefined;

/** A token with its spaces made visible if it consists of spaces only. */
export const visible = text => (text.trim() ? text : text.replaceAll(" ", "␣"));

export const percent = share => (100 * share).toFixed(1);
export const quoted = text => `“${text}”`;
export const count = (number, noun) => `${thousands(number)} ${noun}${number === 1 ? "" : "s"}`;
