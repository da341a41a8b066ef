// Elements built from plain strings, so that text from a model or a user never becomes markup; and file downloads.

/** @type {(id: string) => any} */
export const byId = id => document.getElementById(id);

/** @type {() => any} the JSON data embedded in the page */
export const pageData = () => JSON.parse(byId("data").textContent);

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element. Attributes starting with "on" are event listeners; false, null and undefined omit an attribute, except aria-*.
 * @param {string} tag
 * @param {Record<string, any>=} attributes
 * @param {...any} children
 * @returns {any}
 */
export function make(tag, attributes, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/**
 * The same for SVG.
 * @param {string} tag
 * @param {Record<string, any>=} attributes
 * @param {...any} children
 * @returns {any}
 */
export function draw(tag, attributes, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

/** Sets attributes and adds children as `make` does; returns the element. @type {(element: any, attributes?: Record<string, any>, children?: any[]) => any} */
export function dress(element, attributes = {}, children = []) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

/** @type {(text: string) => string} an SVG as text, with CSS variables replaced by their values on this page */
export function withoutVariables(text) {
  const computed = getComputedStyle(document.documentElement);
  return text.replace(/var\((--[\w-]+)\)/g, (_, name) => computed.getPropertyValue(name).trim());
}

/** @type {(blob: Blob | null, file: string) => void} download a file */
export function offer(blob, file) {
  const link = make("a", { href: URL.createObjectURL(/** @type {Blob} */ (blob)), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @type {(text: string, width: number, height: number, file: string) => void} download an SVG (as text) as a PNG of four times its size, on the page's background */
export function offerPng(text, width, height, file) {
  const image = new Image(), scale = 4;
  image.onload = () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: width * scale, height: height * scale });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--paper");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => offer(blob, file));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

/** @type {<T>(list: Iterable<T>, key: (item: T) => any) => Map<any, T[]>} */
export function grouped(list, key) {
  const groups = new Map();
  for (const item of list) {
    if (!groups.has(key(item))) groups.set(key(item), []);
    groups.get(key(item)).push(item);
  }
  return groups;
}

/** @type {(value: number) => string} 12,345; the first call of toLocaleString takes 10 ms, on a page that opens in 70 */
export const thousands = value => String(value).replace(/\B(?=(\d{3})+$)/g, ",");

export const shorter = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
