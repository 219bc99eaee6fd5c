"""The arguments of a call: names old and new, and combinations that make no sense."""

import dataclasses

import numpy as np
import pytest

from neo_tf.config import GPTNeoConfig
from neo_tf.errors import RequestError
from neo_tf.runtime.argument_table import ARGUMENTS
from neo_tf.runtime.arguments import GenerateArguments

CONFIG = GPTNeoConfig(
    n_vocab=100, n_ctx=64, n_embd=8, n_head=2, n_layer=2, attention_types=("global", "local"), eos_token_id=99
)
# Names of transformers' GenerationConfig that decide texts, with values that are not the defaults.
TRANSFORMERS = {
    "max_new_tokens": 5,
    "max_length": 60,
    "min_new_tokens": 2,
    "min_length": 2,
    "max_time": 1.5,
    "stop_strings": ["a"],
    "eos_token_id": [5, 6],
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "repetition_penalty": 1.5,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[5]],
    "sequence_bias": {(5,): 1.0},
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": (5, 1.5),
    "renormalize_logits": True,
    "num_return_sequences": 3,
    "output_scores": True,
    "output_logits": True,
    "pad_token_id": 0,
    "num_beams": 4,
    "length_penalty": 2.0,
    "early_stopping": "never",
}
OF_BEAMS = ("length_penalty", "early_stopping")


def value_of(options, name):
    """An argument's value, wherever GenerateArguments holds it."""
    holders = [one for one in (options, options.sampling, options.beams) if hasattr(one, name)]
    assert holders, name
    return getattr(holders[0], name)


def request(prompt=(1, 2, 3), number=0, config=CONFIG, **arguments):
    return GenerateArguments.parse(arguments).request(list(prompt), number, config, None)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_arguments_are_known(name):
    its = pytest.importorskip("transformers").GenerationConfig()
    assert hasattr(its, name)
    sampling = {"do_sample": True} if name not in ("do_sample", "num_beams", *OF_BEAMS) else {}
    beams = {"num_beams": 2} if name in OF_BEAMS else {}
    options = GenerateArguments.parse({name: TRANSFORMERS[name], **sampling, **beams})
    assert value_of(options, name) == TRANSFORMERS[name] != ARGUMENTS[name].default
    assert options.request([1, 2, 3], 0, CONFIG, None)


def test_arguments_reach_the_request():
    found = request(
        max_new_tokens=9,
        min_length=5,
        max_time=2,
        stop_token_ids=[7],
        do_sample=True,
        top_p=0.5,
        seed=4,
        logit_bias={5: 1},
        logprobs=3,
        prompt_logprobs=0,
        number=2,
    )
    assert (found.max_new_tokens, found.min_new_tokens, found.max_time) == (9, 2, 2)
    assert found.stop_token_ids == (99, 7) and (found.logprobs, found.prompt_logprobs) == (3, 0)
    sampling = found.sampling
    assert (sampling.do_sample, sampling.top_p, sampling.top_k, sampling.seed) == (True, 0.5, 50, 6)
    assert sampling.logit_bias == {5: 1}


def test_beams_reach_the_request():
    arguments = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5, "early_stopping": True}
    found = request(**arguments, num_beam_groups=2, diversity_penalty=0.7)
    assert dataclasses.asdict(found.beams) == arguments | {"num_beam_groups": 2, "diversity_penalty": 0.7}
    drawn = request(**arguments, do_sample=True, seed=3)
    assert drawn.sampling.do_sample and drawn.sampling.seed == 3 and drawn.beams.num_beams == 4
    assert request(num_beams=1).beams is None and request().beams is None
    assert GenerateArguments.parse(arguments).requests_of_each == 1
    assert GenerateArguments.parse({"do_sample": True, "num_return_sequences": 3}).requests_of_each == 3


def test_ends_of_text():
    assert request().stop_token_ids == (99,)
    assert request(eos_token_id=5).stop_token_ids == (5,)
    assert request(eos_token_id=np.int64(5), stop_token_ids=(6, 7)).stop_token_ids == (5, 6, 7)
    assert request(eos_token_id=[]).stop_token_ids == ()
    assert request(config=CONFIG.replace(eos_token_id=None), stop_token_ids=[5]).stop_token_ids == (5,)


def test_one_stop_string_is_a_list_of_one():
    assert GenerateArguments.parse({"stop_strings": "ab"}).stop_strings == ["ab"]


def test_old_names_mean_the_new_ones():
    options = GenerateArguments.parse({"response_length": 7, "remove_input": True})
    assert options.max_new_tokens == 7 and options.return_full_text is False
    assert GenerateArguments.parse({"remove_input": False}).return_full_text is True
    assert not hasattr(options, "response_length")


@pytest.mark.parametrize("length, kept", [(3, 3), (54, 54), (55, 54), (64, 54), (500, 54)])
def test_hole_keeps_the_end_of_a_prompt(length, kept):
    prompt = list(range(length))
    options = GenerateArguments.parse({"handle_long_generation": "hole", "max_new_tokens": 10})
    assert options.fit(prompt, 64) == prompt[length - kept :]
    assert GenerateArguments.parse({"max_new_tokens": 10}).fit(prompt, 64) == prompt


REFUSED = {
    "two limits": ({"max_new_tokens": 5, "max_length": 9}, "max_new_tokens and max_length"),
    "a limit by two names": ({"response_length": 5, "max_new_tokens": 9}, "response_length .*max_new_tokens"),
    "an old limit and a length": ({"response_length": 5, "max_length": 9}, "max_new_tokens and max_length"),
    "the input by two names": ({"remove_input": True, "return_full_text": True}, "remove_input .*return_full_text"),
    "an old name misspelt": ({"response_lenght": 5}, "'response_lenght'.*'response_length'"),
    "a near name": ({"stop_string": "a"}, "'stop_string'.*'stop_strings'"),
    "a penalty's name": ({"repetion_penalty": 1.5}, "'repetition_penalty'"),
    "several of the same": ({"num_return_sequences": 2}, "num_return_sequences .*do_sample"),
    "temperature of greedy": ({"temperature": 0.5}, "temperature .*do_sample"),
    "top_p of greedy": ({"top_p": 0.5}, "top_p .*do_sample"),
    "min_p of greedy": ({"min_p": 0.5, "do_sample": False}, "min_p .*do_sample"),
    "a penalty out of range": ({"repetition_penalty": 0}, "repetition_penalty .*0"),
    "a flag that is none": ({"do_sample": "yes"}, "do_sample .*'yes'"),
    "a text that is none": ({"prefix": 5}, "prefix .*5"),
    "an unknown way": ({"handle_long_generation": "cut"}, "handle_long_generation .*'cut'"),
    "a streamer that is none": ({"streamer": 5}, "streamer"),
    "an end that is no id": ({"eos_token_id": "end"}, "eos_token_id .*'end'"),
    "words by force": ({"force_words_ids": [[5]], "num_beams": 2}, "force_words_ids .*sequence_bias"),
    "no beams": ({"num_beams": 0}, "num_beams .*0"),
    "half a beam": ({"num_beams": 1.5}, "num_beams .*1.5"),
    "more sequences than beams": ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences 3 .*num_beams 2"),
    "a penalty of no beams": ({"length_penalty": 2.0}, "length_penalty .*num_beams"),
    "an end of no beams": ({"early_stopping": True, "num_beams": 1}, "early_stopping .*num_beams"),
    "groups of no beams": ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beam_groups .*num_beams"),
    "groups that differ in nothing": ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups .*diversity_penalty"),
    "drawn groups": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True},
        "num_beam_groups .*do_sample",
    ),
    "a stream of beams": ({"num_beams": 2, "streamer": print}, "streamer .*num_beams"),
    "log-probabilities of beams": ({"num_beams": 2, "logprobs": 0}, "logprobs .*num_beams"),
    "logits of beams": ({"num_beams": 2, "output_logits": True}, "output_logits .*num_beams"),
    "no room": ({"max_length": 3}, "max_length 3 .*prompt of 3"),
    "least above most": ({"max_new_tokens": 5, "min_length": 10}, "7 new tokens .* 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_line(case):
    arguments, message = REFUSED[case]
    with pytest.raises(RequestError, match=message) as error:
        request(**arguments)
    assert "\n" not in str(error.value)


def test_a_decay_needs_an_end():
    arguments = {"exponential_decay_length_penalty": (2, 1.5)}
    assert request(**arguments).sampling.exponential_decay_length_penalty == (2, 1.5)
    with pytest.raises(RequestError, match=r"exponential_decay_length_penalty .*eos_token_id"):
        request(config=CONFIG.replace(eos_token_id=None), **arguments)


def test_sampling_at_its_defaults_is_no_contradiction():
    assert request(temperature=1.0, top_k=50, top_p=1.0, seed=3).sampling.do_sample is False


def test_nearer_arguments_lie_over_those_under_them():
    job = {"max_new_tokens": 3, "top_k": 5, "do_sample": True}
    model = {"max_new_tokens": 9, "top_k": 7, "top_p": 0.5, "eos_token_id": 8}
    options = GenerateArguments.parse({"max_length": 20, "top_k": None}, job, model)
    assert (options.max_new_tokens, options.max_length, options.eos_token_id) == (None, 20, 8)
    assert (options.sampling.top_k, options.sampling.top_p) == (50, 0.5)  # None stands for the default
    assert GenerateArguments.parse({"response_length": 4}, {"max_length": 20}).max_new_tokens == 4
    with pytest.raises(RequestError, match="max_new_tokens and max_length"):
        GenerateArguments.parse({}, {"max_new_tokens": 3, "max_length": 20})


def test_a_seed_is_given_where_there_is_none():
    options = GenerateArguments.parse({"do_sample": True})
    assert options.with_seed(4).sampling.seed == 4 and options.sampling.seed is None
    assert GenerateArguments.parse({"seed": 3}).with_seed(4).sampling.seed == 3
