"""Hugging Face folders of many shapes: transformers makes random ones, and its logits are the reference."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from conftest import TOLERANCE
from session_helpers import decoded_logits

import neo_tf
from neo_tf.evaluation.portable_session import PortableSession
from neo_tf.runtime.device.session import Session

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random_model(draw):
    heads, head = draw.choice([(16, 4), (2, 48), (4, 8), (3, 16)])
    layers = draw.choice([2, 3])
    config = transformers.GPTNeoConfig(
        vocab_size=draw.choice([97, 259]),
        hidden_size=heads * head,
        num_layers=layers,
        num_heads=heads,
        attention_types=[[[draw.choice(["global", "local"]) for _ in range(layers)], 1]],
        max_position_embeddings=draw.choice([40, 64]),
        window_size=draw.choice([3, 8, 256]),
        intermediate_size=draw.choice([None, 40, 77]),
        use_cache=draw.random() < 0.5,
        tie_word_embeddings=draw.random() < 0.7,
        initializer_range=0.1,  # large enough for unscaled attention to matter, and small enough for 1e-4 in float32
    )
    return transformers.GPTNeoForCausalLM(config).eval().to(draw.choice(DTYPES))


def save(model, folder, kind):
    """Saves a model like transformers does today or did years ago: in .bin files with causal masks and the head."""
    if kind.startswith("safetensors"):
        model.save_pretrained(folder, max_shard_size="20KB" if kind.endswith("sharded") else "5GB")
        return
    model.config.save_pretrained(folder)
    tensors = dict(model.state_dict())
    for layer in range(model.config.num_layers):
        attention = f"transformer.h.{layer}.attn.attention"
        tensors[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names, weight_map = list(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["safetensors", "safetensors sharded", "bin", "bin sharded"])
@pytest.mark.parametrize("seed", range(4))
def test_logits_are_transformers_in_every_shape(kind, seed, tmp_path):
    torch.manual_seed(seed)
    model = random_model(random.Random(f"{kind} {seed}"))
    folder = tmp_path / "model"
    folder.mkdir()
    save(model, folder, kind)
    model = model.float()
    length, short = model.config.max_position_embeddings, model.config.max_position_embeddings // 2 + 3
    ids = torch.randint(0, 97, (2, length))
    mask = torch.ones_like(ids)
    mask[1, short:] = 0  # rows of unequal lengths
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits.numpy()

    checkpoint = neo_tf.open_checkpoint(folder)
    keras = np.asarray(neo_tf.GPTNeo.from_checkpoint(checkpoint)(ids.numpy()))
    neo_tf.export_onnx(checkpoint, tmp_path / "onnx")
    session, portable = Session(tmp_path / "onnx", slots=2), PortableSession(tmp_path / "onnx")
    for row, count in enumerate((length, short)):
        tokens = ids[row, :count].numpy()
        assert np.abs(keras[row, :count] - expected[row, :count]).max() < TOLERANCE
        assert np.abs(portable.prefill(0, tokens, 0, logits_of="all") - expected[row, :count]).max() < TOLERANCE
        assert np.abs(session.prefill(row, tokens, 0, logits_of="all") - expected[row, :count]).max() < TOLERANCE
    # Both rows together, each from its own position; the longer one is beyond its windows.
    begin = (length - 5, short - 5)
    for row in range(2):
        session.prefill(row, ids[row, : begin[row]].numpy(), 0)
    for step in range(5):
        at = [first + step for first in begin]
        logits = decoded_logits(session, 0, ids[[0, 1], at].numpy(), at)
        assert np.abs(logits - expected[[0, 1], at]).max() < TOLERANCE

    neo_tf.save_checkpoint(checkpoint, tmp_path / "back", "huggingface")
    again = transformers.GPTNeoForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(again(ids, attention_mask=mask).logits, torch.from_numpy(expected))
