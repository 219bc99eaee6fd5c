"""The engine in its thread: requests from anywhere at any time, each as if alone; cancelled, failing and dead."""

import asyncio
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import GOLDEN, SCHEDULES

from neo_tf.errors import EngineError, RequestError
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.options import SamplingOptions

MODELS = ["tiny-global-local", "tiny-local-radius", "attn-mix", "mem-kv"]
WAIT = 60  # seconds, at most: a hang must fail


@pytest.fixture
def service(exported):
    """A function that makes a service over a golden model; it is closed in the end."""
    made = []

    def make(name="tiny-global-local", slots=4):
        made.append(Service(Engine(Session(exported(GOLDEN / name), slots=slots))))
        return made[-1]

    yield make
    for one in made:
        one.close()


def random_request(rng, n_vocab, n_ctx):
    """A request of any length and settings, up to exactly n_ctx tokens."""
    length = rng.randint(1, n_ctx - 1)
    room = n_ctx - length
    sampling = SamplingOptions(
        do_sample=rng.random() < 0.6,
        temperature=rng.choice([0.5, 1.0, 1.7]),
        top_k=rng.choice([0, 5, 50]),
        top_p=rng.choice([1.0, 0.9]),
        seed=rng.randint(0, 10**6),
    )
    new = rng.choice([1, room, None, rng.randint(1, room)])
    prompt = [rng.randrange(n_vocab) for _ in range(length)]
    return {"prompt": prompt, "max_new_tokens": new, "stop_token_ids": (rng.randrange(n_vocab),), "sampling": sampling}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_fifty_requests_at_random_times_are_each_as_if_alone(exported, service, name, seed):
    rng = random.Random(f"{name} {seed}")
    one = Engine(Session(exported(GOLDEN / name)))
    running, futures, cancelled = service(name, slots=5), [], []
    for number in range(50):
        arguments = random_request(rng, one.config.n_vocab, one.config.n_ctx)
        submission = running.submit(Request(**arguments))
        futures.append((arguments, submission))
        if number % 7 == 3:
            cancelled.append(submission.generation)
            if rng.random() < 0.5:
                time.sleep(rng.random() / 50)
            submission.cancel()
        with pytest.raises(RequestError):
            running.submit(Request([one.config.n_vocab]))
        if rng.random() < 0.5:
            time.sleep(rng.random() / 100)
    ended = 0
    for arguments, future in futures:
        found = future.result(WAIT)
        (expected,) = one.generate([Request(**arguments)])
        if found in cancelled and found.finish_reason == "cancelled":
            assert found.tokens == expected.tokens[: len(found.tokens)]
            continue
        ended += 1
        assert (found.tokens, found.finish_reason) == (expected.tokens, expected.finish_reason)
    assert ended >= 40


def test_async_requests_run_together(service):
    running = service(slots=3)
    requests = [Request([number + 1, 7], max_new_tokens=20) for number in range(6)]
    alone = running.generate(requests)

    async def streamed(request):
        return [token async for token in running.stream(request)]

    async def main():
        whole = await asyncio.gather(*(running.generate_async(request) for request in requests))
        pieces = await asyncio.gather(*(streamed(Request([number + 1, 7], max_new_tokens=20)) for number in range(6)))
        return whole, pieces

    whole, pieces = asyncio.run(asyncio.wait_for(main(), WAIT))
    expected = [generation.tokens for generation in alone]
    assert [generation.tokens for generation in whole] == expected == pieces


def test_leaving_a_stream_and_cancelling_a_task_free_the_slot(service):
    running, made, submit = service(slots=1), [], None

    def kept(request):
        made.append(submit(request))
        return made[-1]

    submit, running.submit = running.submit, kept

    async def main():
        async for _ in running.stream(Request([1, 2])):
            break
        task = asyncio.ensure_future(running.generate_async(Request([1, 2])))
        while len(made) < 2 or not made[1].generation.tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await running.generate_async(Request([3], max_new_tokens=3))

    after = asyncio.run(asyncio.wait_for(main(), WAIT))
    left, stopped, _ = [one.generation for one in made]
    assert left.finish_reason == stopped.finish_reason == "cancelled"
    assert len(after.tokens) == 3


def test_a_cancelled_request_stops_within_a_step(service):
    running, seen, tokens = service(slots=1), threading.Event(), []

    def on_token(token):
        tokens.append(token)
        if len(tokens) == 5:
            seen.set()
            time.sleep(0.01)

    submission = running.submit(Request([1, 2], max_new_tokens=200, on_token=on_token))
    assert seen.wait(WAIT)
    assert submission.cancel() is False and not submission.cancelled()  # the future still has a result
    assert submission.result(WAIT).finish_reason == "cancelled"
    assert 5 <= len(submission.generation.tokens) <= 6
    submission.cancel()  # one that has ended stays so
    assert submission.result(WAIT).tokens == tokens


def test_a_failing_step_fails_those_in_it_and_no_others(service, monkeypatch):
    running = service(slots=2)
    session = running._engine.session
    decode, prefill = session.decode, session.prefill

    def failing(first, token_ids, *more):
        if 77 in np.asarray(token_ids):
            raise RuntimeError("no such\nmemory")
        return decode(first, token_ids, *more)

    def failing_prefill(slot, token_ids, past, logits_of=1):
        if 88 in token_ids:
            raise RuntimeError("prefill broke")
        return prefill(slot, token_ids, past, logits_of)

    monkeypatch.setattr(session, "decode", failing)
    monkeypatch.setattr(session, "prefill", failing_prefill)
    expected = running.generate([Request([5], max_new_tokens=8)])[0].tokens
    with pytest.raises(EngineError, match="a step of 1 requests failed: prefill broke"):
        running.submit(Request([88], max_new_tokens=5)).result(WAIT)
    # Its second token is 77, whatever the model says.
    forced = SamplingOptions(logits_processor=[lambda history, scores: scores + 1e9 * (np.arange(257) == 77)])
    bad = running.submit(Request([9], max_new_tokens=50, sampling=forced))
    with pytest.raises(EngineError, match="a step of 1 requests failed: no such memory"):
        bad.result(WAIT)
    assert bad.generation.finish_reason == "error"
    assert running.generate([Request([5], max_new_tokens=8)])[0].tokens == expected


def test_a_failing_callback_fails_its_own_request(service):
    running = service(slots=2)

    def broken(token):
        raise KeyError("mine")

    futures = [running.submit(Request([5], max_new_tokens=8, on_token=call)) for call in (broken, None)]
    with pytest.raises(KeyError, match="mine"):
        futures[0].result(WAIT)
    assert len(futures[1].result(WAIT).tokens) == 8


def test_a_dead_engine_says_so_and_nobody_waits(service, monkeypatch):
    running = service(slots=1)
    monkeypatch.setattr(running._engine, "step", lambda: 1 / 0)
    futures = [running.submit(Request([5]))]
    with pytest.raises(EngineError, match="the engine stopped: ZeroDivisionError"):
        futures[0].result(WAIT)
    with pytest.raises(EngineError, match="the engine stopped"):
        running.submit(Request([5]))


def test_closing_ends_what_runs_and_refuses_more(exported):
    running = Service(Engine(Session(exported(GOLDEN / "tiny-global-local"))))
    futures = [running.submit(Request([5], max_new_tokens=None)) for _ in range(3)]
    running.close()
    assert all(future.result(WAIT).finish_reason in ("cancelled", "length") for future in futures)
    with pytest.raises(EngineError, match="closed"):
        running.submit(Request([5]))


def test_a_request_may_be_submitted_again_and_to_two_services(exported, service):
    """While it runs, too: each submission has its own result, and cancelling one leaves the other."""
    request = Request([5], max_new_tokens=100)
    one, other = service(slots=2), service(slots=1)
    submissions = [one.submit(request), one.submit(request), other.submit(request), one.submit(request)]
    submissions[3].cancel()
    generations = [submission.result(WAIT) for submission in submissions]
    assert len({id(generation) for generation in generations}) == 4
    assert [len(generation.tokens) for generation in generations[:3]] == [100] * 3
    assert generations[0].tokens == generations[1].tokens == generations[2].tokens
    assert generations[3].finish_reason in ("cancelled", "length") and generations[3].request is request


@pytest.mark.cpu_only
def test_a_process_may_end_while_the_service_is_busy(exported):
    code = (
        "import sys, time; from neo_tf import Engine, Request, Service, Session;"
        "service = Service(Engine(Session(sys.argv[1])));"
        "service.submit(Request([5], max_new_tokens=None)); time.sleep(0.02)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported(GOLDEN / "tiny-global-local"))], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_callback_may_submit_and_must_not_wait(service):
    """Waiting in the engine's own thread would never end."""
    running, told, more = service(slots=2), [], []

    def on_token(token):
        more.append(running.submit(Request([3], max_new_tokens=2)))
        try:
            running.generate([Request([4], max_new_tokens=2)])
        except EngineError as error:
            told.append(str(error))

    request = Request([1, 2], max_new_tokens=1, on_token=on_token)
    assert running.submit(request).result(WAIT).finish_reason == "length"
    assert len(more[0].result(WAIT).tokens) == 2 and "use submit" in told[0]


def test_a_callback_may_close_the_service(service):
    running = service(slots=2)
    other = running.submit(Request([7, 8]))
    request = Request([1, 2], max_new_tokens=5, on_token=lambda token: running.close())
    assert running.submit(request).result(WAIT).finish_reason == "cancelled"
    assert other.result(WAIT).finish_reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        running.submit(Request([1]))


@pytest.mark.cpu_only
def test_a_stream_that_is_left_as_its_loop_ends_says_nothing(exported):
    """The request ends after the loop was closed, where nobody waits for its tokens."""
    code = (
        "import asyncio, sys; from neo_tf import Engine, Request, Service, Session\n"
        "async def main(service):\n"
        "    async for _ in service.stream(Request([1, 2])):\n"
        "        if sys.argv[2] == 'break':\n"
        "            break\n"
        "        raise SystemExit\n"
        "with Service(Engine(Session(sys.argv[1]))) as service:\n"
        "    asyncio.run(main(service))\n"
    )
    for way in ("break", "exit"):
        command = [sys.executable, "-c", code, str(exported(GOLDEN / "tiny-global-local")), way]
        done = subprocess.run(command, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_on_cuda_an_engine_of_a_running_service_refuses_other_callers(service, device):
    """There the engine has one thread, which is the service's: they would wait for ever."""
    if device == "cpu":
        return
    running = service(slots=2)
    engine, request = running._engine, Request([5], max_new_tokens=30)
    submission = running.submit(request)
    for call in (engine.step, lambda: engine.generate([request]), lambda: Service(engine)):
        with pytest.raises(EngineError, match="go through the Service, or close it"):
            call()
    assert len(submission.result(WAIT).tokens) == 30
    running.close()
    assert engine.generate([request])[0].tokens == submission.result(WAIT).tokens
