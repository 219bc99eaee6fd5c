"""Twelve threads and one pipeline: the text of each call equals that of the same call alone.

`make threads` runs it with 200 calls a thread, in place of the few that the suite runs.
"""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import TINY_PYTHON

from neo_tf.text_generation import pipeline

THREADS = 12
CALLS = int(os.environ.get("NEO_TF_CALLS_OF_EACH_THREAD", "10"))
BEGINNINGS = [
    "def read_lines(path):",
    "import os\n",
    "class Parser:",
    "x = 1\ny = 2\n",
    "for line in ",
    "    return ",
    "",
]


class Put:
    """A streamer with transformers' put and end."""

    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(value.tolist())

    def end(self):
        self.heard.append("end")


def _streamed(generator, prompt, **arguments):
    heard = []
    (result,) = generator(prompt, streamer=heard.append, **arguments)
    assert result["generated_text"] == prompt + "".join(heard)
    return result, "".join(heard)


def _put(generator, prompt, **arguments):
    streamer = Put()
    return generator(prompt, streamer=streamer, **arguments), streamer.heard


# A function of the pipeline, a prompt, a number of new tokens and a seed.
KINDS = {
    "greedy": lambda g, p, n, s: g(p, do_sample=False, max_new_tokens=n),
    "drawn": lambda g, p, n, s: g(p, max_new_tokens=n, seed=s),
    "drawn, several": lambda g, p, n, s: g(p, max_new_tokens=n, seed=s, num_return_sequences=3, top_p=0.9, top_k=20),
    "a stop string": lambda g, p, n, s: g(p, do_sample=False, max_new_tokens=30, stop_strings=["\n", "("]),
    "before a stop string": lambda g, p, n, s: g(
        p, max_new_tokens=30, seed=s, stop_strings=["s"], include_stop_str_in_output=False
    ),
    "a stream": lambda g, p, n, s: _streamed(g, p, do_sample=False, max_new_tokens=n),
    "a drawn stream": lambda g, p, n, s: _streamed(g, p, max_new_tokens=n, seed=s, repetition_penalty=1.3),
    "put and end": lambda g, p, n, s: _put(g, p, do_sample=False, max_new_tokens=n),
    "beams": lambda g, p, n, s: g(p, do_sample=False, max_new_tokens=n, num_beams=3, num_return_sequences=2),
    "drawn beams": lambda g, p, n, s: g(p, max_new_tokens=n, num_beams=2, seed=s),
    "a batch": lambda g, p, n, s: g([p, f"{p}#", "x"], do_sample=False, max_new_tokens=n),
    "a drawn batch": lambda g, p, n, s: g([p, f"{p}#"], max_new_tokens=n, seed=s, num_return_sequences=2),
    "a generator": lambda g, p, n, s: list(g((text for text in (p, "y")), do_sample=False, max_new_tokens=n)),
    "guessed": lambda g, p, n, s: g(p * 3, do_sample=False, max_new_tokens=n, prompt_lookup_num_tokens=4),
    "cut": lambda g, p, n, s: g(
        f"{p}{p} = 1\n" * 20, do_sample=False, max_new_tokens=n, truncation=True, max_length=30
    ),
    "ids": lambda g, p, n, s: g([5 + s % 90, 7, 9], do_sample=False, max_new_tokens=n, return_tensors=True),
    "log-probabilities": lambda g, p, n, s: [
        found["token_logprobs"] for found in g(p, do_sample=False, max_new_tokens=n, logprobs=0)
    ],
}


def _close(found, expected):
    """Equal, but for the last digits of log-probabilities, which depend on the size of a batch."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-4)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_close, found, expected))
    return found == expected


def test_the_text_of_each_call_is_that_of_the_call_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path))
    generator = pipeline("text-generation", model=TINY_PYTHON, batch_size=6, threads=2)
    draw = random.Random(0)
    jobs = []
    for number in range(THREADS * CALLS):
        kind = list(KINDS)[number % len(KINDS)]
        beginning = draw.choice(BEGINNINGS)
        prompt = beginning + ("" if not beginning else draw.choice(["", " ", "a", "self", "\n    "]))
        jobs.append((kind, prompt, draw.randrange(1, 14), draw.randrange(40)))

    def run(job):
        kind, *arguments = job
        return KINDS[kind](generator, *arguments)

    alone = {job: run(job) for job in dict.fromkeys(jobs)}
    draw.shuffle(jobs)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(
            pool.map(lambda own: [run(job) for job in own], (jobs[thread::THREADS] for thread in range(THREADS)))
        )
    for thread, results in enumerate(found):
        for job, result in zip(jobs[thread::THREADS], results, strict=True):
            assert _close(result, alone[job]), job
    assert generator.engine.slots.free == 6
    assert {kind for kind, *_ in jobs} == set(KINDS)
