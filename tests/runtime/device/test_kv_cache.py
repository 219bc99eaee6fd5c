"""The cache's memory, and local layers whose cache is shorter than the sequence."""

import numpy as np
import onnx
import pytest
from conftest import GOLDEN, TOLERANCE
from session_helpers import decoded_logits

from neo_tf.cache_layout import cache_parts
from neo_tf.config import GPTNeoConfig
from neo_tf.runtime.device.kv_cache import KVCache, rows
from neo_tf.runtime.device.session import Session

MIXED = GPTNeoConfig(257, 512, 32, 4, 4, ("global", "local", "global", "local"), local_attention_radius=100)


def capacity(config, layer, device="cpu"):
    """Positions that a layer's buffer keeps."""
    return next(rows(part, config, device) for part in cache_parts(config) if part.layer == layer)


class Binding:
    """What KVCache.bind hands to ONNX Runtime."""

    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_input(self, name, device, device_id, element_type, shape, address):
        self.inputs[name] = (device, device_id, element_type, tuple(shape), address)

    def bind_output(self, name, device, device_id, element_type, shape, address):
        self.outputs[name] = (device, device_id, element_type, tuple(shape), address)


def bound(cache, slot, rows):
    binding = Binding()
    cache.bind(binding, slot, rows)
    return binding


def test_a_local_layer_keeps_its_window_and_little_more():
    assert capacity(MIXED, 0) == 512
    assert 100 <= capacity(MIXED, 1) <= 200
    assert capacity(MIXED, 1, "cuda") == 100  # the CUDA kernel takes the bare window only
    assert capacity(MIXED.replace(local_attention_radius=500), 1) == 512
    assert capacity(MIXED.replace(local_attention_radius=4096), 1) == 512


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype, size", [(np.float32, 4), (np.float16, 2)])
def test_bytes_per_slot(device, dtype, size):
    positions = 2 * 512 + 2 * capacity(MIXED, 1, device)
    assert KVCache.bytes_per_slot(MIXED, dtype, device) == 2 * 32 * positions * size


def test_bytes_per_slot_is_what_is_allocated():
    for slots in (1, 3):
        shapes = [place[3] for place in bound(KVCache(MIXED, slots), 0, slots).inputs.values()]
        assert sum(4 * np.prod(shape) for shape in shapes) == slots * KVCache.bytes_per_slot(MIXED)


def test_past_and_present_are_one_buffer_and_slots_do_not_overlap():
    cache = KVCache(MIXED, 3, np.float16)
    slots = [bound(cache, slot, 1) for slot in range(3)]
    for layer in range(4):
        for part in ("key", "value"):
            places = [slot.inputs[f"past_key_values.{layer}.{part}"] for slot in slots]
            assert places == [slot.outputs[f"present.{layer}.{part}"] for slot in slots]
            assert {place[:4] for place in places} == {
                ("cpu", 0, onnx.TensorProto.FLOAT16, (1, 4, capacity(MIXED, layer), 8))
            }
            addresses = [place[4] for place in places]
            assert np.diff(addresses).tolist() == [4 * capacity(MIXED, layer) * 8 * 2] * 2
            # Several rows begin where their first one does.
            pair = bound(cache, 1, 2).inputs[f"past_key_values.{layer}.{part}"]
            assert pair[3:] == ((2, 4, capacity(MIXED, layer), 8), addresses[1])
    starts = [place[4] for slot in slots for place in slot.inputs.values()]
    assert len(set(starts)) == 3 * 8


@pytest.fixture(scope="module")
def windowed(exported):
    """tiny-local-radius: every layer's window is 16 of 256 positions."""
    return Session(exported(GOLDEN / "tiny-local-radius"), slots=1, device="cpu")


@pytest.fixture(scope="module")
def every_position():
    """What the original says of every position: the mean of its logits, and of some the logits themselves."""
    data = np.load(GOLDEN / "tiny-local-radius" / "reference.npz")
    return data["inputs"], data["logits_mean_all"], data["logits_positions"], data["logits"]


WINDOW, CAPACITY = 16, capacity(GPTNeoConfig.from_file(GOLDEN / "tiny-local-radius" / "config.json"), 0)
EDGES = sorted({edge + off for edge in (WINDOW, CAPACITY, CAPACITY + WINDOW, 2 * CAPACITY, 256) for off in (-1, 0, 1)})


def check(logits, row, every_position):
    _, means, positions, golden = every_position
    assert len(logits) == 256
    assert np.abs(logits.mean(-1) - means[row]).max() < TOLERANCE
    assert np.abs(logits[positions] - golden[row]).max() < TOLERANCE


@pytest.mark.parametrize("first", [edge for edge in [1, 2, *EDGES] if edge <= 256])
def test_steps_after_a_prefill_of_any_length(windowed, every_position, first):
    for row, ids in enumerate(every_position[0]):
        logits = [windowed.prefill(0, ids[:first], 0, logits_of="all")]
        for position in range(first, 256):
            logits.append(decoded_logits(windowed, 0, ids[[position]], [position]))
        check(np.concatenate(logits), row, every_position)


@pytest.mark.parametrize("size", [3, 50, *(edge for edge in EDGES if edge < 256)])
def test_chunks_of_any_size(windowed, every_position, size):
    for row, ids in enumerate(every_position[0]):
        chunks = [windowed.prefill(0, ids[past : past + size], past, logits_of="all") for past in range(0, 256, size)]
        check(np.concatenate(chunks), row, every_position)


@pytest.mark.parametrize("steps", [1, 15, 63, 64, 65, 90])
def test_a_chunk_after_steps_in_a_full_window(windowed, every_position, steps):
    """Prefill, decode until the cache has been compacted or nearly, then a chunk longer than the window."""
    for row, ids in enumerate(every_position[0]):
        logits, past = [windowed.prefill(0, ids[:20], 0, logits_of="all")], 20
        while past < 256:
            for position in range(past, min(past + steps, 256)):
                logits.append(decoded_logits(windowed, 0, ids[[position]], [position]))
                past += 1
            if past < 256:
                logits.append(windowed.prefill(0, ids[past : past + 40], past, logits_of="all"))
                past += len(logits[-1])
        check(np.concatenate(logits), row, every_position)


def test_rows_compact_at_different_steps(exported, every_position):
    """Rows a few tokens apart, stepped together: each compacts its cache when its own is full."""
    ids = every_position[0]
    starts, rows = [1, 17, 40, 79, 80, 81], [0, 1, 0, 1, 0, 1]
    session = Session(exported(GOLDEN / "tiny-local-radius"), slots=6, device="cpu")
    logits = [
        list(session.prefill(slot, ids[row, : starts[slot]], 0, logits_of="all")) for slot, row in enumerate(rows)
    ]
    past = np.array(starts)
    while past.min() < 256:
        running = np.flatnonzero(past < 256)
        first, end = running.min(), running.max() + 1
        # A row that is full idles at position 0, as the engine has it.
        at = np.where(past < 256, past, 0)
        found = decoded_logits(session, first, ids[rows, at][first:end], at[first:end])
        for slot in running:
            logits[slot].append(found[slot - first])
        past[running] += 1
    for row, found in zip(rows, logits, strict=True):
        check(np.array(found), row, every_position)


# ---- what the runtime knows of the kernel's layout


@pytest.mark.parametrize("steps", [[1] * 256, [27] + [1] * 229, [5] * 51, [200] + [1] * 56, [81, 64, 66, 1, 1, 43]])
def test_rows_are_where_dropped_says(exported, every_position, steps):
    """Every position's key, as a run of all tokens at once computed it, stands where rows_of looks for it."""
    session, whole = (Session(exported(GOLDEN / "tiny-local-radius"), device="cpu") for _ in range(2))
    ids, past = every_position[0][0], 0
    for step in steps:
        session.prefill(0, ids[past : past + step], past)
        past += step
        kept = session.cache.first_kept(past)
        assert past - CAPACITY <= kept <= max(0, past - WINDOW)
        if past % 16 == 0 or past in EDGES:
            whole.prefill(0, ids[:past], 0)
            for begin in {kept, past - 1, max(kept, past - 9)}:
                pairs = zip(
                    session.cache.rows_of(0, begin, past, past), whole.cache.rows_of(0, begin, past, past), strict=True
                )
                for found, expected in pairs:
                    assert found.shape[1] == past - begin
                    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("length", [1, 15, 79, 80, 81, 144, 145, 146, 200])
def test_a_sequence_goes_on_after_giving_tokens_back(windowed, every_position, length):
    """As many wrong tokens as there is room for, and then the right ones over them."""
    ids = every_position[0][0]
    windowed.prefill(0, ids[:length], 0)
    room = windowed.cache.room(length)
    assert 0 <= room <= CAPACITY - min(length, WINDOW)
    if room:
        windowed.prefill(0, np.full(room, 3), length)
    logits = [windowed.prefill(0, ids[position : position + 1], position)[0] for position in range(length, 256)]
    means = every_position[1]
    assert np.abs(np.mean(logits, axis=-1) - means[0, length:]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["tiny-local-radius", "mem-kv", "attn-mix", "tiny-global-local"])
def test_a_copied_slot_goes_on_as_the_first(exported, name):
    """Whole, and from where two sequences part: windows, learned keys, and sums."""
    session = Session(exported(GOLDEN / name), slots=3, device="cpu")
    ids = np.random.default_rng(5).integers(0, session.config.n_vocab, session.config.n_ctx)
    for length in {session.config.n_ctx // 3, session.config.n_ctx - 5}:
        fork = length - 7
        session.prefill(0, ids[:length], 0)
        session.prefill(2, [*ids[:fork], *ids[:7]], 0)
        session.cache.copy(0, 1, 0, length)
        session.cache.copy(0, 2, fork, length)
        for position in range(length, session.config.n_ctx):
            logits = decoded_logits(session, 0, np.full(3, ids[position]), np.full(3, position))
            assert np.abs(logits - logits[0]).max() < TOLERANCE
