"""Many threads call one engine at once: each gets what it would get alone, in its own thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import GOLDEN, PADDING, Reference

from neo_tf.errors import EngineError, RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import SamplingOptions

MODEL = "tiny-local-radius"


@pytest.fixture
def engine(exported):
    """A function that makes an engine of a golden model."""
    return lambda slots: Engine(Session(exported(GOLDEN / MODEL), slots=slots))


def prompts(count):
    inputs = Reference.load(GOLDEN / MODEL, PADDING).inputs
    return [inputs[number % len(inputs), : 3 + number].tolist() for number in range(count)]


@pytest.mark.parametrize("slots, threads", [(1, 3), (3, 2), (4, 8)])
def test_each_thread_gets_its_own_tokens(engine, slots, threads):
    own = engine(slots)
    requests = [
        Request(
            prompt, max_new_tokens=4 + number % 3, sampling=SamplingOptions(do_sample=bool(number % 2), seed=number)
        )
        for number, prompt in enumerate(prompts(6))
    ]
    alone = [own.generate([request])[0].tokens for request in requests]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda request: own.generate([request])[0].tokens, requests * 5))
    assert found == alone * 5
    assert own.slots.free == slots and not own.step()


def test_requests_of_other_threads_join_the_running_ones(engine):
    own = engine(2)
    sizes, decode = [], own.session.decode
    started = threading.Event()

    def counted(first, tokens, *more):
        sizes.append(len(tokens))
        started.set()
        return decode(first, tokens, *more)

    own.session.decode = counted
    waits = threading.Event()

    def wait(token):
        waits.wait(10)  # the first step ends when the second request is there

    first, second = prompts(2)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(own.generate, [Request(first, max_new_tokens=9, on_token=wait)])
        two = pool.submit(own.generate, [Request(second, max_new_tokens=5)])
        while len(own._turns._calls) < 2:
            pass
        waits.set()
        assert (len(one.result()[0].tokens), len(two.result()[0].tokens)) == (9, 5)
    assert max(sizes) == 2


def test_functions_of_a_request_are_called_in_the_thread_of_the_call(engine):
    own = engine(3)
    barrier = threading.Barrier(3)

    def call(prompt):
        heard, here = [], threading.get_ident()
        barrier.wait()

        def on_token(token):
            heard.append((token, threading.get_ident()))

        (found,) = own.generate([Request(prompt, max_new_tokens=12, on_token=on_token)])
        return [(token, here) for token in found.tokens] == heard

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, prompts(3))) == [True] * 3


def test_an_error_ends_its_own_call_alone(engine):
    own = engine(4)
    requests = [Request(prompt, max_new_tokens=10) for prompt in prompts(4)]
    alone = [own.generate([request])[0].tokens for request in requests]
    barrier = threading.Barrier(4)

    def fail(token):
        raise ValueError("no room")

    def call(number):
        barrier.wait()
        try:
            if number == 2:
                return own.generate([Request(requests[2].prompt, max_new_tokens=10, on_token=fail)])
            return own.generate([requests[number]])[0].tokens
        except (ValueError, RequestError) as error:
            return str(error)

    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(call, range(4)))
        assert found == [*alone[:2], "no room", alone[3]]
        assert own.slots.free == 4


def test_a_broken_step_is_an_error_of_all_calls_and_no_wrong_text(engine, monkeypatch):
    own = engine(2)
    with monkeypatch.context() as patched:

        def interrupted(*arguments, **more):
            while len(own._turns._calls) < 2:
                pass

            raise KeyboardInterrupt

        patched.setattr(own.session, "prefill", interrupted)
        errors = []

        def call(prompt):
            try:
                own.generate([Request(prompt, max_new_tokens=3)])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=call, args=(prompt,)) for prompt in prompts(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(type(error).__name__ for error in errors) == ["EngineError", "KeyboardInterrupt"]
    assert own.slots.free == 2
    assert len(own.generate([Request(prompts(1)[0], max_new_tokens=3)])[0].tokens) == 3


def test_a_function_of_a_request_cannot_call_its_own_engine(engine):
    own = engine(2)
    prompt = prompts(1)[0]
    with pytest.raises(EngineError, match="cannot wait for the engine"):
        own.generate([Request(prompt, max_new_tokens=3, on_token=lambda token: own.generate([Request(prompt)]))])
    assert np.array(own.generate([Request(prompt, max_new_tokens=3)])[0].tokens).size == 3
