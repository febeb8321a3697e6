// Small helpers for the elements of the page.

export const $ = (id) => document.getElementById(id);

export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

export function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}
