"""The decode loop: the original's continuations token for token, and each request the same in company as alone."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import DECODABLE, GOLDEN, PADDING, TINY_PYTHON, Reference

import neo_tf
from neo_tf.errors import RequestError
from neo_tf.runtime.device.machine import exact_int8
from neo_tf.runtime.device.session import Session
from neo_tf.runtime.engine.engine import Engine
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.engine.service import Service
from neo_tf.runtime.sampling.options import BeamOptions, SamplingOptions
from neo_tf.runtime.tokenizer import Tokenizer

MODELS = {name: (GOLDEN / name, PADDING) for name in DECODABLE} | {"tiny-python": (TINY_PYTHON, 1)}
GROUPS = BeamOptions(4, num_beam_groups=2, diversity_penalty=1.0)
# The stop token of the original's run, in report.json; what comes after a row's first one is not compared.
STOPS = [
    (name, key)
    for name in DECODABLE
    for key in ("stop", "stop_both", "stop_one_row", "eos_in_prompt")
    if key in Reference.load(GOLDEN / name).greedy
]


@pytest.fixture
def engine(exported):
    """A function that makes an engine over a golden model, with some slots."""
    return lambda name, slots=1: Engine(Session(exported(MODELS[name][0]), slots=slots))


@pytest.fixture
def small_chunks(monkeypatch):
    """Prompts are prefilled 5 tokens at a time, so that half-prefilled rows lie between running ones."""
    for name in ("PREFILL_CHUNK", "CUDA_PREFILL_CHUNK"):
        monkeypatch.setattr(f"neo_tf.runtime.engine.engine.{name}", 5)


def golden_rows(name):
    reference = Reference.load(*MODELS[name])
    return [(prompt, new) for rows in reference.greedy.values() for prompt, new in rows]


def run(engine, request):
    """What comes of a request that runs alone."""
    (generation,) = engine.generate([request])
    return generation


# ---- the original's continuations


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_the_originals(engine, name, slots):
    rows = golden_rows(name)
    assert rows
    requests = [Request(prompt, max_new_tokens=len(new)) for prompt, new in rows]
    generations = engine(name, slots).generate(requests)
    assert [generation.request for generation in generations] == requests
    for generation, (_, new) in zip(generations, rows, strict=True):
        assert generation.tokens == new
        assert generation.finish_reason == "length"


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("name", ["tiny-global-local", "tiny-local-radius", "vocab-padded"])
def test_half_prefilled_rows_between_running_ones_change_nothing(engine, small_chunks, name, slots):
    """Long prompts, which are the original's own output so far, arrive while short ones run."""
    requests, expected = [], []
    for number, (prompt, new) in enumerate(golden_rows(name)):
        given = (0, 41, 7, 22)[number % 4]
        left = new[given : given + (len(new), 3, 11)[number % 3]]
        requests.append(Request(prompt + new[:given], max_new_tokens=len(left) or 1))
        expected.append(left)
    generations = engine(name, slots).generate(requests)
    for generation, tokens in zip(generations, expected, strict=True):
        assert generation.tokens[: len(tokens)] == tokens


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name, key", STOPS)
def test_a_stop_token_ends_a_request(engine, name, key, slots):
    """The original goes on with a row until all have ended; ours ends at its own first one, which it keeps."""
    eos = json.loads((GOLDEN / name / "report.json").read_text())[f"greedy_{key}"]["eos_id"]
    rows = Reference.load(GOLDEN / name).greedy[key]
    requests = [Request(prompt, max_new_tokens=len(new), stop_token_ids=(eos,)) for prompt, new in rows]
    generations = engine(name, slots).generate(requests)
    for generation, (_, new) in zip(generations, rows, strict=True):
        stopped = eos in new
        assert generation.tokens == (new[: new.index(eos) + 1] if stopped else new)
        assert generation.finish_reason == ("stop" if stopped else "length")


def test_the_stop_tests_see_both_ends(exported):
    assert len(STOPS) >= 6
    ends = set()
    for name, key in STOPS:
        eos = json.loads((GOLDEN / name / "report.json").read_text())[f"greedy_{key}"]["eos_id"]
        rows = Reference.load(GOLDEN / name).greedy[key]
        ends |= {(eos in new, eos in prompt) for prompt, new in rows}
    assert {(True, False), (False, True)} <= ends


# ---- limits


@pytest.mark.parametrize("name", ["tiny-global-local", "tiny-local-radius", "tiny-global"])
@pytest.mark.parametrize("limit", [None, "exact"])
def test_the_context_is_filled_to_its_last_position(engine, name, limit):
    reference = Reference.load(*MODELS[name])
    inputs = reference.inputs[0].tolist()
    n_ctx = len(inputs)
    for prompt in ([inputs[0]], inputs[: n_ctx // 2], inputs[: n_ctx - 2], inputs[: n_ctx - 1]):
        room = n_ctx - len(prompt)
        found = run(engine(name), Request(prompt, max_new_tokens=room if limit else None))
        assert len(found.tokens) == room and found.finish_reason == "length"
    # The last token was chosen from position n_ctx - 2, of which the original's logits are known.
    kept = reference.positions.tolist()
    if n_ctx - 2 in kept:
        assert found.tokens == [int(reference.logits[0, kept.index(n_ctx - 2)].argmax())]


def test_original_continuations_up_to_the_last_position(engine):
    """tiny-global's context is 64: the original filled it."""
    (prompt, new), _ = Reference.load(GOLDEN / "tiny-global").greedy["fp32_compute"]
    assert len(prompt) + len(new) == 64
    assert run(engine("tiny-global"), Request(prompt)).tokens == new


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_max_new_tokens(engine, limit):
    prompt, new = golden_rows("vocab-padded")[0]
    found = run(engine("vocab-padded"), Request(prompt, max_new_tokens=limit))
    assert found.tokens == new[:limit] and found.finish_reason == "length"


def test_a_stop_token_at_the_limit_is_a_stop(engine):
    prompt, new = golden_rows("vocab-padded")[0]
    found = run(engine("vocab-padded"), Request(prompt, max_new_tokens=3, stop_token_ids=(new[2],)))
    assert found.tokens == new[:3] and found.finish_reason == "stop"


@pytest.mark.parametrize("extra", [0, 1, 2, 5])
def test_min_new_tokens_puts_the_end_off(engine, extra):
    """The continuation would end with its 4th token: it does where that is allowed, and goes another way if not."""
    prompt, new = golden_rows("vocab-padded")[0]
    stop = new[3]
    assert stop not in new[:3]
    request = Request(prompt, max_new_tokens=20, min_new_tokens=3 + extra, stop_token_ids=(stop,))
    tokens = run(engine("vocab-padded"), request).tokens
    assert tokens[:3] == new[:3]
    if extra == 0:
        assert tokens == new[:4]
    else:
        assert stop not in tokens[: 3 + extra] and len(tokens) > 3 + extra


def test_min_new_tokens_is_transformers(engine, tmp_path_factory):
    """Also what is chosen in the end's place, with two stop tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("huggingface") / "demo"
    neo_tf.convert(TINY_PYTHON, folder, to="huggingface")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt, new = golden_rows("tiny-python")[0]
    stops = [new[2], new[5]]
    for least in (1, 3, 4, 8, 30):
        expected = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=40,
            min_new_tokens=least,
            eos_token_id=stops,
            pad_token_id=1,
        )[0, len(prompt) :].tolist()
        request = Request(prompt, max_new_tokens=40, min_new_tokens=least, stop_token_ids=tuple(stops))
        assert run(engine("tiny-python"), request).tokens == expected


# ---- company


def random_requests(generator, n_ctx, n_vocab, count):
    """Requests of all kinds: lengths, limits, stops, greedy and sampled."""
    requests = []
    for number in range(count):
        length = int(generator.choice([1, 2, 4, 5, 6, 10, 11, n_ctx // 2, n_ctx - 1]))
        prompt = generator.integers(0, n_vocab, length).tolist()
        room = min(n_ctx - length, 30)
        limit = int(generator.integers(1, room + 1))
        stops = tuple(generator.integers(0, n_vocab, generator.choice([0, 0, 40])).tolist())
        least = int(generator.integers(0, limit + 1))
        sampling = SamplingOptions(
            do_sample=bool(generator.integers(2)),
            temperature=float(generator.choice([0.5, 1.0, 2.0])),
            top_k=int(generator.choice([0, 5, 50])),
            top_p=float(generator.choice([0.5, 0.9, 1.0])),
            min_p=float(generator.choice([0, 0, 0.1])),
            typical_p=float(generator.choice([0.8, 1.0])),
            repetition_penalty=float(generator.choice([1.0, 1.0, 1.5])),
            presence_penalty=float(generator.choice([0, 0, 1.0])),
            frequency_penalty=float(generator.choice([0, 0, 0.5])),
            no_repeat_ngram_size=int(generator.choice([0, 0, 1, 2])),
            suppress_tokens=generator.integers(0, n_vocab, generator.choice([0, 50])).tolist(),
            seed=number,
        )
        kept = {"logprobs": 2, "prompt_logprobs": 1} if generator.random() < 0.3 else {}
        requests.append(Request(prompt, limit, least, stops, sampling, **kept))
    return requests


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["tiny-local-radius", "vocab-padded", "tiny-global-local"])
def test_random_company_changes_no_request(engine, small_chunks, name, seed):
    generator = np.random.default_rng(seed)
    together = engine(name, slots=int(generator.integers(2, 6)))
    requests = random_requests(generator, together.config.n_ctx, together.config.n_vocab, 12)
    # Some come while others run.
    generations = [together.submit(request) for request in requests[:4]]
    for request in requests[4:]:
        for _ in range(generator.integers(0, 4)):
            together.step()
        generations.append(together.submit(request))
    while together.step():
        pass
    single = engine(name)
    for request, found in zip(requests, generations, strict=True):
        other = run(single, request)
        assert (found.tokens, found.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(found.token_logprobs, other.token_logprobs, atol=1e-4)
        np.testing.assert_allclose(found.prompt_token_logprobs, other.prompt_token_logprobs, atol=1e-4)
        assert found.finish_reason in ("stop", "length")
        assert len(found.tokens) >= max(1, request.min_new_tokens)


def test_prompt_log_probabilities_are_the_originals(engine, small_chunks):
    """Every token's but the first, over several chunks; and they change no token."""
    reference = Reference.load(*MODELS["tiny-local-radius"])
    inputs, kept = reference.inputs[0].tolist(), reference.positions.tolist()
    requests = [Request(inputs[:23], 4, prompt_logprobs=count) for count in (None, 3)]
    plain, found = engine("tiny-local-radius", 2).generate(requests)
    assert found.tokens == plain.tokens and plain.prompt_token_logprobs == []
    assert len(found.prompt_token_logprobs) == len(found.prompt_top_logprobs) == 22
    for position in [place for place in kept if place < 22]:
        logits = reference.logits[0, kept.index(position)].astype(np.float64)
        logs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert found.prompt_token_logprobs[position] == pytest.approx(logs[inputs[position + 1]], abs=1e-4)
        assert list(found.prompt_top_logprobs[position]) == np.argsort(-logs)[:3].tolist()


def test_seeds_decide_and_differ(engine):
    prompt, _ = golden_rows("vocab-padded")[0]

    def draw(*seeds):
        requests = [
            Request(prompt, 20, sampling=SamplingOptions(do_sample=True, temperature=2.0, seed=seed)) for seed in seeds
        ]
        return [generation.tokens for generation in engine("vocab-padded", 2).generate(requests)]

    first = draw(1, 2, 1, 3)
    assert first[0] == first[2] and first[0] != first[1] != first[3]
    assert draw(3, 2, 1) == [first[3], first[1], first[0]]


def test_tokens_arrive_one_by_one_and_in_order(engine):
    seen = []
    generations = []
    two = engine("vocab-padded", 2)
    for number, (prompt, new) in enumerate(golden_rows("vocab-padded")[:5]):

        def tell(token, number=number):
            seen.append((number, token, list(generations[number].tokens)))

        generations.append(two.submit(Request(prompt, max_new_tokens=min(len(new), 9), on_token=tell)))
    while two.step():
        pass
    for number, generation in enumerate(generations):
        mine = [(token, so_far) for who, token, so_far in seen if who == number]
        assert [token for token, _ in mine] == generation.tokens
        assert [so_far[-1] for _, so_far in mine] == generation.tokens
    # Two slots: the second's first token comes before the first's last.
    order = [number for number, _, _ in seen]
    assert order.index(1) < len(order) - 1 - order[::-1].index(0)


def test_a_long_prompt_does_not_stall_those_that_run(engine, small_chunks):
    both = engine("tiny-local-radius", 2)
    running = both.submit(Request([4, 8, 160], max_new_tokens=50))
    both.step()
    long = both.submit(Request(list(range(100)), max_new_tokens=1))
    before, steps = len(running.tokens), 0
    while long.finish_reason is None:
        both.step()
        steps += 1
    assert steps == 20
    assert len(running.tokens) == before + steps


def test_finished_slots_are_taken_at_once(engine):
    """Twice as many requests as slots, of two lengths: the short ones' slots serve the rest meanwhile."""
    two = engine("vocab-padded", 2)
    requests = [Request([4, 8, 160], max_new_tokens=limit) for limit in (30, 3, 3, 3)]
    for request in requests:
        two.submit(request)
    steps = 1
    while two.step():
        steps += 1
    assert steps <= 33


def test_the_first_token_of_a_request_may_end_it(engine):
    prompt, new = golden_rows("vocab-padded")[0]
    generations = engine("vocab-padded", 2).generate([Request(prompt, max_new_tokens=1) for _ in range(5)])
    assert [generation.tokens for generation in generations] == [new[:1]] * 5


# ---- what is refused

REFUSED = {
    "empty": (Request([]), "empty"),
    "negative id": (Request([1, -1]), r"-1 at position 1 .*257"),
    "id past the vocabulary": (Request([1, 2, 257]), r"257 at position 2 .*257"),
    "huge id": (Request([2**40]), str(2**40)),
    "id past int64": (Request([2**70]), "."),
    "no integers": (Request([1.5, 2.0]), "integers"),
    "text": (Request(["a"]), "integers"),
    "nested": (Request([[1, 2]]), "flat"),
    "ragged": (Request([[1], [2, 3]]), "flat"),
    "two tokens after a full context": (Request([1] * 64, max_new_tokens=2), r"64 tokens .* 2 .*64"),
    "longer than the context": (Request([1] * 65), r"65 tokens.*64"),
    "no new tokens": (Request([1], max_new_tokens=0), "max_new_tokens .*0"),
    "fewer than none": (Request([1], max_new_tokens=-3), "max_new_tokens .*-3"),
    "past the context": (Request([1] * 60, max_new_tokens=6), r"60 tokens .* 6 .*64"),
    "negative stop": (Request([1], stop_token_ids=(-1,)), "-1"),
    "no time": (Request([1], max_time=0), "max_time .*0"),
    "a time that is none": (Request([1], max_time="long"), "max_time .*long"),
    "less than no logprobs": (Request([1], logprobs=-1), "logprobs .*-1"),
    "logprobs of the prompt": (Request([1], prompt_logprobs=1.5), "prompt_logprobs .*1.5"),
    "a stop string without tokenizer": (Request([1], stop_strings=("a",)), "tokenizer"),
    "an empty stop string": (Request([1], stop_strings=("",)), "stop_strings"),
    "stop strings that are none": (Request([1], stop_strings=5), "stop_strings"),
    "stop strings in one": (Request([1], stop_strings="ab"), "stop_strings"),
    "a bias past the vocabulary": (Request([1], sampling=SamplingOptions(logit_bias={257: 1})), "logit_bias.* 257"),
    "stop past the vocabulary": (Request([1], stop_token_ids=(3, 257)), r"257 .*257"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_and_nothing_else_starts(engine, case):
    request, message = REFUSED[case]
    one = engine("tiny-global")
    prompt, new = golden_rows("tiny-global")[0]
    told = []
    good = Request(prompt, max_new_tokens=6, on_token=told.append)
    with pytest.raises(RequestError, match=message) as error:
        one.generate([good, request])
    assert "\n" not in str(error.value)
    assert told == [] and not one.step()
    with pytest.raises(RequestError):
        one.submit(request)
    assert not one.step()
    assert run(one, good).tokens == new[:6] == told


def test_one_token_follows_a_full_context(engine):
    """It is chosen from the last position, and needs none of its own. The original's logits are the judge."""
    reference = Reference.load(*MODELS["tiny-global"])
    inputs, kept = reference.inputs[0].tolist(), reference.positions.tolist()
    found = run(engine("tiny-global"), Request(inputs))
    assert len(found.tokens) == 1 and found.finish_reason == "length"
    assert kept[-1] == len(inputs) - 1 == 63 and found.tokens == [int(reference.logits[0, -1].argmax())]


def test_numpy_prompts_are_served(engine):
    prompt, new = golden_rows("vocab-padded")[0]
    tokens = run(engine("vocab-padded"), Request(np.array(prompt, np.int32), max_new_tokens=5)).tokens
    assert tokens == new[:5] and all(type(token) is int for token in tokens)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_call_leaves_the_engine_usable(engine, error):
    """Ctrl-C, or an error in a token stream: the next call neither goes on with the old requests nor lacks slots."""
    two, told = engine("vocab-padded", 2), []
    rows = golden_rows("vocab-padded")

    def fail(token):
        told.append(token)
        if len(told) == 3:
            raise error

    interrupted = [Request(prompt, max_new_tokens=20, on_token=fail) for prompt, _ in rows[:4]]
    with pytest.raises(error):
        two.generate(interrupted)
    count = len(told)
    assert count <= 4  # an error of its own stream leaves a neighbour in the same step its token
    for _ in range(2):
        generations = two.generate([Request(prompt, max_new_tokens=9) for prompt, _ in rows])
        assert [generation.tokens for generation in generations] == [new[:9] for _, new in rows]
    assert len(told) == count  # nothing of the interrupted ones goes on


def test_a_function_of_ones_own_fails_its_request_alone(engine):
    """A processor or a stream of text that raises ends its request, and none of its company."""
    (prompt, new), *_ = golden_rows("tiny-python")
    tokenizer = Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json")

    def fail(*arguments):
        raise KeyError("mine")

    requests = [
        Request(prompt, 12, sampling=SamplingOptions(logits_processor=[fail])),
        Request(prompt, 12),
        Request(prompt, 12, tokenizer=tokenizer, on_text=fail),
    ]
    three = engine("tiny-python", 3)
    first, good, last = map(three.submit, requests)
    while three.step():
        pass
    assert good.tokens == new[:12]
    assert [(one.finish_reason, type(one.error)) for one in (first, last)] == [("error", KeyError)] * 2


def test_no_token_left_ends_a_request(engine):
    """At its first token, or later; its company goes on."""
    three = engine("vocab-padded", 3)
    everything = list(range(three.config.n_vocab))
    rows = golden_rows("vocab-padded")
    prompt, new = rows[0]
    banned = SamplingOptions(suppress_tokens=[token for token in everything if token not in (4, 5)])
    requests = [
        Request(prompt, 9),
        Request([7], 50, sampling=SamplingOptions(suppress_tokens=everything)),
        Request([7], 50, sampling=dataclasses.replace(banned, no_repeat_ngram_size=1)),
    ]
    first, second, third = three.generate(requests)
    assert [one.finish_reason for one in (first, second, third)] == ["length", "stop", "stop"]
    assert first.tokens == new[:9] and second.tokens == [] and sorted(third.tokens) == [4, 5]


@pytest.mark.parametrize("name", ["tiny-python", "mem-kv", "attn-mix"])
def test_prompts_in_int8_are_the_same_in_company(tmp_path, name):
    """Their last tokens run with other sequences' new ones; those of a single token do not."""
    neo_tf.export_onnx(MODELS[name][0], tmp_path / "onnx", "int8")
    session = Session(tmp_path / "onnx", slots=4)
    assert session.has_prompt_graph == exact_int8()
    runs, decode = [], session.decode
    session.decode = lambda first, ids, past, *more: (runs.append(list(past)), decode(first, ids, past, *more))[1]
    ids = np.random.default_rng(3).integers(0, session.config.n_vocab, 60).tolist()
    lengths = [1, 9, 1, 40, 2, 1, 17, 5, 1]
    requests = [Request(ids[at : at + length], max_new_tokens=12) for at, length in enumerate(lengths)]
    generations = Engine(session).generate(requests)
    single = Engine(Session(tmp_path / "onnx"), prefix_cache_bytes=0)
    for generation, length in zip(generations, lengths, strict=True):
        assert generation.tokens == run(single, generation.request).tokens
        assert any(length - 1 in past for past in runs) or length == 1 or not exact_int8()


@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("name", ["tiny-global-local", "tiny-local-radius", "mem-kv", "attn-mix"])
def test_the_last_sequences_move_to_the_slots_that_others_left(exported, name, tight):
    """Idle slots cost as much as running ones. Where memory is limited they stay: both would hold the text."""
    folder = exported(MODELS[name][0] if name in MODELS else GOLDEN / name)
    session = Session(folder, slots=4)
    limit = session.cache.bytes_at_most - 1 if tight else None
    widths, decode = [], session.decode
    session.decode = lambda first, ids, *more: (widths.append((first, len(ids))), decode(first, ids, *more))[1]
    copies, copy = [], session.cache.copy
    session.cache.copy = lambda *places: (copies.append(places), copy(*places))
    new = min(100, session.config.n_ctx - 3)
    requests = [Request([number, 1, 2], max_new_tokens=length) for number, length in enumerate((3, new, 3, new))]
    generations = Engine(session, cache_bytes=limit).generate(requests)
    assert (not copies) if tight else (copies and widths[len(widths) // 2] == (0, 2))
    single = Engine(Session(folder))
    for generation in generations:
        assert generation.tokens == run(single, generation.request).tokens


class NoTokenizer:
    """Fails where a sequence begins, after every check."""

    def stream(self, *arguments, **more):
        raise OSError("no such tokenizer")


def test_a_request_that_cannot_begin_fails_alone_and_gives_its_slots_back(engine):
    made = engine("tiny-global-local", slots=2)
    bad = made.submit(Request([3], max_new_tokens=9, tokenizer=NoTokenizer()))
    good = made.submit(Request([1, 2], max_new_tokens=9))
    while made.step():
        pass
    assert good.finish_reason == "length" and bad.finish_reason == "error" and "no such tokenizer" in str(bad.error)
    assert made.slots.free == 2
    with pytest.raises(OSError, match="no such tokenizer"):
        made.generate([Request([1, 2]), Request([3], tokenizer=NoTokenizer())])
    assert made.slots.free == 2


@pytest.mark.parametrize(
    "values, told",
    [
        ({"max_new_tokens": 4.0}, "max_new_tokens must be a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0"),
        ({"stop_token_ids": 5}, "stop_token_ids must be token ids"),
        ({"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 10**9}, "max_matching_ngram_size must be from 1"),
        ({"beams": GROUPS, "sampling": SamplingOptions(do_sample=True)}, "num_beam_groups with do_sample=True"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(engine, values, told):
    with pytest.raises(RequestError, match=told):
        engine("tiny-global-local", slots=4).submit(Request([1, 2], **values))


def test_a_request_may_run_twice_and_each_run_has_its_own_result(engine):
    made, request = engine("tiny-global-local", slots=2), Request([1, 2], max_new_tokens=4)
    first, second = made.generate([request, request])
    assert first is not second and first.tokens == second.tokens and len(first.tokens) == 4
    assert made.slots.free == 2 and not made.step()


def test_a_request_does_not_change(engine):
    """Neither by the engine, nor with the lists that it was made of: what was checked is what runs."""
    prompt, stops = [1, 2], [7]
    request = Request(prompt, max_new_tokens=4, stop_token_ids=stops)
    prompt[0] = 10**9
    stops.append("no id")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.max_new_tokens = 0
    assert len(run(engine("tiny-global-local"), request).tokens) == 4
    assert (request.prompt, request.stop_token_ids) == ((1, 2), (7,))
    assert Request(iter([1, 2])).prompt == (1, 2)  # an iterator is read once


@pytest.mark.parametrize("name, value", [("cache_bytes", 0), ("cache_bytes", "2GB"), ("prefix_cache_bytes", -5)])
def test_sizes_that_are_none_are_refused(exported, name, value):
    with pytest.raises(RequestError, match=f"{name} must be"):
        Engine(Session(exported(GOLDEN / "tiny-global")), **{name: value})


@pytest.mark.parametrize("lookup", [None, 6])
def test_stop_strings_past_the_window_and_at_the_last_position(exported, lookup):
    """Every text of one character or two that the model writes, stopped at each place where it comes first."""
    tokenizer = Tokenizer(TINY_PYTHON / "byte-level-bpe.tokenizer.json")
    session = Session(exported(TINY_PYTHON))
    made, n_ctx = Engine(session), session.config.n_ctx
    prompt = (tokenizer.encode("def read_lines(path):\n") * 40)[: n_ctx - 60]  # far past the window of 256
    sampling = SamplingOptions(do_sample=True, seed=5)
    whole = run(made, Request(prompt, tokenizer=tokenizer, sampling=sampling))
    assert len(prompt) + len(whole.tokens) == n_ctx and whole.finish_reason == "length"
    last = tokenizer.decode(whole.tokens[-1:])
    for stop in {whole.text[at : at + 3] for at in (9, 40, 80)} | {last}:
        options = {"sampling": sampling, "stop_strings": (stop,), "prompt_lookup_num_tokens": lookup}
        found = run(made, Request(prompt, tokenizer=tokenizer, include_stop_str_in_output=False, **options))
        assert found.finish_reason == "stop" and found.text == whole.text[: whole.text.index(stop)]
        assert found.tokens == whole.tokens[: len(found.tokens)]


@pytest.mark.parametrize("way", ["step", "generate", "service"])
def test_the_session_is_warmed_up_once_before_anything_is_admitted(engine, monkeypatch, way):
    """On CUDA each captured step runs three times, and writes into the first position of its slots."""
    made, free = engine("tiny-global-local", slots=3), []
    warm_up = made.session.warm_up
    monkeypatch.setattr(made.session, "warm_up", lambda: (free.append(made.slots.free), warm_up()))
    request = Request([1, 2, 3], max_new_tokens=4)
    if way == "step":
        generation = made.submit(request)
        while made.step():
            pass
    elif way == "generate":
        (generation,) = made.generate([request])
    else:
        with Service(made) as service:
            (generation,) = service.generate([request])
    assert free == [3] and len(generation.tokens) == 4
    made.generate([request])
    assert free == [3]


def test_on_cuda_no_sequence_moves_within_a_bucket(engine, device):
    """Three sequences run in a bucket of four, wherever they are."""
    made, copies = engine("tiny-global-local", slots=4), []
    copy = made.session.cache.copy
    made.session.cache.copy = lambda *places: (copies.append(places), copy(*places))
    requests = [Request([number, 1, 2], max_new_tokens=length) for number, length in enumerate((3, 60, 60, 60))]
    made.generate(requests)
    assert len(copies) == (0 if device == "cuda" else 1)
    copies.clear()
    made.generate(
        [dataclasses.replace(one, max_new_tokens=3 if number < 2 else 60) for number, one in enumerate(requests)]
    )
    assert len(copies) == 2


@pytest.mark.parametrize("source, chunk", [(TINY_PYTHON, 64), (GOLDEN / "attn-mix", 8)], ids=["window", "sums"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_rows_have_partners_beside_prompts_that_cannot_idle(tmp_path, monkeypatch, source, chunk, precision):
    """A local layer that is about to drop positions, and sums, would be spoiled by a step of others."""
    neo_tf.export_onnx(source, tmp_path / "onnx", precision)
    monkeypatch.setattr("neo_tf.runtime.engine.engine.PREFILL_CHUNK", chunk)
    session = Session(tmp_path / "onnx", slots=2)
    config = session.config
    ids = np.random.default_rng(3).integers(0, config.n_vocab, config.n_ctx)
    # The first one runs while the second one's prompt comes, chunk by chunk.
    first, second = Request(ids[:5], 16, output_logits=True), Request(ids[: config.n_ctx - 20], 8, output_logits=True)
    halves = [length for length in range(chunk, len(second.prompt), chunk) if not session.cache.can_idle(length)]
    assert halves, "no half of the prompt is one that cannot idle"
    engine = Engine(session, prefix_cache_bytes=0)
    together = engine.generate([first, second])
    for found in together:
        (alone,) = engine.generate([found.request])
        assert found.tokens == alone.tokens
        np.testing.assert_array_equal(found.logits, alone.logits)
