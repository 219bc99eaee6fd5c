// The page: its form, the board of samples, those that are kept, and the key.

import * as api from "./api.js";
import { showCode } from "./code.js";
import * as details from "./details.js";
import { button, byId, download, element } from "./dom.js";
import { Sample } from "./sample.js";

const LOGPROBS = 5; // alternatives of each token
const LARGEST_SEED = 2 ** 31 - 1; // of those that are drawn here: short enough to be typed
const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];

const form = byId("request");
const board = byId("samples");
const empty = byId("empty");
let samples = [];
let kept = [];
let isDownloaded = true;
let waitingForKey = null; // what to do again when there is a key

let silence = 0;

/** Says a sentence on the page, and to screen readers. It goes away by itself: all of it shows elsewhere, too. */
function say(text) {
  clearTimeout(silence);
  byId("status").textContent = text;
  silence = setTimeout(() => byId("status").replaceChildren(), 6000);
}

// ---- the request

/** The stop strings: one a line, in which \n, \t and \\ stand for what cannot be typed. */
function stopStrings() {
  const signs = { n: "\n", t: "\t", r: "\r", "\\": "\\" };
  const lines = byId("stop-strings").value.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replace(/\\([ntr\\])/g, (_, sign) => signs[sign]));
}

/** The body of the request that the form describes, without a seed where none is given. */
function requestBody() {
  const body = { model: byId("model").value, prompt: byId("prompt").value };
  for (const name of NUMBERS) {
    if (byId(name).value !== "") body[name] = Number(byId(name).value);
  }
  const stop = stopStrings();
  if (stop.length) body.stop = stop;
  body.logprobs = LOGPROBS;
  return body;
}

function drawnSeed() {
  const [drawn] = crypto.getRandomValues(new Uint32Array(1));
  return drawn % (LARGEST_SEED - 16);
}

// ---- generating

async function generate() {
  clearErrors();
  if (form.querySelector("#more :invalid")) byId("more").open = true; // else nobody sees what is wrong
  if (!form.reportValidity()) return;
  for (const sample of samples) sample.stop();
  const body = requestBody();
  const seed = body.seed ?? drawnSeed();
  // Greedy samples would all be the same text.
  const count = body.temperature === 0 ? 1 : Number(byId("samples-count").value);
  const code = (sample) => showCode(sample.body);
  const on = { changed, judged: keep, code, key: (message) => askForKey(message, generate), say };
  samples = Array.from({ length: count }, (_, index) => new Sample(index + 1, { ...body, seed: seed + index }, on));
  details.close();
  board.replaceChildren(...samples.map((sample) => sample.card));
  board.dataset.count = count;
  showRunning();
  say(count === 1 ? "Writing a sample." : `Writing ${count} samples.`);
  if (matchMedia("(max-width: 56rem)").matches) board.scrollIntoView({ block: "start" });
  await Promise.all(samples.map((sample) => sample.run()));
}

function stop() {
  for (const sample of samples) sample.stop();
}

/** A sample has begun or ended. */
function changed(sample) {
  showRunning();
  if (!samples.includes(sample) || samples.some((each) => each.isRunning)) return;
  const failed = samples.filter((each) => each.state === "failed");
  showFieldError(failed[0]);
  const which = samples.length === 1 ? "The sample" : `${failed.length} of ${samples.length} samples`;
  if (failed.length) say(`${which} failed: ${failed[0].noteLine.textContent}`);
  else if (samples.some((each) => each.state === "stopped")) say("Stopped.");
  else say(samples.length === 1 ? "The sample is done." : `All ${samples.length} samples are done.`);
}

function showRunning() {
  const isRunning = samples.some((sample) => sample.isRunning);
  const hadFocus = document.activeElement === byId("stop");
  byId("stop").hidden = !isRunning;
  byId("stop-hint").hidden = !isRunning;
  document.body.classList.toggle("running", isRunning);
  if (hadFocus && !isRunning) byId("generate").focus();
}

// ---- errors

function clearErrors() {
  byId("form-error").hidden = true;
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Shows a refused request beside the field that the server named. */
function showFieldError(sample) {
  if (sample?.error?.kind !== "request") return;
  byId("form-error").textContent = sample.error.sentence;
  byId("form-error").hidden = false;
  const field = form.elements[sample.error.param];
  if (field instanceof HTMLElement) {
    if (byId("more").contains(field)) byId("more").open = true;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

function showProblem(error) {
  byId("form-error").textContent = error.sentence;
  byId("form-error").hidden = false;
}

// ---- keeping

/** A sample was kept or discarded, or is neither any more. */
function keep(sample) {
  const isKept = kept.includes(sample);
  if ((sample.verdict === "kept") === isKept) return;
  kept = isKept ? kept.filter((each) => each !== sample) : [...kept, sample];
  isDownloaded = kept.length === 0;
  showKept();
  say(isKept ? `No longer kept; ${kept.length} still are.` : `Kept; ${kept.length} in all.`);
}

function showKept() {
  byId("kept").hidden = kept.length === 0;
  byId("kept-title").textContent = `Kept (${kept.length})`;
  byId("kept-list").replaceChildren(...kept.map((sample) => {
    const remove = button("Remove", () => {
      sample.judge("kept"); // once more: it is no longer kept
      (byId("kept-list").querySelector("button") ?? byId("generate")).focus();
    }, `Remove: ${sample.text.slice(0, 40)}`);
    const text = element("p", { dir: "auto" }, [element("span", { className: "prompt" }, [sample.body.prompt]), sample.text]);
    return element("li", {}, [text, element("span", { className: "meta" }, [`seed ${sample.body.seed}`]), remove]);
  }));
}

function downloadKept() {
  const lines = kept.map((sample) => `${JSON.stringify(sample.record())}\n`);
  const time = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
  download(`samples-${time}.jsonl`, lines.join(""), "application/jsonl");
  isDownloaded = true;
  say(kept.length === 1 ? "The kept sample is downloaded." : `${kept.length} kept samples are downloaded.`);
}

// ---- the key and the models

function askForKey(message, again) {
  const dialog = byId("key-dialog");
  waitingForKey = again;
  byId("key-button").hidden = false;
  byId("key-error").textContent = message.slice(0, 1).toUpperCase() + message.slice(1);
  byId("key-error").hidden = !api.key.get(); // the first time nothing is wrong yet
  byId("forget-key").hidden = !api.key.get();
  if (!dialog.open) dialog.showModal();
}

function useKey() {
  api.key.set(byId("key").value.trim());
  byId("key").value = "";
  const again = waitingForKey;
  waitingForKey = null;
  connect(again === generate ? generate : undefined);
}

/** Asks the server for its models, and for a key if it wants one. Then goes on. */
async function connect(next) {
  try {
    const found = await api.models();
    byId("model").replaceChildren(...found.map(({ id }) => element("option", { value: id }, [id])));
    byId("key-button").hidden = !api.key.get();
    clearErrors();
    next?.();
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    if (error.kind === "key") askForKey(error.message, next ?? connect);
    else showProblem(error);
  }
}

// ---- the page's own events

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("model").value) generate();
  else connect(generate); // the server was not there when the page was loaded
});
byId("stop").addEventListener("click", stop);
byId("code-button").addEventListener("click", () => showCode(requestBody()));
byId("download").addEventListener("click", downloadKept);
byId("key-button").addEventListener("click", () => askForKey("", null));
byId("key-form").addEventListener("submit", useKey);
byId("forget-key").addEventListener("click", () => {
  api.key.forget();
  byId("key-dialog").close();
  connect();
});
for (const each of document.querySelectorAll("[data-close]")) {
  each.addEventListener("click", () => each.closest("dialog").close());
}
for (const slider of document.querySelectorAll(".slider")) {
  const field = byId(slider.dataset.for);
  slider.value = field.value;
  slider.addEventListener("input", () => { field.value = slider.value; });
  field.addEventListener("input", () => { slider.value = field.value; });
}
for (const name of ["shade", "fixed"]) {
  const box = byId(name);
  const show = () => document.body.classList.toggle(name, box.checked);
  box.addEventListener("change", show);
  show();
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    form.requestSubmit();
  }
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && !details.close()) stop();
});
window.addEventListener("beforeunload", (event) => {
  if (!isDownloaded) event.preventDefault(); // the browser asks before kept texts are lost
});

details.watch(board);
connect();
