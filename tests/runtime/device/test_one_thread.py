"""A thread for one function after the other."""

import gc
import threading
import time

import pytest

from neo_tf.errors import EngineError
from neo_tf.runtime.device.one_thread import OneThread


def test_all_functions_run_in_one_thread_in_their_order():
    thread, seen = OneThread(), []

    def note(number):
        seen.append((number, threading.get_ident()))
        return number

    waiting = [thread.start(lambda number=number: note(number)) for number in range(5)]
    assert thread.run(lambda: note(5)) == 5
    assert [one.result() for one in waiting] == [0, 1, 2, 3, 4]
    assert seen == [(number, thread.ident) for number in range(6)] and thread.ident != threading.get_ident()


def test_a_function_of_the_thread_may_run_another_there():
    thread = OneThread()
    assert thread.run(lambda: (thread.is_current, thread.run(threading.get_ident))) == (True, thread.ident)
    assert not thread.is_current


def test_what_a_function_raises_is_raised_and_the_thread_goes_on():
    thread = OneThread()
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: 1 / 0)
    assert thread.run(lambda: 7) == 7


def test_an_interrupted_caller_waits_for_the_function(monkeypatch):
    """What the function uses must not change under it."""
    thread, ended = OneThread(), []

    class Interrupted:
        def __init__(self, done):
            self.done = done

        def result(self):
            raise KeyboardInterrupt

    start = thread.start
    monkeypatch.setattr("neo_tf.runtime.device.one_thread.wait", lambda futures: futures[0].done.result())
    monkeypatch.setattr(thread, "start", lambda function: Interrupted(start(function)))
    with pytest.raises(KeyboardInterrupt):
        thread.run(lambda: (time.sleep(0.05), ended.append(1)))
    assert ended == [1]


def test_while_a_loop_runs_the_thread_takes_nothing_else():
    """It would wait for ever."""
    thread, end = OneThread(), threading.Event()
    loop = thread.start(lambda: end.wait(10), is_loop=True)
    for call in (thread.run, thread.start):
        with pytest.raises(EngineError, match="a running Service's"):
            call(int)
    end.set()
    loop.result()
    assert thread.run(lambda: 7) == 7


def test_the_thread_ends_with_its_object():
    thread = OneThread()
    held = thread.run(threading.current_thread)
    del thread
    gc.collect()
    held.join(5)
    assert not held.is_alive()
