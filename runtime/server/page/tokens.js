// Which part of a text each token wrote. The text is the server's own; tokens are only laid over it.

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lossy = new TextDecoder("utf-8", { ignoreBOM: true });
const encoder = new TextEncoder();
const FARTHEST_TOKEN = 8; // how far a token is looked for where the text differs from its tokens
const FARTHEST_CHARACTER = 64;

/**
 * The bytes of a token as the server names it: its text, or `bytes:\xe2\x82` where it is a part of a character.
 */
export function bytesOf(name) {
  const raw = /^bytes: ?((?:\\x[0-9a-f]{2})+)$/i.exec(name);
  if (!raw) return encoder.encode(name);
  return Uint8Array.from(raw[1].split("\\x").slice(1), (digits) => parseInt(digits, 16));
}

/** Whether a token is only a part of a character, so that it has no text of its own. */
export const isPart = (name) => /^bytes: ?\\x/i.test(name);

const NAMES = { "\n": "⏎", "\r": "␍", "\t": "⇥", " ": "␣", "\u00a0": "⍽" };
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu; // controls, marks of direction, separators

/** A token to be read by people: blanks get signs, unseen characters and bytes their numbers. */
export function visible(name) {
  if (isPart(name)) return [...bytesOf(name)].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  const signs = name.replace(/[\n\r\t \u00a0]/g, (character) => NAMES[character]);
  return signs.replace(UNSEEN, (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

/** Whether bytes could become whole characters if others came after them. */
function isBeginning(bytes) {
  // In a stream the decoder waits for the rest of a last character, and throws only for what nothing can mend.
  try {
    new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes, { stream: true });
    return true;
  } catch {
    return false;
  }
}

function whole(bytes) {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

function joined(tokens) {
  return Uint8Array.from(tokens.flatMap((token) => [...bytesOf(token.name)]));
}

/**
 * Lays the tokens of a growing text over it.
 *
 * `add` takes what a chunk of the stream brings and returns what is settled: a list of {text, tokens}, whose texts add up
 * to the whole text. One token has a text; several have one together where they are the bytes of one character. A text
 * without tokens is one that no token explains; tokens without a text wrote nothing that was kept, such as an
 * end-of-text token or a stop string. What is not settled yet is in `text`.
 */
export class Alignment {
  constructor() {
    this.text = ""; // what is not settled yet
    this.tokens = [];
  }

  add(text, tokens = []) {
    this.text += text;
    this.tokens.push(...tokens);
    return this.#settle(false);
  }

  /** What is left at the end. */
  finish() {
    const settled = this.#settle(true);
    if (this.text) settled.push({ text: this.text, tokens: [] });
    this.text = "";
    this.tokens = [];
    return settled;
  }

  #settle(isEnd) {
    const settled = [];
    while (this.tokens.length) {
      const next = this.#next(isEnd);
      if (next === null) break;
      this.text = this.text.slice(next.text.length);
      this.tokens.splice(0, next.tokens.length);
      settled.push(next);
    }
    return settled;
  }

  /** The next piece that is settled, or null where it takes more text or tokens to know. */
  #next(isEnd) {
    for (let count = 1; count <= this.tokens.length; count++) {
      const tokens = this.tokens.slice(0, count);
      const bytes = joined(tokens);
      const isLast = count === this.tokens.length;
      if (whole(bytes) === null && isBeginning(bytes)) {
        if (!isLast) continue;
        if (!isEnd) return null;
      }
      const written = lossy.decode(bytes);
      if (this.text.startsWith(written)) return { text: written, tokens };
      if (written.startsWith(this.text)) {
        if (!isEnd) return null; // its text is still on the way
        return { text: this.text, tokens }; // a stop string ended the text inside the token
      }
      break;
    }
    return this.#skip(isEnd);
  }

  /**
   * The text goes on with something else than the next token: some tokens write nothing, and of others the text is
   * changed (spaces before punctuation are taken away). The next token that is found again ends the gap.
   */
  #skip(isEnd) {
    for (let count = 0; count < Math.min(this.tokens.length, FARTHEST_TOKEN); count++) {
      const text = whole(bytesOf(this.tokens[count].name));
      const start = text ? this.text.slice(0, FARTHEST_CHARACTER).indexOf(text) : -1;
      if (start >= 0 && start + count > 0) return { text: this.text.slice(0, start), tokens: this.tokens.slice(0, count) };
    }
    return isEnd ? { text: this.text, tokens: [...this.tokens] } : null;
  }
}
