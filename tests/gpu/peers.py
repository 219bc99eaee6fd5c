"""Measures how fast another system decodes on CUDA: `python peers.py transformers SIZE BATCHES PROMPT NEW`.

For `optimum`, an ONNX folder takes SIZE's place. The last line that it prints is {"tokens_per_s", "batches"} in JSON.
"""

import json
import sys
import time

import torch


def transformers_model(size):
    """transformers' GPTNeoForCausalLM of a published shape in fp16 on CUDA, with random weights."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    from neo_tf.checkpoints.initialise import PRESETS

    shape = PRESETS[size]
    config = GPTNeoConfig(
        hidden_size=shape.n_embd,
        num_layers=shape.n_layer,
        num_heads=shape.n_head,
        attention_types=[[["global", "local"], shape.n_layer // 2]],
        max_position_embeddings=shape.n_ctx,
        vocab_size=shape.n_vocab,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.float16)
        model = GPTNeoForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def optimum_model(folder):
    """Optimum's ORTModelForCausalLM of an ONNX folder on CUDA."""
    from optimum.onnxruntime import ORTModelForCausalLM

    return ORTModelForCausalLM.from_pretrained(folder, provider="CUDAExecutionProvider")


def tokens_per_second(model, batch, prompt_tokens, new_tokens):
    """New tokens a second of a batch of greedy continuations, the prompt included; the second of two runs."""
    ids = torch.ones((batch, prompt_tokens), dtype=torch.int64, device="cuda")
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return batch * new_tokens / seconds


def main():
    """Runs the command."""
    name, model, batches, prompt_tokens, new_tokens = sys.argv[1:]
    make = {"transformers": transformers_model, "optimum": optimum_model}[name]
    made = make(model)
    found = {}
    for batch in batches.split(","):
        found[batch] = tokens_per_second(made, int(batch), int(prompt_tokens), int(new_tokens))
    print(json.dumps({"tokens_per_s": found["1"], "batches": found}))


if __name__ == "__main__":
    main()
