// Making elements. Text is always set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children, which are elements or texts. */
export function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** A button. label: what a screen reader says where the text alone would not do. */
export function button(text, action, label = text) {
  const made = element("button", { type: "button" }, [text]);
  if (label !== text) made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

/** Copies a text. Returns whether the browser allowed it. */
export async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      return false;
    }
  }
  // Over plain HTTP from another machine browsers have the old way alone.
  const before = document.activeElement;
  const area = element("textarea", { value: text, readOnly: true, className: "unseen" });
  (before?.closest("dialog") ?? document.body).append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  before?.focus();
  return isDone;
}

/** Offers a text as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
