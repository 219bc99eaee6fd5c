"""What a request keeps of the logits, and where no token is left."""

from types import SimpleNamespace

import numpy as np
import pytest
from sampling_helpers import scores

from neo_tf.runtime.engine.chooser import Chooser, log_probabilities
from neo_tf.runtime.engine.generation import Generation
from neo_tf.runtime.engine.request import Request
from neo_tf.runtime.sampling.options import SamplingOptions

STOPS = (3, 41)


def choose(logits, *, prompt=(7, 8, 9), stops=(), least=0, kept=(), **options):
    """What came of a request after one token was chosen from each row of logits."""
    request = Request(list(prompt), 50, least, stops, SamplingOptions(**options), **dict(kept))
    generation = Generation(request)
    chooser = Chooser(generation, SimpleNamespace(n_ctx=100, n_vocab=len(logits[0])))
    for row in logits:
        token = chooser(row[None])
        if token is None:
            break
        generation.add_token(token)
    return generation


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 20, "seed": 1}], ids=str)
def test_log_probabilities_are_the_models_own(options):
    """Before penalties, bans and temperature."""
    torch = pytest.importorskip("torch")
    logits = scores("random", rows=6)
    generation = choose(logits, kept={"logprobs": 4}, repetition_penalty=3.0, suppress_tokens=[5], **options)
    expected = torch.log_softmax(torch.tensor(logits).double(), -1)
    assert len(generation.tokens) == len(generation.token_logprobs) == len(generation.top_logprobs) == 6
    best, ids = expected.topk(4)
    for number, (token, value) in enumerate(zip(generation.tokens, generation.token_logprobs, strict=True)):
        assert type(value) is float
        assert value == pytest.approx(float(expected[number, token]), abs=1e-5)
        assert list(generation.top_logprobs[number]) == ids[number].tolist()
        assert list(generation.top_logprobs[number].values()) == pytest.approx(best[number].tolist(), abs=1e-5)


def test_as_many_top_tokens_as_asked_for():
    logits = np.array([1, 5, 5, 2, 5], np.float32)
    for count, ids in ((0, []), (1, [1]), (2, [1, 2]), (4, [1, 2, 4, 3]), (5, [1, 2, 4, 3, 0]), (99, [1, 2, 4, 3, 0])):
        value, top = log_probabilities(logits, 3, count)
        assert list(top) == ids
        assert value == pytest.approx(2 - np.log(np.exp(logits.astype(np.float64)).sum()), abs=1e-6)


def test_nothing_is_kept_unasked():
    generation = choose(scores("random"))
    assert not any((generation.token_logprobs, generation.top_logprobs, generation.logits, generation.scores))


@pytest.mark.parametrize("renormalize_logits", [False, True])
@pytest.mark.parametrize("n_vocab", [200, 5003])
def test_scores_are_those_that_were_drawn_by(n_vocab, renormalize_logits):
    """As transformers' output_scores and output_logits."""
    torch = pytest.importorskip("torch")
    import transformers as its

    logits = scores("random", rows=5, n_vocab=n_vocab)
    options = {"temperature": 0.7, "top_k": 12, "top_p": 0.95, "repetition_penalty": 2.0}
    generation = choose(
        logits,
        kept={"output_scores": True, "output_logits": True},
        do_sample=True,
        seed=0,
        renormalize_logits=renormalize_logits,
        **options,
    )
    chain = its.LogitsProcessorList([its.RepetitionPenaltyLogitsProcessor(2.0), its.TemperatureLogitsWarper(0.7)])
    chain += [its.TopKLogitsWarper(12), its.TopPLogitsWarper(0.95)]
    chain += [its.LogitNormalization()] if renormalize_logits else []
    history = torch.tensor([[7, 8, 9, *generation.tokens]])
    for number, (row, token) in enumerate(zip(logits, generation.tokens, strict=True)):
        expected = chain(history[:, : 3 + number], torch.tensor(row[None])).numpy()[0]
        np.testing.assert_allclose(generation.scores[number], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(generation.logits[number], row)
        assert np.isfinite(expected[token])


def test_the_sessions_buffer_is_not_written_and_not_kept():
    buffer = scores("random", rows=1)
    before = buffer.copy()
    options = {"repetition_penalty": 2.0, "do_sample": True, "top_k": 5, "temperature": 0.5, "logit_bias": {4: 9.0}}
    for chosen in (options, {}):
        generation = choose([buffer[0]], kept={"output_scores": True, "output_logits": True}, **chosen)
        np.testing.assert_array_equal(buffer, before)
        assert not np.shares_memory(generation.scores[0], buffer) and not np.shares_memory(generation.logits[0], buffer)


def test_history_grows_with_the_tokens():
    """Neither a token of the prompt nor one since comes again, until none is left: that is an end, not an error."""
    logits = np.repeat(scores("random", rows=1, n_vocab=10), 20, axis=0)
    for options in ({}, {"do_sample": True, "seed": 3}):
        generation = choose(logits, no_repeat_ngram_size=1, **options)
        assert sorted(generation.tokens) == [0, 1, 2, 3, 4, 5, 6]
    assert choose(logits, no_repeat_ngram_size=1).tokens == [
        token for token in np.argsort(-logits[0]) if token not in (7, 8, 9)
    ]


def test_the_last_token_of_the_context_may_be_forced():
    """Without a limit of its own, a generation's last token is the context's."""
    request = Request([7, 8, 9], None, 0, STOPS, SamplingOptions(forced_eos_token_id=41))
    generation = Generation(request)
    chooser = Chooser(generation, SimpleNamespace(n_ctx=10, n_vocab=200))
    for row in np.repeat(scores("random", rows=1), 7, axis=0):
        generation.add_token(chooser(row[None]))
    assert generation.tokens[-1] == 41 and 41 not in generation.tokens[:-1]
