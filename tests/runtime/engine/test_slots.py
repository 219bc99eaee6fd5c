"""Admission by memory: within a limit of bytes, in order, and what is free goes back to the system."""

import numpy as np
import pytest
from conftest import GOLDEN
from session_helpers import rows_of

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import RequestError
from neo_tf.runtime.device.kv_cache import KVCache
from neo_tf.runtime.device.machine import available_memory
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.slots import Slots

CONFIG = GPTNeoConfig(257, 2048, 256, 4, 2, ("global", "local"))


@pytest.fixture
def cache():
    return KVCache(CONFIG, 4)


def test_the_lowest_free_slots_are_taken_and_given_back(cache):
    slots = Slots(cache)
    assert [slots.take(1, 10), slots.take(2, 10), slots.take(2, 10)] == [[0], [1, 2], None]
    slots.give([1])
    assert slots.lowest_free == 1
    assert slots.take(2, 10) == [1, 3]
    assert slots.lowest_free is None and slots.take(1, 10) is None


def test_more_than_the_limit_is_not_promised(cache):
    """Room for two long texts, or for one and some short ones."""
    long, short = cache.bytes_of(2048), cache.bytes_of(100)
    assert short < long / 4
    slots = Slots(cache, 2 * long)
    assert slots.take(1, 2048) == [0] and slots.take(1, 2048) == [1]
    assert slots.take(1, 2048) is None and slots.take(1, 1) is None
    slots.give([0])
    assert [slots.take(1, 100), slots.take(1, 100)] == [[0], [2]]
    assert slots.take(1, 2048) is None  # the short ones are in the way
    slots.give([0])
    slots.give([2])
    assert slots.take(1, 2048) == [0]


def test_what_can_never_be_held_is_refused_with_the_sizes(cache):
    slots = Slots(cache, cache.bytes_of(1000))
    slots.check(1, 1000)
    with pytest.raises(RequestError, match=r"needs .* MB of cache for 2048 tokens, and the limit is .* MB"):
        slots.check(1, 2048)
    with pytest.raises(RequestError, match=r"5 sequences .* 4 slots"):
        slots.check(5, 1)


def test_memory_of_free_slots_goes_back_where_the_limit_asks_for_it(cache):
    """What was written there is gone: its pages are new ones."""

    def write(slot):
        for view in rows_of(cache, slot, 0, 300, 300):
            view[:] = 7

    def written(slot):
        return [bool((view[:, 40:200] == 7).all()) for view in rows_of(cache, slot, 0, 300, 300)]

    slots = Slots(cache, cache.bytes_of(2048) + cache.bytes_of(100))
    for slot in slots.take(2, 300):
        write(slot)
    slots.give([0, 1])
    assert all(written(0)) and all(written(1))
    assert slots.take(1, 300) == [0]
    assert all(written(0)) and all(written(1))  # there is room: nothing was taken away
    slots.give([0])
    assert slots.take(1, 2048) == [0]
    assert not any(written(1))
    slots.give([0])
    write(0)
    assert slots.take(1, 100) == [0]  # held the long text's memory
    assert not any(written(0))


def test_released_slots_leave_their_neighbours_alone(cache):
    for slot in range(3):
        for view in rows_of(cache, slot, 0, 2048, 2048):
            view[:] = slot + 1
    cache.release(1)
    for slot in (0, 2):
        assert all((view == slot + 1).all() for view in rows_of(cache, slot, 0, 2048, 2048))
    assert not any((view == 2).all() for view in rows_of(cache, 1, 0, 2048, 2048))


@pytest.mark.parametrize("length", [1, 63, 300, 321, 2000, 2048])
def test_bytes_of_a_length_are_those_that_it_touches(length):
    """Counted page by page, in a cache whose pages are all fresh."""
    cache = KVCache(CONFIG, 1)
    for view in rows_of(cache, 0, 0, length, length):
        view[:] = 1
    pages = 0
    for one in cache._memory.pages:
        memory = np.frombuffer(one, np.uint8).reshape(-1, 4096)
        pages += int(memory.any(axis=1).sum())
    slack = 4 * 4 * 4096 + (4 * 320 * 64 * 4 * 2 if length > 256 else 0)  # of each head a page; a local layer's rows
    assert 4096 * pages <= cache.bytes_of(length) <= 4096 * pages + slack
    assert cache.bytes_of(length) <= KVCache.bytes_per_slot(CONFIG)


def test_without_a_limit_most_of_the_memory_is_one(cache):
    assert 0 < Slots(cache).limit < available_memory() * 1.1


def test_requests_wait_in_order_for_their_memory(exported):
    """A long one is not overtaken, and all come to the same as alone."""
    folder = exported(GOLDEN / "tiny-global-local")
    session = Session(folder, slots=4)
    limit = session.cache.bytes_of(session.config.n_ctx) + session.cache.bytes_of(20)
    engine, ended, most = Engine(session, cache_bytes=limit), [], 0
    lengths = [60, 200, 9, 9, 256, 9, 120, 9]
    began = []
    generations = []
    for number, length in enumerate(lengths):
        note = lambda token, number=number: number in began or began.append(number)  # noqa: E731
        generations.append(engine.submit(Request([number + 1] * 3, max_new_tokens=length - 3, on_token=note)))
    busy = True
    while busy:
        busy = engine.step()
        ended += [generations.index(generation) for generation in engine.ended]
        most = max(most, len(engine._running))
    assert sorted(ended) == list(range(8)) and most >= 2
    assert began == list(range(8)), "one overtook another"
    for generation in generations:
        (alone,) = Engine(Session(folder)).generate([generation.request])
        assert generation.tokens == alone.tokens


@pytest.mark.cpu_only
def test_a_request_over_the_limit_is_refused_and_others_are_not(exported):
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=2)
    engine = Engine(session, cache_bytes=session.cache.bytes_of(100))
    with pytest.raises(RequestError, match="the limit is"):
        engine.submit(Request([1, 2]))  # to the end of the context
    (generation,) = engine.generate([Request([1, 2], max_new_tokens=50)])
    assert len(generation.tokens) == 50


def test_on_cuda_a_slot_is_taken_whole(exported, device):
    """Room for two slots and a half: of five requests two run at a time, however short they are."""
    session = Session(exported(GOLDEN / "tiny-global-local"), slots=4)
    if device == "cpu":
        assert session.cache.bytes_of(1) < session.cache.bytes_of(session.config.n_ctx)
        return
    whole = session.cache.bytes_of(1)
    assert whole == KVCache.bytes_per_slot(session.config, windowed=False)
    engine, most, busy = Engine(session, cache_bytes=5 * whole // 2), 0, True
    generations = [engine.submit(Request([number, 1], max_new_tokens=6)) for number in range(5)]
    while busy:
        busy = engine.step()
        most = max(most, len(engine._running))
    assert most == 2 and all(len(generation.tokens) == 6 for generation in generations)
    with pytest.raises(RequestError, match="the limit is"):
        Engine(session, cache_bytes=whole - 1).submit(Request([1], max_new_tokens=1))
