// transformers.js over an exported folder, as it is: {"folder", "modules", "tasks": [{"prompts", "options"}]} in,
// tokens of every row out. A task has one prompt: ids, or a text, which the folder's tokenizer makes ids of.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const job = JSON.parse(readFileSync(0, "utf8"));
const library = `${job.modules}/@huggingface/transformers/dist/transformers.node.mjs`;
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import(pathToFileURL(library));
env.allowRemoteModels = false;

const settings = { subfolder: "", dtype: "fp32", use_external_data_format: true };
const model = await AutoModelForCausalLM.from_pretrained(job.folder, settings);
const answers = [];
for (const { prompts: [prompt], options } of job.tasks) {
  const text = typeof prompt === "string";
  const ids = text ? (await AutoTokenizer.from_pretrained(job.folder)).encode(prompt) : prompt;
  const tensor = (values) => new Tensor("int64", BigInt64Array.from(values.map(BigInt)), [1, values.length]);
  const inputs = { input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) };
  const found = await model.generate({ ...inputs, ...options });
  answers.push(found.tolist().map((row) => row.map(Number)));
}
console.log(JSON.stringify(answers));
