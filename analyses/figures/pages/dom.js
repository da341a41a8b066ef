// Elements, and files that the page offers: what both pages need.

/** @type {(id: string) => any} */
export const byId = id => document.getElementById(id);

/** @type {() => any} the JSON that the page was filled with */
export const pageData = () => JSON.parse(byId("data").textContent);

/**
 * @param {Element} parent
 * @param {string} tag
 * @param {Record<string, any>} attributes
 * @param {string=} text
 * @returns {any} an SVG element
 */
export function draw(parent, tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  return parent.appendChild(filled(element, attributes, text));
}

/**
 * @param {Element} parent
 * @param {string} tag
 * @param {Record<string, any>=} attributes
 * @param {string=} text
 * @returns {any} an HTML element
 */
export function make(parent, tag, attributes = {}, text) {
  return parent.appendChild(filled(document.createElement(tag), attributes, text));
}

/** @type {(element: Element, attributes: Record<string, any>, text?: string) => Element} */
function filled(element, attributes, text) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @type {(text: string) => string} an SVG as text, with the values of the page's CSS variables */
export function withoutVariables(text) {
  const computed = getComputedStyle(document.documentElement);
  return text.replace(/var\((--[\w-]+)\)/g, (_, name) => computed.getPropertyValue(name).trim());
}

/** @type {(blob: Blob | null, file: string) => void} */
export function offer(blob, file) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(/** @type {Blob} */ (blob));
  link.download = file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** @type {(text: string, width: number, height: number, file: string) => void} an SVG as text, on paper, four times its size */
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
