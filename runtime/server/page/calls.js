// The equivalent calls: the same request for curl, for OpenAI's client, and for neo_tf itself.

/** A text in single quotes, as a shell reads it. */
const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** A text, a number, a list or an object of these as Python writes it: as JSON does, with spaces. */
function literal(value) {
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
}

const named = (entries) => entries.map(([name, value]) => `    ${name}=${literal(value)},\n`).join("");

const OPENAI = ["model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop"];

/** The request without what the page alone needs: log-probabilities change no text. */
function plain({ logprobs, ...body }) {
  return body;
}

/**
 * curl, streaming.
 * body: of the request. address: of /v1/completions. withKey: whether the server asks for a key.
 */
export function curl(body, address, withKey) {
  const key = withKey ? `  -H "Authorization: Bearer $NEO_TF_API_KEY" \\\n` : "";
  const data = shellQuoted(JSON.stringify({ ...plain(body), stream: true }, null, 2));
  return `curl --no-buffer ${shellQuoted(address)} \\\n${key}  -H 'Content-Type: application/json' \\\n  --data-raw ${data}\n`;
}

/** OpenAI's Python client, streaming. base: the address of /v1. */
export function openai(body, base, withKey) {
  const entries = Object.entries(plain(body));
  const own = entries.filter(([name]) => OPENAI.includes(name));
  const extra = entries.filter(([name]) => !OPENAI.includes(name));
  const key = withKey ? `os.environ["NEO_TF_API_KEY"]` : `"none"`;
  const more = extra.length ? `    extra_body=${literal(Object.fromEntries(extra))},\n` : "";
  return `${withKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(base)}, api_key=${key})
stream = client.completions.create(
${named(own)}${more}    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].text, end="", flush=True)
print()
`;
}

/** neo_tf's pipeline, in Python, on a machine that has the model's folder. */
export function pipeline(body) {
  const call = [["max_new_tokens", body.max_tokens]];
  if (body.repetition_penalty !== 1) call.push(["repetition_penalty", body.repetition_penalty]);
  if (body.stop) call.push(["stop_strings", body.stop]);
  const drawn = ["temperature", "top_p", "top_k", "min_p", "seed"].filter((name) => body[name] !== undefined);
  const isDrawn = body.temperature > 0;
  const sampling = isDrawn ? drawn.map((name) => [name, body[name]]) : [];
  const stop = body.stop ? "    include_stop_str_in_output=False,\n" : "";
  return `from neo_tf import pipeline

generator = pipeline("text-generation", model=${literal(body.model)})  # or the path of its folder
results = generator(
    ${literal(body.prompt)},
    do_sample=${isDrawn ? "True" : "False"},
${named([...call, ...sampling])}${stop}    return_full_text=False,
)
print(results[0]["generated_text"])
`;
}
