"""model.onnx is called like other runtimes call it: with padded batches, masks of a whole capacity, and beams."""

import functools

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from conftest import DECODABLE, GOLDEN, TOLERANCE

import neo_tf
from neo_tf.cache_layout import cache_parts

PADS = (0, 29, 7)  # the number of padded positions in each of three rows
STEPS = 6
LOCAL = "tiny-local-radius"


@functools.cache
def session_of(folder):
    """The session of a folder's model.onnx. It has no state: the caches are inputs and outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])


class Batch:
    """A batch in model.onnx: its rows have unequal lengths; its caches grow, or are one buffer of a fixed capacity."""

    def __init__(self, folder, rows, capacity=None, filler=0.0):
        self.config = neo_tf.GPTNeoConfig.from_file(folder / "config.json")
        self.session = session_of(folder)
        self.parts = cache_parts(self.config, windowed=False, head_size=self.config.head_size)
        self.capacity = capacity
        shapes = [(rows, part.heads, capacity or 0, part.columns) for part in self.parts]
        self.caches = [np.full(shape, filler, np.float32) for shape in shapes]
        self.names = ["logits", *(part.present for part in self.parts)]

    def run(self, ids, mask, positions):
        """Logits [rows, seq, n_vocab]."""
        feed = {part.past: cache for part, cache in zip(self.parts, self.caches, strict=True)}
        feed |= {"input_ids": ids, "attention_mask": mask.astype(np.int64), "position_ids": positions}
        logits, *self.caches = self.session.run(self.names, feed)
        return logits

    def reorder(self, rows):
        """Lets each row continue from another row's cache, like beam search."""
        self.caches = [np.ascontiguousarray(cache[rows]) for cache in self.caches]


def positions_of(mask):
    """Position ids like those of transformers."""
    return np.maximum(mask.cumsum(-1) - 1, 0)


def left_padded(rows, lengths, padding=3):
    """ids and mask, [len(rows), max(lengths)]: each row's first tokens, padded on the left."""
    width = max(lengths)
    ids, mask = np.full((len(rows), width), padding), np.zeros((len(rows), width), np.int64)
    for row, length in enumerate(lengths):
        ids[row, width - length :], mask[row, width - length :] = rows[row][:length], 1
    return ids, mask


def rows_of(reference):
    """Three rows of the golden inputs, their row numbers in the logits, and lengths that leave room for the steps."""
    rows, width = [reference.inputs[row] for row in (0, 1, 0)], reference.inputs.shape[1]
    return rows, (0, 1, 0), [width - STEPS - pad for pad in PADS]


def expected_of(reference, row, position):
    """The original's logits of a position, or None if they were not stored."""
    found = np.flatnonzero(reference.positions == position)
    return reference.logits[row, found[0]] if len(found) else None


@pytest.mark.parametrize("name", DECODABLE)
def test_a_left_padded_batch_has_the_originals_logits(name, exported, reference):
    reference, checked = reference(name), 0
    rows, which, lengths = rows_of(reference)
    batch, alone = Batch(exported(GOLDEN / name), 3), [Batch(exported(GOLDEN / name), 1) for _ in rows]
    ids, mask = left_padded(rows, lengths)
    for step in range(STEPS + 1):
        logits = batch.run(ids, mask, positions_of(mask)[:, -ids.shape[1] :])
        for row, length in enumerate(lengths):
            done = length + step
            first = 0 if step == 0 else done - 1
            own = alone[row].run(rows[row][None, first:done], np.ones((1, done)), np.arange(first, done)[None])[0]
            assert np.abs(logits[row, -len(own) :] - own).max() < TOLERANCE
            for position in range(first, done):
                golden = expected_of(reference, which[row], position)
                if golden is not None:
                    assert np.abs(logits[row, position - done] - golden).max() < TOLERANCE
                    checked += 1
        if step < STEPS:
            ids = np.stack([rows[row][length + step : length + step + 1] for row, length in enumerate(lengths)])
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    assert checked > 2 * len(reference.positions)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", DECODABLE)
def test_right_padding_leaves_the_tokens_before_it_alone(name, exported, reference):
    reference = reference(name)
    ids = reference.inputs[:, :48].copy()
    mask = np.ones_like(ids)
    mask[0, 40:] = 0  # no row fills the last columns
    mask[1, 33:] = 0
    ids[mask == 0] = 3
    batch = Batch(exported(GOLDEN / name), 2)
    logits = batch.run(ids, mask, positions_of(mask))
    ids, positions = reference.inputs[:, :48], np.tile(range(48), (2, 1))
    alone = Batch(exported(GOLDEN / name), 2).run(ids, np.ones((2, 48)), positions)
    assert np.abs((logits - alone)[mask == 1]).max() < TOLERANCE


@pytest.mark.parametrize("name", [LOCAL, "tiny-global-local", "attn-mix", "mem-kv"])
def test_steps_after_right_padding_do_not_see_it(name, exported, reference):
    """Like in transformers, positions continue from the row's own length, and windows count columns."""
    reference, folder = reference(name), exported(GOLDEN / name)
    ids = reference.inputs[:, :12].copy()
    mask = np.ones_like(ids)
    ids[1, 9:], mask[1, 9:] = 3, 0
    batch = Batch(folder, 2)
    batch.run(ids, mask, positions_of(mask))
    alone = Batch(folder, 1)
    alone.run(reference.inputs[1:, :9], np.ones((1, 9)), np.arange(9)[None])
    for at in range(9, 12):  # the window of 16 columns still includes the whole row
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        token = np.stack([reference.inputs[0, at + 3 : at + 4], reference.inputs[1, at : at + 1]])
        own = alone.run(token[1:], np.ones((1, at + 1)), np.array([[at]]))
        assert np.abs(batch.run(token, mask, positions_of(mask)[:, -1:])[1] - own[0]).max() < TOLERANCE


# Running sums have no capacity. Nor have caches of head sizes without a fused operator, but no golden model has such.
CAPACITY = tuple(name for name in DECODABLE if name != "attn-mix")


@pytest.mark.parametrize("static", [True, False], ids=["mask of the capacity", "mask of the length"])
@pytest.mark.parametrize("name", CAPACITY)
def test_caches_of_a_whole_capacity(name, static, exported, reference):
    """Past and present have one size: a runtime can bind one buffer to both. Rows beyond the length are not read."""
    reference = reference(name)
    rows, _, lengths = rows_of(reference)
    folder, config = exported(GOLDEN / name), neo_tf.GPTNeoConfig.from_file(exported(GOLDEN / name) / "config.json")
    capacity = config.n_ctx + (config.num_mem_kv or 0)
    batch, growing = Batch(folder, 3, capacity, filler=7.0), Batch(folder, 3)
    ids, mask = left_padded(rows, lengths)
    for step in range(STEPS):
        given = np.pad(mask, ((0, 0), (0, capacity - mask.shape[1]))) if static else mask
        positions = positions_of(mask)[:, -ids.shape[1] :]
        logits, expected = batch.run(ids, given, positions), growing.run(ids, mask, positions)
        seen = mask[:, -ids.shape[1] :] == 1
        assert np.abs((logits - expected)[seen]).max() < TOLERANCE
        assert {cache.shape[2] for cache in batch.caches} == {capacity}
        ids = np.stack([rows[row][length + step : length + step + 1] for row, length in enumerate(lengths)])
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)


@pytest.mark.parametrize("name", [LOCAL, "mem-kv"])
def test_rows_of_a_capacity_may_be_of_unequal_lengths(name, exported, reference):
    reference, folder = reference(name), exported(GOLDEN / name)
    config, lengths = neo_tf.GPTNeoConfig.from_file(folder / "config.json"), (40, 25)
    capacity = config.n_ctx + (config.num_mem_kv or 0)
    alone = [Batch(folder, 1, capacity) for _ in lengths]
    for row, (one, length) in enumerate(zip(alone, lengths, strict=True)):
        one.run(reference.inputs[row : row + 1, :length], np.ones((1, length)), np.arange(length)[None])
    batch = Batch(folder, 2, capacity)
    batch.caches = [np.concatenate(pair) for pair in zip(*(one.caches for one in alone), strict=True)]
    for step in range(4):
        at = np.array(lengths) + step
        mask = (np.arange(capacity) <= at[:, None]).astype(np.int64)
        ids = reference.inputs[[0, 1], at][:, None]
        logits = batch.run(ids, mask, at[:, None])
        for row in range(2):
            own = alone[row].run(ids[row : row + 1], mask[row : row + 1, : at[row] + 1], at[row : row + 1, None])
            assert np.abs(logits[row] - own[0]).max() < TOLERANCE


@pytest.mark.parametrize("name", DECODABLE)
def test_rows_that_change_places_between_steps(name, exported, reference):
    """In beam search only the caches need to follow the beams."""
    inputs, folder = reference(name).inputs, exported(GOLDEN / name)
    (ids, mask), history = left_padded(inputs, (30, 21)), [list(inputs[0, :30]), list(inputs[1, :21])]
    batch = Batch(folder, 2)
    batch.run(ids, mask, positions_of(mask))
    for step, order in enumerate([[0, 0], [1, 0], [1, 1], [1, 0]]):
        batch.reorder(order)
        mask = np.pad(mask[order], ((0, 0), (0, 1)), constant_values=1)
        tokens = inputs[:, 40 + step]
        history = [history[row] + [token] for row, token in zip(order, tokens, strict=True)]
        logits = batch.run(tokens[:, None], mask, positions_of(mask)[:, -1:])[:, -1]
        for row, tokens in enumerate(history):
            whole = np.array(tokens)[None]
            again = Batch(folder, 1).run(whole, np.ones_like(whole), np.arange(len(tokens))[None])[0, -1]
            assert np.abs(logits[row] - again).max() < TOLERANCE


@pytest.mark.parametrize("heads, head", [(4, 8), (2, 48), (16, 4), (3, 20)])
def test_a_left_padded_batch_is_transformers_own(heads, head, tmp_path):
    torch.manual_seed(head)
    config = transformers.GPTNeoConfig(
        vocab_size=97,
        hidden_size=heads * head,
        num_layers=3,
        num_heads=heads,
        attention_types=[[["local", "global", "local"], 1]],
        max_position_embeddings=64,
        window_size=8,
        intermediate_size=40,
        initializer_range=0.1,
    )
    model = transformers.GPTNeoForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    neo_tf.export_onnx(tmp_path / "model", tmp_path / "onnx")
    ids, mask = left_padded(torch.randint(0, 97, (3, 64)).numpy(), [40, 3, 21])
    batch, cache, step = Batch(tmp_path / "onnx", 3), None, ids
    for _ in range(12):  # beyond the window, also for the row of 3 tokens
        positions = positions_of(mask)[:, -step.shape[1] :]
        inputs = {"input_ids": step, "attention_mask": mask, "position_ids": positions}
        with torch.no_grad():
            found = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}, cache=cache, use_cache=True)
        cache, logits = found.cache, batch.run(step, mask, positions)
        seen = mask[:, -step.shape[1] :] == 1
        assert np.abs((logits - found.logits.numpy())[seen]).max() < TOLERANCE
        step = logits[:, -1].argmax(-1)[:, None]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
