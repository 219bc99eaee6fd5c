// One sample: a card with its text, its tokens, its state and what can be done with it.

import { ApiError, complete } from "./api.js";
import { button, copy, element } from "./dom.js";
import { Alignment } from "./tokens.js";

const MOST_RETRIES = 8; // where the server is busy
const LONGEST_WAIT = 60; // seconds
const PROMPT_SHOWN = 160; // characters of a prompt's end

const REASONS = {
  stop: "Ended by itself or at a stop string",
  length: "Ended at the limit of new tokens",
  time: "Ended by the server's limit of time",
  content_filter: "Withheld by the server's filter",
};

/**
 * A sample of a request, which `run` writes.
 *
 * number: of the sample on the board, from 1.
 * body: of the request, with the sample's own seed.
 * on: {changed(sample), judged(sample), code(sample), key(message), say(text)}: what the page does then.
 *
 * state: "waiting", "writing", "done", "stopped" or "failed".
 * verdict: "kept", "discarded" or null.
 */
export class Sample {
  constructor(number, body, on) {
    this.number = number;
    this.body = body;
    this.text = "";
    this.state = "waiting";
    this.verdict = null;
    this.reason = null;
    this.tokenCount = 0;
    this.created = null;
    this.#on = on;
    this.#build();
  }

  #on;
  #controller = new AbortController();
  #alignment = new Alignment();
  #unseen = []; // pieces of text that the next frame shows
  #frame = 0;

  get isRunning() {
    return this.state === "waiting" || this.state === "writing";
  }

  /** Asks the server, and writes the text as it comes. Never throws: what goes wrong shows on the card. */
  async run() {
    this.#controller = new AbortController();
    this.#clear();
    try {
      await this.#withPatience();
      this.#end("done", REASONS[this.reason] ?? "Ended");
    } catch (error) {
      if (this.#controller.signal.aborted) {
        this.#end("stopped", "Stopped");
      } else {
        this.error = error;
        this.#end("failed", error instanceof ApiError ? error.sentence : `${error}`);
        if (!(error instanceof ApiError)) throw error; // a fault of this page: the console shows where
        if (error.kind === "key") this.#on.key(error.message);
      }
    }
  }

  /** Ends it: the connection is closed, and the server frees its slot. */
  stop() {
    if (this.isRunning) this.#controller.abort();
  }

  judge(verdict) {
    this.verdict = this.verdict === verdict ? null : verdict;
    this.#show();
    this.#on.judged(this);
  }

  /** What is downloaded of a kept sample. */
  record() {
    const { prompt, model, seed, logprobs, ...settings } = this.body;
    const finish_reason = this.reason ?? (this.state === "done" ? null : this.state);
    return { prompt, text: this.text, model, seed, settings, finish_reason, tokens: this.tokenCount, created: this.created };
  }

  /** Requests; where the server is busy, waits as long as it says and requests again. */
  async #withPatience() {
    for (let tries = 0; ; tries++) {
      try {
        return await this.#stream();
      } catch (error) {
        if (!(error instanceof ApiError) || error.kind !== "busy" || tries >= MOST_RETRIES) throw error;
        await this.#wait(Math.min(error.retryAfter ?? 2, LONGEST_WAIT));
      }
    }
  }

  async #wait(seconds) {
    for (let left = Math.max(1, seconds); left > 0; left--) {
      this.#note(`The server is busy. Next try in ${left} s`);
      await second(this.#controller.signal);
    }
    this.#note("Waiting for the server");
  }

  async #stream() {
    for await (const chunk of complete(this.body, this.#controller.signal)) {
      const choice = chunk.choices[0];
      if (chunk.usage) this.tokenCount = chunk.usage.completion_tokens;
      if (!choice) continue;
      const tokens = tokensOf(choice.logprobs);
      if (this.state === "waiting" && (choice.text || tokens.length)) this.#begin();
      if (!chunk.usage) this.tokenCount += tokens.length;
      this.text += choice.text;
      this.#append(this.#alignment.add(choice.text, tokens));
      if (choice.finish_reason) this.reason = choice.finish_reason;
    }
  }

  #clear() {
    this.text = "";
    this.error = null;
    this.reason = null;
    this.tokenCount = 0;
    this.created = new Date().toISOString();
    this.#alignment = new Alignment();
    this.written.replaceChildren(this.#tail);
    this.#tail.textContent = "";
    this.state = "waiting";
    this.#note("Waiting for the server");
    this.#show();
    this.#on.changed(this);
  }

  #begin() {
    this.state = "writing";
    this.#note("Writing");
    this.#show();
  }

  #end(state, note) {
    this.#append(this.#alignment.finish());
    this.#draw(); // a tab in the background has no frames
    this.state = state;
    this.#note(note);
    this.#show();
    this.#on.changed(this);
  }

  /** Shows text with the next frame: laying a long text out for each token would take longer than the model. */
  #append(settled) {
    this.#unseen.push(...settled);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { scrollHeight, scrollTop, clientHeight } = this.textBox;
    this.#tail.before(...this.#unseen.map(({ text, tokens }) => spanOf(text, tokens)));
    this.#unseen = [];
    this.#tail.textContent = this.#alignment.text;
    // Who reads at the end stays at the end; who has scrolled back is left in peace.
    if (scrollHeight - scrollTop - clientHeight < 40) this.textBox.scrollTop = this.textBox.scrollHeight;
  }

  #note(text) {
    this.noteLine.textContent = text;
  }

  // ---- the card

  #tail = element("span", {}); // text whose tokens are not known yet

  #build() {
    const name = `Sample ${this.number}`;
    const id = `sample-${this.number}`;
    const prompt = this.body.prompt;
    const shown = prompt.length > PROMPT_SHOWN ? `…${tailOf(prompt, PROMPT_SHOWN)}` : prompt;
    this.written = element("span", { className: "written" });
    this.textBox = element("div", { className: "text", dir: "auto", tabIndex: 0 }, [
      element("span", { className: "prompt" }, [shown]),
      this.written,
    ]);
    this.textBox.setAttribute("role", "group");
    this.textBox.setAttribute("aria-label", `Text of sample ${this.number}. The arrow keys go from token to token.`);
    this.noteLine = element("p", { className: "note-line" });
    this.meta = element("p", { className: "meta" });
    this.buttons = {
      stop: button("Stop", () => this.stop(), `Stop sample ${this.number}`),
      again: button("Try again", () => this.run(), `Try again: sample ${this.number}`),
      keep: button("Keep", () => this.judge("kept"), `Keep sample ${this.number}`),
      discard: button("Discard", () => this.judge("discarded"), `Discard sample ${this.number}`),
      copy: button("Copy", () => this.#copy(), `Copy prompt and text of sample ${this.number}`),
      code: button("Code", () => this.#on.code(this), `Show sample ${this.number} as code`),
    };
    this.card = element("article", { className: "sample", id }, [
      element("div", { className: "head" }, [element("h3", { id: `${id}-title` }, [name]), this.meta]),
      this.textBox,
      this.noteLine,
      element("div", { className: "actions" }, Object.values(this.buttons)),
    ]);
    this.card.setAttribute("aria-labelledby", `${id}-title`);
    this.written.append(this.#tail);
    this.#show();
  }

  #show() {
    const { stop, again, keep, discard, copy: copyButton } = this.buttons;
    const focused = document.activeElement;
    this.card.dataset.state = this.state;
    this.card.dataset.verdict = this.verdict ?? "";
    this.card.setAttribute("aria-busy", this.isRunning);
    stop.hidden = !this.isRunning;
    again.hidden = this.state !== "failed";
    for (const each of [keep, discard]) each.hidden = this.isRunning || !this.text;
    copyButton.hidden = !this.text;
    keep.setAttribute("aria-pressed", this.verdict === "kept");
    discard.setAttribute("aria-pressed", this.verdict === "discarded");
    const count = `${this.tokenCount} ${this.tokenCount === 1 ? "token" : "tokens"}`;
    const isCounted = !this.isRunning && this.tokenCount > 0;
    this.meta.textContent = `seed ${this.body.seed}${isCounted ? ` · ${count}` : ""}`;
    if (this.card.contains(focused) && focused.hidden) this.textBox.focus(); // never lost with a button that goes
  }

  async #copy() {
    const isDone = await copy(this.body.prompt + this.text);
    this.#on.say(isDone ? `Sample ${this.number} is copied.` : "The browser does not allow copying.");
  }
}

/** Waits for a second, or throws when the signal comes. */
function second(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** The end of a text, not cut inside of a character. */
function tailOf(text, length) {
  return text.slice(-length).replace(/^[\uDC00-\uDFFF]/, "");
}

/** The tokens of a chunk: {name, logprob, top: [[name, logprob], ...]}, the most likely first. */
function tokensOf(logprobs) {
  if (!logprobs) return [];
  return logprobs.tokens.map((name, index) => ({
    name,
    logprob: logprobs.token_logprobs[index],
    top: Object.entries(logprobs.top_logprobs?.[index] ?? {}).sort((one, other) => other[1] - one[1]),
  }));
}

/** The span of a piece of text. What its tokens are is kept beside it, for the details. */
export const tokensOfSpan = new WeakMap();

function spanOf(text, tokens) {
  if (!tokens.length) return document.createTextNode(text);
  const span = element("span", { className: "token", tabIndex: -1 }, [text]);
  if (!text) span.classList.add("unwritten");
  // A piece is as likely as all of its tokens one after the other.
  const logprob = tokens.reduce((sum, token) => sum + token.logprob, 0);
  span.style.setProperty("--surprise", Math.min(1, -logprob / 7).toFixed(3));
  tokensOfSpan.set(span, tokens);
  return span;
}
