"""Draws a small GPT-Neo at random: its config, its settings of generation, and how its weights are stored."""

import json

import torch
from safetensors.torch import save_file

TYPES = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
# transformers does not take these off: it would start from random weights.
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")


def random_config(draw, n_vocab):
    """config.json as a dict. Some of it says something of generation."""
    config = {
        "model_type": "gpt_neo",
        "architectures": ["GPTNeoForCausalLM"],
        "vocab_size": n_vocab,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": draw.choice([2, 4]),
        "attention_types": draw.choice([[[["global", "local"], 1]], [[["global"], 2]], [[["local"], 2]]]),
        "max_position_embeddings": 96,
        "window_size": draw.choice([4, 8, 256]),
        "attention_dropout": 0.0,
        "activation_function": draw.choice(["gelu_new", "gelu_new", "relu"]),
        "intermediate_size": draw.choice([None, 24]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
    }
    config |= _ids(draw, n_vocab)
    if draw.random() < 0.2:
        config["tie_word_embeddings"] = draw.random() < 0.5
    if draw.random() < 0.3:
        config |= _some(draw, _penalties(draw, n_vocab), 2)
    if draw.random() < 0.25:
        config["task_specific_params"] = {"text-generation": {"max_length": 5, "do_sample": True, "num_beams": 3}}
    if draw.random() < 0.1:
        config["prefix"] = draw.choice(["hello ", "", "the cat "])
    return config


def random_generation_config(draw, n_vocab):
    """generation_config.json as a dict, or None."""
    if draw.random() < 0.3:
        return None
    settings = _ids(draw, n_vocab) | _some(draw, _penalties(draw, n_vocab), 4) | _some(draw, _sampling(draw), 3)
    _keep_forced_tokens(settings)
    if draw.random() < 0.3:
        settings["_from_model_config"] = draw.random() < 0.5
    return settings | _some(draw, {"transformers_version": "4.40.0", "of_nobody": 1, "use_cache": False}, 2)


def _keep_forced_tokens(settings):
    """Takes forced tokens out of suppress_tokens: transformers does not load a folder that suppresses all of them."""
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = settings.get(name, [])
        forced = forced if isinstance(forced, list) else [forced]
        if "suppress_tokens" in settings:
            settings["suppress_tokens"] = [token for token in settings["suppress_tokens"] if token not in forced]
    if settings.get("suppress_tokens") == []:
        del settings["suppress_tokens"]


def _ids(draw, n_vocab):
    def one():
        return draw.randrange(n_vocab)

    every = {
        "bos_token_id": draw.choice([one(), one(), None]),
        "eos_token_id": draw.choice([one(), [one(), one()], [one() for _ in range(n_vocab // 3)], None]),
        "pad_token_id": draw.choice([one(), one(), None]),
    }
    return _some(draw, every, 3)


def _penalties(draw, n_vocab):
    """Settings that change which tokens come, and how many."""

    def some(most):
        return [draw.randrange(n_vocab) for _ in range(draw.randrange(1, most))]

    return {
        "max_length": draw.choice([3, 12, 20, 50]),
        "max_new_tokens": draw.choice([1, 5, 12]),
        "min_length": draw.choice([0, 5, 10, 40]),
        "min_new_tokens": draw.choice([2, 6]),
        "repetition_penalty": draw.choice([1.0, 1.2, 3.0, 0.8]),
        "no_repeat_ngram_size": draw.choice([0, 1, 2, 3]),
        "bad_words_ids": [some(3) for _ in range(3)],
        "suppress_tokens": some(n_vocab // 2),
        "begin_suppress_tokens": some(n_vocab // 2),
        "forced_bos_token_id": draw.randrange(n_vocab),
        "forced_eos_token_id": draw.choice([draw.randrange(n_vocab), some(3)]),
        "num_beams": draw.choice([1, 2, 3]),
        "length_penalty": draw.choice([0.0, 1.0, 2.0, -1.0]),
        "early_stopping": draw.choice([True, False, "never"]),
        "exponential_decay_length_penalty": [draw.choice([1, 3]), 1.5],
        "sequence_bias": [[[draw.randrange(n_vocab)], 5.0], [some(3), -8.0]],
        "renormalize_logits": draw.random() < 0.5,
        "remove_invalid_values": draw.random() < 0.5,
        "encoder_no_repeat_ngram_size": 0,
        "guidance_scale": draw.choice([None, 1.0]),
        "stop_strings": draw.choice([["at"], None, None, None]),
    }


def _sampling(draw):
    return {
        "do_sample": draw.random() < 0.5,
        "temperature": draw.choice([0.5, 1.0, 1.9]),
        "top_k": draw.choice([0, 1, 7, 50]),
        "top_p": draw.choice([0.5, 0.95, 1.0]),
        "min_p": draw.choice([0.1, None]),
        "typical_p": draw.choice([0.9, 1.0]),
        "epsilon_cutoff": draw.choice([0.0, 3e-4]),
        "eta_cutoff": draw.choice([0.0, 3e-4]),
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "num_return_sequences": 1,
    }


def _some(draw, every, most):
    return {name: every[name] for name in draw.sample(sorted(every), draw.randrange(most + 1))}


# ---- weights


def write_weights(draw, folder, config):
    """Writes a model's weights in a layout that is drawn.

    Returns:
        Whether transformers reads them from there. Where it does not, they lie in folder/plain, too.
    """
    tensors = _tensors(draw, config)
    dtype = draw.choice(TYPES)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    form = draw.choice(["safetensors", "safetensors", "bin"])
    if draw.random() < 0.3:
        heads = {"v_head.summary.weight": torch.zeros(1, 16), "score.weight": torch.ones(2, 16)}
        tensors |= dict([draw.choice(sorted(heads.items()))])
    if draw.random() < 0.3:
        tensors |= _masks(config, draw.random() < 0.5)
    wrapper = ""
    if draw.random() < 0.15:
        wrapper = draw.choice(WRAPPERS)
        tensors = {wrapper + name: tensor for name, tensor in tensors.items()}
        (folder / "plain").mkdir()
        save_file(plain, folder / "plain" / "model.safetensors", {"format": "pt"})
    _save(draw, folder, tensors, form)
    return not wrapper


def _tensors(draw, config):
    """float32 tensors under names that transformers reads."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    model = GPTNeoForCausalLM(GPTNeoConfig(**config))
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    found = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("attention.bias", "masked_bias")):
            continue
        # Wide enough that the best tokens lie far apart: rounding does not decide between them.
        spread = 1.0 if "wte" in name or "lm_head" in name else 0.3
        found[name] = spread * torch.randn(tensor.shape, generator=generator)
        if "ln_" in name and name.endswith("weight"):
            found[name] += 1
    embedding = found["transformer.wte.weight"]
    if len(embedding) > 50256:
        embedding[50256] *= 3  # the default end, which is to come now and then
    kind = draw.choice(["tied", "tied", "both", "head alone", "untied", "bare"])
    found.pop("lm_head.weight", None)
    if kind == "both":
        found["lm_head.weight"] = embedding.clone()
    elif kind == "head alone" and config.get("tie_word_embeddings", True):
        found["lm_head.weight"] = found.pop("transformer.wte.weight")
    elif kind == "untied" or config.get("tie_word_embeddings") is False:
        found["lm_head.weight"] = torch.randn(embedding.shape, generator=generator)
    elif kind == "bare":
        found = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    return found


def _masks(config, both):
    """The buffers that old versions of transformers saved."""
    size = config["max_position_embeddings"]
    bias = torch.tril(torch.ones(size, size, dtype=torch.uint8)).view(1, 1, size, size)
    found = {f"transformer.h.{layer}.attn.attention.bias": bias.clone() for layer in range(2)}
    if both:
        found |= {f"transformer.h.{layer}.attn.attention.masked_bias": torch.tensor(-1e9) for layer in range(2)}
    return found


def _save(draw, folder, tensors, form):
    stem, end = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = list(tensors)
    shards = draw.choice([1, 1, 3])
    files = [f"{stem}.{end}"] if shards == 1 else [f"{stem}-{i:05}-of-{shards:05}.{end}" for i in range(1, shards + 1)]
    where = {name: files[index % shards] for index, name in enumerate(names)}
    for file in files:
        own = {name: tensors[name] for name in names if where[name] == file}
        if form == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / file, {"format": "pt"})
        else:
            torch.save(own, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
