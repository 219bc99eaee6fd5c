"""What is kept for clients: it belongs to them, it is bounded, and it is forgotten."""

import asyncio

import pytest

from neo_tf.runtime.server.errors import ServerError
from neo_tf.runtime.server.uploads import Limits, Uploads

ANN = b"ann"
BOB = b"bob"


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def in_loop(test):
    """Runs a test in a loop, as the routes run."""

    def run():
        async def call():
            test()

        asyncio.run(call())

    run.__name__ = test.__name__
    return run


def status(function, *arguments):
    with pytest.raises(ServerError) as caught:
        function(*arguments)
    return caught.value.status


@in_loop
def test_a_thing_exists_for_its_owner_alone_and_as_what_it_is():
    uploads = Uploads("upload")
    name = uploads.put(ANN, "text", 4)
    assert uploads.get(ANN, name, str) == "text"
    assert status(uploads.get, BOB, name, str) == 404
    assert status(uploads.get, ANN, name, int) == 404
    assert status(uploads.get, ANN, "0" * 24, str) == 404
    assert uploads.find(ANN, str, lambda text: text == "text") == name
    assert uploads.find(BOB, str, lambda text: True) is None
    assert uploads.find(ANN, int, lambda text: True) is None


@in_loop
def test_ids_are_long_and_never_the_same():
    uploads = Uploads("upload")
    names = {uploads.put(ANN, "text", 4) for _ in range(200)}
    assert len(names) == 200 and all(len(name) == 24 and int(name, 16) for name in names)


@in_loop
def test_an_owner_has_room_for_so_many_and_the_oldest_of_its_own_goes():
    gone = []
    uploads = Uploads("upload", Limits(each=3, each_bytes=100), gone.append)
    others = uploads.put(BOB, "bob's", 90)
    names = [uploads.put(ANN, text, 10) for text in "abc"]
    uploads.get(ANN, names[0], str)  # so that b is what was not asked for the longest
    uploads.put(ANN, "d", 10)
    assert gone == ["b"] and status(uploads.get, ANN, names[1], str) == 404
    uploads.put(ANN, "large", 95)
    assert gone == ["b", "c", "a", "d"]
    assert uploads.get(BOB, others, str) == "bob's"
    assert status(uploads.put, ANN, "too large", 101) == 413
    assert not uploads.may_hold(101) and uploads.may_hold(100)


@in_loop
def test_all_owners_together_have_room_for_so_many():
    uploads = Uploads("upload", Limits(each=3, all=5, all_bytes=100))
    names = [(bytes([owner]), uploads.put(bytes([owner]), owner, 10)) for owner in range(8)]
    assert len(uploads) == 5
    assert status(uploads.get, *names[2], int) == 404
    assert uploads.get(*names[3], int) == 3
    uploads.put(ANN, "large", 85)
    assert len(uploads) == 2 and uploads.get(*names[3], int) == 3


@in_loop
def test_a_thing_is_forgotten_some_minutes_after_it_was_last_asked_for():
    clock = Clock()
    gone = []
    uploads = Uploads("upload", Limits(seconds=600), gone.append, clock)
    first = uploads.put(ANN, "first", 1)
    second = uploads.put(ANN, "second", 1)
    clock.now = 400
    assert uploads.get(ANN, first, str) == "first"
    clock.now = 700
    assert status(uploads.get, ANN, second, str) == 404
    assert uploads.get(ANN, first, str) == "first"
    clock.now = 1301
    assert len(uploads) == 0 and gone == ["second", "first"]


def test_a_thing_is_forgotten_where_nobody_comes_any_more():
    gone = []

    async def leave():
        uploads = Uploads("upload", Limits(seconds=0.03), gone.append)
        uploads.put(ANN, "first", 1)
        await asyncio.sleep(0.02)
        uploads.put(BOB, "second", 1)
        await asyncio.sleep(0.1)

    asyncio.run(leave())
    assert gone == ["first", "second"]
