// The dialog with the equivalent calls.

import { address, key } from "./api.js";
import { curl, openai, pipeline } from "./calls.js";
import { byId, copy } from "./dom.js";

const dialog = byId("code");
const tabs = [...dialog.querySelectorAll("[role=tab]")];
let body = null;
let call = "curl";

const NOTES = {
  curl: "The answer is a stream of JSON.",
  openai: "With the package openai.",
  pipeline: "On a machine that has the model. The same seed draws the same text.",
};

/** Shows a request as code. */
export function showCode(request) {
  body = request;
  select(call);
  dialog.showModal();
}

function textOf(name) {
  const withKey = key.get() !== "";
  if (name === "curl") return curl(body, address("v1/completions"), withKey);
  if (name === "openai") return openai(body, address("v1"), withKey);
  return pipeline(body);
}

function select(name) {
  call = name;
  for (const tab of tabs) {
    const isSelected = tab.dataset.call === name;
    tab.setAttribute("aria-selected", isSelected);
    tab.tabIndex = isSelected ? 0 : -1;
    if (isSelected) byId("code-text").setAttribute("aria-labelledby", tab.id);
  }
  byId("code-text").textContent = textOf(name);
  const needsKey = key.get() !== "" && name !== "pipeline";
  byId("code-note").textContent = NOTES[name] + (needsKey ? " It reads your key from NEO_TF_API_KEY." : "");
  byId("copy-code").textContent = "Copy";
}

for (const tab of tabs) tab.addEventListener("click", () => select(tab.dataset.call));
dialog.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const now = tabs.findIndex((tab) => tab.dataset.call === call);
  const next = tabs[(now + step + tabs.length) % tabs.length];
  select(next.dataset.call);
  next.focus();
});
byId("copy-code").addEventListener("click", async () => {
  byId("copy-code").textContent = (await copy(textOf(call))) ? "Copied" : "Not allowed by the browser";
});
