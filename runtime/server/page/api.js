// The server's HTTP interface: OpenAI's protocol, as any other client speaks it.

const KEY_NAME = "neo-tf key"; // in sessionStorage: this tab alone, until it is closed

export const key = {
  get: () => sessionStorage.getItem(KEY_NAME) ?? "",
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
  forget: () => sessionStorage.removeItem(KEY_NAME),
};

/** The address of a path of this server, below whatever path a proxy has put it. */
export const address = (path) => new URL(path, document.baseURI).href;

/**
 * An answer that is no result.
 * kind: "key", "busy", "closing", "request", "server", "network" or "cut".
 * param: the field of the request that is wrong, if the server names one.
 * retryAfter: seconds to wait, where the server says so.
 */
export class ApiError extends Error {
  constructor(kind, message, { param = null, retryAfter = null, status = 0 } = {}) {
    super(message);
    this.kind = kind;
    this.param = param;
    this.retryAfter = retryAfter;
    this.status = status;
  }

  /** The message with a capital letter, unless it begins with the name of a field. */
  get sentence() {
    return this.param ? this.message : this.message.slice(0, 1).toUpperCase() + this.message.slice(1);
  }
}

const NETWORK = "The server cannot be reached. Is it still running?";
const CUT = "The connection ended before the text did.";

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

function kindOf(status) {
  if (status === 401 || status === 403) return "key";
  if (status === 429) return "busy";
  if (status === 503) return "closing";
  return status >= 500 ? "server" : "request";
}

/** Seconds of a Retry-After header, which is a number or a date; null where there is none. */
export function retrySeconds(value, now = Date.now()) {
  if (!value) return null;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - now) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, Math.ceil(seconds)) : null;
}

async function errorOf(response) {
  let error = {};
  try {
    const body = await response.json();
    error = body.error ?? { message: body.detail };
  } catch {
    // Not the server's own words, but a proxy's: the status has to do.
  }
  const said = typeof error.message === "string" && error.message;
  const message = said || `The server answered with status ${response.status}.`;
  const retryAfter = retrySeconds(response.headers.get("retry-after"));
  return new ApiError(kindOf(response.status), message, { param: error.param, retryAfter, status: response.status });
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(address(path), { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", NETWORK);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** The models that the server has, as /v1/models lists them. */
export async function models() {
  const body = await (await ask("v1/models")).json();
  return body.data;
}

/**
 * Streams one completion.
 * body: the request, without `stream`.
 * signal: of an AbortController; aborting closes the connection, and the server frees the slot.
 * Yields the chunks of the stream. Throws an ApiError, or the AbortError of the signal.
 */
export async function* complete(body, signal) {
  const response = await ask("v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let isDone = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        isDone = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError("server", chunk.error.message); // it was too late for another status
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("cut", CUT);
  }
  if (!isDone) throw new ApiError("cut", CUT);
}

/** The data of each server-sent event in a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (waiting + value).split(/\r\n|\n|\r(?!$)/);
      waiting = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection is closed, also where its reader left early
  }
}
