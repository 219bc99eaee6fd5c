"""onnxruntime-genai over an exported folder, as it is: {"folder", "tasks": [{"prompts", "options"}]} in, tokens out.

Prompts of one task are a batch; they are padded at the right, as genai's own tokenizer pads.
"""

import json
import sys

import numpy as np
import onnxruntime_genai


def generate(model, padding, prompts, options):
    """Token ids of every row, prompt included."""
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(batch_size=len(prompts), **options)
    generator = onnxruntime_genai.Generator(model, params)
    width = max(map(len, prompts))
    generator.append_tokens(np.array([ids + [padding] * (width - len(ids)) for ids in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(row)] for row in range(len(prompts))]


def main():
    job = json.load(sys.stdin)
    with open(f"{job['folder']}/genai_config.json") as file:
        padding = json.load(file)["model"]["pad_token_id"]
    model = onnxruntime_genai.Model(job["folder"])
    print(json.dumps([generate(model, padding, task["prompts"], task["options"]) for task in job["tasks"]]))


main()
