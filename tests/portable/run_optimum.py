"""Optimum's ORTModelForCausalLM over an exported folder, as it is.

{"folder", "tasks": [{"prompts", "options"}]} in; tokens of every row out, without the padding before them. Prompts of
one task are a batch, padded at the left.
"""

import json
import sys

import torch
from optimum.onnxruntime import ORTModelForCausalLM

PADDING = 0


def main():
    job, answers = json.load(sys.stdin), []
    model = ORTModelForCausalLM.from_pretrained(job["folder"])
    for task in job["tasks"]:
        width = max(map(len, task["prompts"]))
        pads = [width - len(ids) for ids in task["prompts"]]
        ids = torch.tensor([[PADDING] * pad + ids for pad, ids in zip(pads, task["prompts"], strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        found = model.generate(ids, attention_mask=mask, pad_token_id=PADDING, **task["options"])
        answers.append([row[pad:].tolist() for pad, row in zip(pads, found, strict=True)])
    print(json.dumps(answers))


main()
