"""The Hugging Face-shaped front, as the model cards call it."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import DECODABLE, GOLDEN, PADDING, TINY_PYTHON, Reference

import neo_tf
from neo_tf.errors import CheckpointError, RequestError
from neo_tf.runtime.engine.generation import Generation
from neo_tf.runtime.engine.stopping import Stopping
from neo_tf.runtime.generation_config import ModelSettings
from neo_tf.runtime.sampling.beam_group import Hypothesis
from neo_tf.text_generation import pipeline

PROMPT = "def read_lines(path):"
NEW_IDS = {"return_tensors": True, "return_full_text": False}
MODELS = {name: (GOLDEN / name, PADDING) for name in DECODABLE} | {"tiny-python": (TINY_PYTHON, 1)}


@pytest.fixture(scope="module")
def generator(demo_folder):
    """The demo model."""
    return pipeline("text-generation", model=demo_folder, do_sample=False)


@pytest.fixture
def golden(exported):
    """A function that makes a pipeline of a golden model, which has no tokenizer."""
    greedy = {"do_sample": False}
    return lambda name, **options: pipeline("text-generation", model=exported(MODELS[name][0]), **greedy, **options)


@pytest.fixture(scope="module")
def transformers_generator(tmp_path_factory):
    """transformers' own pipeline over the converted demo model."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("huggingface") / "demo"
    neo_tf.convert(TINY_PYTHON, folder, to="huggingface")
    return transformers.pipeline("text-generation", model=str(folder), device="cpu")


def new_tokens(results):
    return [result["generated_token_ids"] for result in results]


# ---- what comes out


def test_the_model_cards_call(demo_folder):
    from neo_tf import pipeline

    generator = pipeline("text-generation", model=str(demo_folder))
    (found,) = generator("EleutherAI has", do_sample=True, min_length=50)
    assert list(found) == ["generated_text"]
    assert found["generated_text"].startswith("EleutherAI has")
    assert len(found["generated_text"]) > len("EleutherAI has")


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_are_the_originals(golden, name, batch_size):
    for rows in Reference.load(*MODELS[name]).greedy.values():
        prompts = [prompt for prompt, _ in rows]
        limit = max(len(prompt) + len(new) for prompt, new in rows)
        # No end-of-text: the original's rows go on until the last one is done.
        generator = golden(name, batch_size=batch_size)
        found = generator(prompts, max_length=limit, return_tensors=True, eos_token_id=None)
        for group, (prompt, new) in zip(found, rows, strict=True):
            (result,) = group
            assert result["generated_token_ids"][: len(prompt + new)] == prompt + new


@pytest.mark.parametrize(
    "prompt, arguments",
    [
        (PROMPT, {"max_new_tokens": 20}),
        (PROMPT, {"max_new_tokens": 20, "return_full_text": False}),
        ([PROMPT, "import os\n\nclass Naïve:"], {"max_new_tokens": 12}),
        ([PROMPT], {"max_new_tokens": 5}),
        (PROMPT, {"max_new_tokens": 5, "return_tensors": True}),
        ([PROMPT, "# é"], {"max_new_tokens": 5, "return_full_text": False}),
        ("import os\n<|endoftext|>def main(", {"max_new_tokens": 9}),
        ("import os\n<|endoftext|>def main(", {"max_new_tokens": 9, "return_full_text": False}),
    ],
)
def test_texts_and_their_shape_are_transformers(generator, transformers_generator, prompt, arguments):
    expected = transformers_generator(prompt, do_sample=False, **arguments)
    assert generator(prompt, **arguments) == expected


def test_ids_are_prompts_too(generator):
    ids = generator.tokenizer.encode(PROMPT)
    expected = generator(PROMPT, max_new_tokens=15)
    for prompt in (ids, tuple(ids), np.array(ids)):
        assert generator(prompt, max_new_tokens=15) == expected
    assert generator([ids, ids], max_new_tokens=15) == [expected, expected]
    assert generator(np.array([ids, ids]), max_new_tokens=15) == [expected, expected]
    assert generator([ids, PROMPT], max_new_tokens=15) == [expected, expected]


def test_only_the_new_text_on_request(generator):
    (whole,) = generator(PROMPT, max_new_tokens=15)
    (new,) = generator(PROMPT, max_new_tokens=15, return_full_text=False)
    assert PROMPT + new["generated_text"] == whole["generated_text"]
    (ids,) = generator(PROMPT, max_new_tokens=15, return_full_text=False, return_tensors=True)
    assert len(ids["generated_token_ids"]) == 15
    assert generator.tokenizer.decode(ids["generated_token_ids"]) == new["generated_text"]


def test_a_list_is_answered_prompt_by_prompt(generator):
    prompts = [PROMPT, "class A:", "import os"]
    together = generator(prompts, max_new_tokens=10)
    assert together == [generator(prompt, max_new_tokens=10) for prompt in prompts]
    assert generator([PROMPT], max_new_tokens=10) == together[:1]


def test_several_sequences_of_a_prompt_have_seeds_in_a_row(generator):
    arguments = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "return_tensors": True}
    three = generator(PROMPT, num_return_sequences=3, seed=7, **arguments)
    assert len({tuple(ids) for ids in new_tokens(three)}) == 3
    assert three == [generator(PROMPT, seed=7 + number, **arguments)[0] for number in range(3)]
    lists = generator([PROMPT, "class A:"], num_return_sequences=3, seed=7, **arguments)
    assert lists[0] == three and len(lists[1]) == 3


def test_no_seed_draws_anew(generator):
    arguments = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 12}
    assert generator(PROMPT, **arguments) != generator(PROMPT, **arguments)


def test_top_k_is_50_unless_said_otherwise(generator, demo_folder):
    arguments = {"do_sample": True, "temperature": 100.0, "max_new_tokens": 1, "return_tensors": True}
    arguments |= {"return_full_text": False, "num_return_sequences": 300, "seed": 1}
    session = pipeline("text-generation", model=demo_folder).session
    order = np.argsort(-session.prefill(0, generator.tokenizer.encode(PROMPT), 0)[0])

    def drawn(**more):
        return {ids[0] for ids in new_tokens(generator(PROMPT, **arguments, **more))}

    assert drawn() <= set(order[:50].tolist()) and len(drawn()) > 40
    assert drawn(top_k=3) == set(order[:3].tolist())
    assert len(drawn(top_k=0) - set(order[:50].tolist())) > 100


# ---- limits


def test_lengths_count_the_prompt_and_new_tokens_do_not(generator):
    used = len(generator.tokenizer.encode(PROMPT))
    for arguments in ({"max_length": used + 9}, {"max_new_tokens": 9}):
        (found,) = generator(PROMPT, return_tensors=True, **arguments)
        assert len(found["generated_token_ids"]) == used + 9


@pytest.mark.parametrize("length, new", [(10, 256), (300, 212), (511, 1)])
def test_by_default_256_new_tokens_or_what_fits(generator, length, new):
    prompt = Reference.load(TINY_PYTHON, 1).inputs[0, :length].tolist()
    (found,) = new_tokens(generator(prompt, eos_token_id=None, **NEW_IDS))
    assert len(found) == new


def test_end_of_text_is_the_models_own_or_the_calls(generator, monkeypatch):
    def run(**arguments):
        (found,) = new_tokens(generator(PROMPT, max_new_tokens=20, **NEW_IDS, **arguments))
        return found

    free = run()
    stop = next(token for token in free[3:] if free.index(token) >= 3)
    ended = free[: free.index(stop) + 1]
    for eos in (stop, [stop], (1, stop)):
        assert run(eos_token_id=eos) == ended
    assert run() == free  # the ids of one call are not those of the next
    monkeypatch.setattr(generator, "settings", ModelSettings({"eos_token_id": [stop]}))
    assert run() == ended
    assert run(eos_token_id=1) == free


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
def test_the_end_is_put_off(generator, name):
    used = len(generator.tokenizer.encode(PROMPT))
    (free,) = new_tokens(generator(PROMPT, max_new_tokens=30, **NEW_IDS))
    stops = sorted(set(free))  # all that it would like to say
    least = {"min_new_tokens": 12, "min_length": used + 12}[name]
    (found,) = new_tokens(generator(PROMPT, max_new_tokens=30, eos_token_id=stops, **{name: least}, **NEW_IDS))
    assert len(found) > 12 and not set(found[:12]) & set(stops)


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
def test_the_end_is_put_off_no_longer_than_asked(generator, name):
    used = len(generator.tokenizer.encode(PROMPT))
    (free,) = new_tokens(generator(PROMPT, max_new_tokens=20, **NEW_IDS))
    end = next(place for place, token in enumerate(free) if place >= 3 and free.index(token) == place)
    least = {"min_new_tokens": end, "min_length": used + end}[name]
    found = generator(PROMPT, max_new_tokens=20, eos_token_id=free[end], **{name: least}, **NEW_IDS)
    assert new_tokens(found) == [free[: end + 1]]


def test_end_of_text_is_not_written(generator, monkeypatch):
    new = generator.tokenizer.encode(" pass\n")
    monkeypatch.setattr(generator.engine, "generate", give(generator.tokenizer.encode(PROMPT), [*new, 0]))
    assert generator(PROMPT) == [{"generated_text": PROMPT + " pass\n"}]
    assert generator(PROMPT, **NEW_IDS) == [{"generated_token_ids": [*new, 0]}]


def give(prompt, tokens):
    """An engine's generate that answers with the given tokens."""

    def generate(requests):
        generations = [Generation(request) for request in requests]
        for generation in generations:
            assert list(generation.request.prompt) == prompt
            stopping = Stopping(generation, SimpleNamespace(n_ctx=512))
            for token in tokens:
                text = stopping(token)
                if generation.request.on_text:
                    generation.request.on_text(text)
        return generations

    return generate


# ---- all of generate


GREEDY = {
    "repetition_penalty": {"repetition_penalty": 1.3},
    "ngrams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[1, 2], [222], [223, 5]]},
    "bias": {"sequence_bias": {(222,): -5.0, (66,): 4.0}},
    "suppressed": {"suppress_tokens": [222, 223], "begin_suppress_tokens": [66]},
    "forced": {"forced_eos_token_id": 0},
    "decay": {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": [66, 0]},
    "length": {"min_new_tokens": 9, "eos_token_id": [66, 222, 223]},
    "all": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "suppress_tokens": [222], "min_new_tokens": 20},
}


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_texts_with_processors_are_transformers(generator, transformers_generator, case):
    for prompt in (PROMPT, "import os\n\nclass Naïve:"):
        arguments = {"max_new_tokens": 25} | GREEDY[case]
        assert generator(prompt, **arguments) == transformers_generator(prompt, do_sample=False, **arguments)


@pytest.mark.parametrize("stop", ["\n", ":", "(self", "re", ["\n\n", "s."]], ids=str)
@pytest.mark.parametrize("return_full_text", [True, False])
def test_texts_to_a_stop_string_are_transformers(generator, transformers_generator, stop, return_full_text):
    arguments = {"max_new_tokens": 40, "stop_strings": stop, "return_full_text": return_full_text}
    its = transformers_generator(PROMPT, do_sample=False, tokenizer=transformers_generator.tokenizer, **arguments)
    assert generator(PROMPT, **arguments) == its


def test_a_stop_string_is_left_out_on_request(generator):
    free = generator(PROMPT, max_new_tokens=60, return_full_text=False)[0]["generated_text"]
    stop = free[20:24]
    found = generator(PROMPT, max_new_tokens=60, stop_strings=stop, include_stop_str_in_output=False)
    assert found == [{"generated_text": PROMPT + free[: free.index(stop)]}]


def test_max_time_ends_every_sequence(generator):
    found = generator([PROMPT, "x"], max_new_tokens=100, max_time=1e-9, **NEW_IDS)
    assert [len(*new_tokens(group)) for group in found] == [1, 1]


def test_log_probabilities_come_along(generator, transformers_generator):
    torch = pytest.importorskip("torch")
    arguments = {"logprobs": 2, "prompt_logprobs": 0, "output_scores": True, "output_logits": True}
    (found,) = generator(PROMPT, max_new_tokens=6, repetition_penalty=1.5, **arguments, **NEW_IDS)
    prompt, new = generator.tokenizer.encode(PROMPT), found["generated_token_ids"]
    with torch.no_grad():
        logits = transformers_generator.model(torch.tensor([[*prompt, *new]])).logits[0]
    expected = torch.log_softmax(logits.double(), -1)
    chosen = [float(expected[place, token]) for place, token in enumerate([*prompt, *new][1:])]
    assert found["prompt_token_logprobs"] == pytest.approx(chosen[: len(prompt) - 1], abs=2e-3)
    assert found["token_logprobs"] == pytest.approx(chosen[len(prompt) - 1 :], abs=2e-3)
    assert found["prompt_top_logprobs"] == [{}] * (len(prompt) - 1)
    for top, row in zip(found["top_logprobs"], expected[len(prompt) - 1 :], strict=False):
        assert list(top) == row.topk(2).indices.tolist()
    assert found["scores"].shape == found["logits"].shape == (6, generator.config.n_vocab)
    assert found["scores"].argmax(-1).tolist() == new
    assert set(generator(PROMPT, max_new_tokens=1)[0]) == {"generated_text"}


def test_old_names_are_served(generator):
    assert generator(PROMPT, response_length=7, remove_input=True) == generator(
        PROMPT, max_new_tokens=7, return_full_text=False
    )


def test_a_prefix_goes_before_and_does_not_come_back(generator):
    (whole,) = generator("import os\n" + PROMPT, max_new_tokens=9)
    (found,) = generator(PROMPT, prefix="import os\n", max_new_tokens=9)
    assert "import os\n" + found["generated_text"] == whole["generated_text"]
    with pytest.raises(RequestError, match="prefix"):
        generator([5, 6], prefix="import os\n", max_new_tokens=9)


def test_a_long_prompt_may_lose_its_beginning(generator, transformers_generator):
    prompt, arguments = "x = 1\n" * 300, {"max_new_tokens": 9, "handle_long_generation": "hole"}
    transformers_generator.tokenizer.model_max_length = 512
    assert generator(prompt, **arguments) == transformers_generator(prompt, do_sample=False, **arguments)


BEAMS = {
    "one": {"num_beams": 4},
    "several": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.0},
    "ends": {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [222, 66], "early_stopping": True},
    "processors": {"num_beams": 5, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("case", BEAMS)
def test_texts_of_beams_and_their_shape_are_transformers(generator, transformers_generator, case):
    for prompt in (PROMPT, [PROMPT, "import os\n\nclass A:"]):
        arguments = {"max_new_tokens": 16} | BEAMS[case]
        assert generator(prompt, **arguments) == transformers_generator(prompt, do_sample=False, **arguments)


def test_beams_come_back_best_first_as_transformers_lists_them(generator, monkeypatch):
    """One request for each prompt; what beam search finds is tests/runtime/sampling/test_beams.py's to say."""
    asked = []

    def generate(requests):
        generations = [Generation(request) for request in requests]
        for generation in generations:
            asked.append(list(generation.request.prompt))
            hypotheses = []
            for number in range(generation.request.beams.num_return_sequences):
                tokens = generator.tokenizer.encode(f" pass{number}")
                hypotheses.append(Hypothesis(tokens, -1.5 - number, "stop", [-0.5] * len(tokens)))
                hypotheses[-1].text = generator.tokenizer.decode(tokens)
            generation.finish_with(hypotheses)
        return generations

    monkeypatch.setattr(generator.engine, "generate", generate)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert generator([PROMPT, "x"], **beams) == [
        [{"generated_text": f"{prompt} pass{number}"} for number in range(2)] for prompt in (PROMPT, "x")
    ]
    assert asked == [generator.tokenizer.encode(prompt) for prompt in (PROMPT, "x")]
    assert generator(PROMPT, num_beams=3) == [{"generated_text": PROMPT + " pass0"}]
    (found, other) = generator(PROMPT, **beams, output_scores=True, return_full_text=False)
    assert (found["generated_text"], found["sequence_score"], other["sequence_score"]) == (" pass0", -1.5, -2.5)
    assert found["token_scores"] == [-0.5] * len(generator.tokenizer.encode(" pass0"))
    assert new_tokens(generator(PROMPT, **beams, **NEW_IDS)) == [
        generator.tokenizer.encode(f" pass{number}") for number in range(2)
    ]


def test_beams_scores_are_those_of_the_engine(generator):
    found = generator(PROMPT, num_beams=3, num_return_sequences=2, max_new_tokens=6, output_scores=True, **NEW_IDS)
    assert found[0]["sequence_score"] >= found[1]["sequence_score"]
    for one in found:
        assert len(one["token_scores"]) == len(one["generated_token_ids"]) == 6
        np.testing.assert_allclose(one["sequence_score"], np.mean(one["token_scores"]), atol=1e-5)


# ---- streaming


@pytest.mark.parametrize("include", [True, False])
def test_what_streams_is_what_returns_stop_strings_or_not(generator, include):
    free = generator(PROMPT, max_new_tokens=60, return_full_text=False)[0]["generated_text"]
    for stops in ([free[30:33], "never"], [free[:1]], [free[-5:]], ["no such text"], [free[40:41]]):
        pieces = []
        arguments = {"stop_strings": stops, "include_stop_str_in_output": include, "max_new_tokens": 60}
        (found,) = generator(PROMPT, streamer=pieces.append, **arguments)
        assert PROMPT + "".join(pieces) == found["generated_text"]
        assert [found] == generator(PROMPT, **arguments)
        if not include:
            assert not any(stop in "".join(pieces) for stop in stops)


def test_transformers_streamers_are_served(generator, transformers_generator):
    transformers = pytest.importorskip("transformers")
    streamer = transformers.TextIteratorStreamer(transformers_generator.tokenizer, skip_prompt=True)
    (found,) = generator(PROMPT, max_new_tokens=20, streamer=streamer, return_full_text=False)
    assert "".join(streamer) == found["generated_text"]


@pytest.mark.parametrize("arguments", [{}, {"do_sample": True, "temperature": 1.2, "seed": 3}], ids=str)
def test_streamed_pieces_join_to_the_text(generator, arguments):
    pieces = []
    arguments = arguments | {"max_new_tokens": 60, "return_full_text": False}
    (found,) = generator(PROMPT, streamer=pieces.append, **arguments)
    assert all(type(piece) is str for piece in pieces) and len(pieces) > 20
    assert "".join(pieces) == found["generated_text"]
    assert generator(PROMPT, **arguments) == [found]


def test_streamed_characters_are_whole(generator, monkeypatch):
    text = " naïve — 你好 🎉é\n👩‍👩‍👧."
    monkeypatch.setattr(
        generator.engine, "generate", give(generator.tokenizer.encode(PROMPT), generator.tokenizer.encode(text))
    )
    pieces = []
    (found,) = generator(PROMPT, streamer=pieces.append)
    assert "".join(pieces) == text and found["generated_text"] == PROMPT + text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_streamer_takes_one_sequence(generator):
    for prompt, arguments in (([PROMPT, PROMPT], {}), (PROMPT, {"num_return_sequences": 2, "do_sample": True})):
        with pytest.raises(RequestError, match="streamer"):
            generator(prompt, streamer=print, **arguments)


# ---- what is refused


@pytest.mark.parametrize(
    "name, near",
    [
        ("max_new_token", "max_new_tokens"),
        ("min_lenght", "min_length"),
        ("temprature", "temperature"),
        ("do_sampel", "do_sample"),
        ("topk", "top_k"),
    ],
)
def test_an_unknown_argument_names_the_nearest(generator, name, near):
    with pytest.raises(RequestError, match=f"'{name}'.*'{near}'"):
        generator(PROMPT, **{name: 5})


def test_an_argument_unlike_any_lists_them_all(generator):
    with pytest.raises(RequestError, match=r"'xyzzy'.*max_new_tokens.*top_p"):
        generator(PROMPT, xyzzy=1)


PROMPTS = {
    "too long": ([5] * 513, r"513 tokens.*n_ctx is 512"),
    "much too long": ("word " * 3000, r"tokens.*512"),
    "empty ids": ([], "empty"),
    "an empty list of ids": ([[]], "empty"),
    "id past the vocabulary": ([1, 2048], r"2048 at position 1 .*2048"),
    "negative id": ([1, 2, -1], "-1 at position 2"),
    "one bad row": ([[1, 2], [3, 5000]], r"5000 at position 1"),
    "nothing": (None, "text or a list"),
    "a number": (5, "text or a list"),
    "a dict": ({"text": PROMPT}, "text or a list"),
    "no integers": ([1.5, 2.5], "flat list of token ids"),
    "a number among texts": ([PROMPT, 5], "."),
    "a text among numbers": ([5, PROMPT], "."),
    "too deep": ([[[5]]], "."),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_that_cannot_be_served_are_refused(generator, case):
    prompt, message = PROMPTS[case]
    with pytest.raises(RequestError, match=message) as error:
        generator(prompt, max_new_tokens=1)
    assert "\n" not in str(error.value)
    (found,) = generator(PROMPT, max_new_tokens=1)
    assert found["generated_text"].startswith(PROMPT)


ARGUMENTS = {
    "no new tokens": ({"max_new_tokens": 0}, "max_new_tokens .*0"),
    "past the context": ({"max_new_tokens": 512}, r"512 exceed n_ctx 512|512"),
    "a length past the context": ({"max_length": 514}, "512"),
    "a length below the prompt": ({"max_length": 3}, r"max_length 3 .*prompt of \d+ tokens"),
    "least above most": ({"max_new_tokens": 5, "min_new_tokens": 6}, r"6 .*5"),
    "min_length above max_length": ({"max_length": 20, "min_length": 30}, "."),
    "no sequences": ({"num_return_sequences": 0}, "num_return_sequences .*0"),
    "temperature 0": ({"do_sample": True, "temperature": 0.0}, "temperature"),
    "top_p above 1": ({"do_sample": True, "top_p": 1.5}, "top_p"),
    "top_k below 0": ({"do_sample": True, "top_k": -5}, "top_k"),
    "negative seed": ({"do_sample": True, "seed": -1}, "seed"),
    "a stop that is no token": ({"eos_token_id": 2048}, "2048"),
    "one stop of several": ({"eos_token_id": [0, -7]}, "-7"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_cannot_be_served_are_refused(generator, case):
    arguments, message = ARGUMENTS[case]
    with pytest.raises(RequestError, match=message) as error:
        generator(PROMPT, **arguments)
    assert "\n" not in str(error.value)


def test_none_means_what_it_means_in_transformers(generator, transformers_generator):
    """No limit of the call's own (transformers then generates 20 tokens), no end, and nothing that changes scores."""
    for names in (
        ("max_new_tokens",),
        ("max_new_tokens", "eos_token_id", "temperature", "top_p", "repetition_penalty"),
    ):
        none = dict.fromkeys(names)
        assert generator(PROMPT, **none) == transformers_generator(PROMPT, do_sample=False, **none)
    assert generator(PROMPT, seed=None, streamer=None, max_length=None) == generator(PROMPT)


def test_without_a_tokenizer_ids_go_in_and_out(golden):
    generator = golden("vocab-padded")
    assert generator([4, 8, 160], max_new_tokens=2, return_tensors=True)[0]["generated_token_ids"][:3] == [4, 8, 160]
    for prompt, arguments in (
        ("text", {"return_tensors": True}),
        ([4, 8], {}),
        ([4, 8], {"return_tensors": True, "streamer": print}),
    ):
        with pytest.raises(RequestError, match="tokenizer"):
            generator(prompt, max_new_tokens=2, **arguments)


def test_a_named_tokenizer_serves_a_model_that_has_none(golden, demo_folder):
    """Its first 257 ids only: what it makes of them does not matter, that it is used does."""
    for tokenizer in (demo_folder, demo_folder / "tokenizer.json", TINY_PYTHON / "byte-level-bpe.tokenizer.json"):
        generator = golden("vocab-padded", tokenizer=tokenizer)
        assert generator("(1)", max_new_tokens=2)[0]["generated_text"].startswith("(1)")
    with pytest.raises(CheckpointError, match="tokenizer"):
        golden("vocab-padded", tokenizer=demo_folder / "no-such-file.json")


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("fill-mask", {}, "fill-mask.*text-generation"),
        ("text-generation", {"model": None}, "model"),
        ("text-generation", {"batch_size": 0}, "batch_size .*0"),
    ],
)
def test_a_pipeline_that_cannot_be_made_is_refused(demo_folder, task, options, message):
    with pytest.raises(RequestError, match=message):
        pipeline(task, **({"model": demo_folder} | options))


# ---- checkpoints


@pytest.mark.parametrize("to", ["huggingface", "keras", "mesh-tf"])
def test_a_checkpoint_of_any_format_is_a_model(generator, tmp_path, monkeypatch, to):
    monkeypatch.setenv("NEO_TF_CACHE", str(tmp_path / "cache"))
    neo_tf.convert(TINY_PYTHON, tmp_path / "model", to=to)
    other = pipeline("text-generation", model=tmp_path / "model", do_sample=False)
    assert other(PROMPT, max_new_tokens=20) == generator(PROMPT, max_new_tokens=20)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("name", ["max_new_tokens", "min_length", "top_k", "seed", "num_return_sequences"])
@pytest.mark.parametrize("value", ["5", 5.0, True])
def test_a_number_that_is_none_is_refused_by_name(generator, name, value):
    with pytest.raises(RequestError, match=f"{name} must be a whole number"):
        generator(PROMPT, **{name: value})
