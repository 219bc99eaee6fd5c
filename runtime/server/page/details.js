// A token's probability and its alternatives: under the pointer, at the keyboard's focus, or where a finger tapped.

import { byId, element } from "./dom.js";
import { tokensOfSpan } from "./sample.js";
import { isPart, visible } from "./tokens.js";

const GRACE = 160; // milliseconds in which the pointer may go from the token to its details

const box = byId("details");
let shown = null; // the span whose details are open
let timer = 0;

/** Watches a part of the page for pointers and keys. */
export function watch(root) {
  root.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const span = event.target.closest(".token");
    if (span) open(span);
  });
  root.addEventListener("pointerout", (event) => {
    if (event.pointerType !== "touch") closeSoon();
  });
  root.addEventListener("focusin", (event) => {
    const span = event.target.closest(".token");
    if (span) open(span);
  });
  root.addEventListener("focusout", closeSoon);
  root.addEventListener("keydown", onKey);
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", closeSoon);
  window.addEventListener("scroll", () => shown && place(), { passive: true, capture: true });
  window.addEventListener("resize", () => shown && place());
}

/** Closes the details. Returns whether they were open. */
export function close() {
  clearTimeout(timer);
  const wasOpen = shown !== null;
  shown?.classList.remove("current");
  shown = null;
  box.hidden = true;
  return wasOpen;
}

function closeSoon() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    const focused = document.activeElement;
    if (tokensOfSpan.has(focused)) open(focused); // the keyboard's token comes back when the pointer has left
    else close();
  }, GRACE);
}

function open(span) {
  clearTimeout(timer);
  if (span === shown) return;
  close();
  shown = span;
  span.classList.add("current");
  const tokens = tokensOfSpan.get(span);
  const many = element("p", { className: "quiet" }, [`${tokens.length} tokens write this together`]);
  box.replaceChildren(...(tokens.length > 1 ? [many] : []), ...tokens.flatMap(describe));
  box.hidden = false;
  place();
}

function onKey(event) {
  const text = event.target.closest(".text");
  if (!text || event.ctrlKey || event.metaKey || event.altKey) return;
  const spans = [...text.querySelectorAll(".token")];
  const next = target(event.key, spans, spans.indexOf(document.activeElement));
  if (!next) return;
  next.focus();
  event.preventDefault();
}

/** The token that a key leads to from the token of a number, which is -1 where the text itself has the focus. */
function target(key, spans, now) {
  if (key === "Home") return spans[0];
  if (key === "End") return spans.at(-1);
  if (key === "ArrowRight") return spans[Math.min(now + 1, spans.length - 1)];
  if (key === "ArrowLeft") return spans[Math.max(now - 1, 0)];
  if (now < 0) return null; // up and down scroll the text
  if (key === "ArrowDown") return inNextLine(spans[now], spans.slice(now + 1));
  if (key === "ArrowUp") return inNextLine(spans[now], spans.slice(0, now).reverse());
  return null;
}

/** Of the tokens that follow, in either direction, the one in the nearest other line that stands nearest. */
function inNextLine(from, spans) {
  const { left, top } = lastBox(from);
  let best = null;
  for (const span of spans) {
    const box = lastBox(span);
    if (Math.abs(box.top - top) < box.height / 2) continue; // the same line
    if (best && Math.abs(box.top - best.top) >= box.height / 2) break; // a line further on
    if (!best || Math.abs(box.left - left) < Math.abs(best.left - left)) best = { span, left: box.left, top: box.top };
  }
  return best?.span ?? from;
}

/** Where a token stands: its last line, where a line break is a part of it. */
function lastBox(span) {
  return [...span.getClientRects()].at(-1) ?? span.getBoundingClientRect();
}

// ---- what is shown

/** 12.3 %, and for what is rarer as many digits as say something. */
export function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  if (value >= 99.95) return value >= 99.995 ? "100 %" : `${value.toFixed(2)} %`;
  if (value >= 0.1) return `${value.toFixed(1)} %`;
  return value >= 0.0001 ? `${value.toPrecision(1).replace(/e.*/, "")} %` : "< 0.0001 %";
}

function describe(token) {
  const isListed = token.top.some(([name]) => name === token.name);
  const rows = isListed ? token.top : [...token.top, [token.name, token.logprob]];
  return [
    element("p", { className: "details-head" }, [sign(token.name), " ", element("b", {}, [percent(token.logprob)])]),
    ...(isPart(token.name) ? [element("p", { className: "quiet" }, ["a part of a character, as bytes"])] : []),
    element("ol", {}, rows.map(([name, logprob]) => row(name, logprob, name === token.name))),
  ];
}

function row(name, logprob, isChosen) {
  const bar = element("span", { className: "measure" });
  bar.style.setProperty("--share", `${Math.exp(logprob) * 100}%`);
  const made = element("li", {}, [sign(name), bar, element("span", { className: "number" }, [percent(logprob)])]);
  if (isChosen) {
    made.className = "chosen";
    made.append(element("span", { className: "unseen" }, [", chosen"]));
  }
  return made;
}

function sign(name) {
  return element("code", { dir: "auto" }, [visible(name) || "(no text)"]);
}

/** Below the token, or above it where there is no room; never outside of the window. */
function place() {
  const gap = 6;
  const lines = shown.getClientRects();
  const token = lines[0] ?? shown.getBoundingClientRect();
  const last = lines[lines.length - 1] ?? token;
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(Math.max(gap, token.left), document.documentElement.clientWidth - width - gap);
  const isRoomBelow = last.bottom + gap + height < window.innerHeight;
  box.style.left = `${left}px`;
  box.style.top = `${isRoomBelow ? last.bottom + gap : Math.max(gap, token.top - height - gap)}px`;
}
