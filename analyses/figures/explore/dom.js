/** Elements made of plain strings: what comes from a model or a person becomes text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Attributes that begin with "on" are listeners; false and null leave one out, but for aria's own. */
function make(tag, attributes, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function draw(tag, attributes, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** Hands a file to the browser's downloads. */
function offer(text, type, file) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const PART = /^(?:a(\d+)(?:\.h(\d+)(?::(\d+)->(\d+))?)?|m(\d+)|p(\d+))$/;

/** The numbers in the name of a part: {layer, head, key, query, mlp, pos}, those that it has; null for other names. */
function partOf(name) {
  const found = PART.exec(name);
  if (!found) return null;
  const [layer, head, key, query, mlp, pos] = found.slice(1).map(text => (text === undefined ? undefined : Number(text)));
  return { layer, head, key, query, mlp, pos };
}

const percent = share => (100 * share).toFixed(1);
const quoted = text => `“${text}”`;
const shorter = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
