"""Rows that top-k cuts, drawn together, against the Sampler, which draws from each alone."""

import numpy as np
import pytest
from sampling_helpers import scores

from neo_tf.runtime.sampling.options import SamplingOptions
from neo_tf.runtime.sampling.sampler import Sampler
from neo_tf.runtime.sampling.short_rows import WHOLE, ShortRule, short_rule
from neo_tf.runtime.sampling.top_k_rows import draw_top_k, draws_by_top_k

OPTIONS = [
    {"top_k": top_k, "temperature": temperature} for top_k in (1, 7, 50, 63) for temperature in (0.05, 0.7, 1.0, 40.0)
]


@pytest.mark.parametrize("kind", ["random", "ties", "peaked"])
@pytest.mark.parametrize("n_vocab", [70, 1000, 1100, 5003])
def test_the_tokens_are_the_samplers(n_vocab, kind):
    options = [SamplingOptions(do_sample=True, seed=seed, **one) for seed in range(3) for one in OPTIONS]
    together, alone = ([Sampler(one) for one in options] for _ in range(2))
    rules = [
        short_rule(one, sampler.generator, None, 64, n_vocab) for one, sampler in zip(options, together, strict=True)
    ]
    assert all(map(draws_by_top_k, rules))
    for step in range(10):
        logits = scores(kind, len(options), n_vocab, step)
        found = draw_top_k(rules, list(logits)).tolist()
        left = [row for row, token in enumerate(found) if token == WHOLE]
        # 1100 tokens are 17 groups. With a larger k all tokens remain, which are too many for a simple draw.
        assert all(options[row].top_k >= 17 for row in left)
        assert not left or n_vocab == 1100 or kind == "ties"
        for row in left:
            found[row] = int(together[row](logits[row : row + 1])[0][0])
        assert found == [int(sampler(logits[row : row + 1])[0][0]) for row, sampler in enumerate(alone)]


@pytest.mark.parametrize("damage", [np.nan, np.inf, "equal"])
def test_a_row_that_does_not_fit_is_left_to_the_sampler(damage):
    logits = scores("random", 3, 5003)
    logits[1, 4001 if damage != "equal" else slice(2000)] = 50.0 if damage == "equal" else damage
    rules = [ShortRule(np.random.default_rng(seed), 0.7, 5) for seed in range(3)]
    found = draw_top_k(rules, list(logits))
    alone = [Sampler(SamplingOptions(do_sample=True, temperature=0.7, top_k=5, seed=seed)) for seed in range(3)]
    first, last = (int(alone[row](logits[row : row + 1])[0][0]) for row in (0, 2))
    assert found.tolist() == [first, WHOLE, last]
    assert rules[1].generator.random() == np.random.default_rng(1).random()
    assert draw_top_k(rules[1:2], [logits[1]]).tolist() == [WHOLE]


@pytest.mark.parametrize(
    "more", [{"top_k": 0}, {"top_p": 0.9}, {"min_p": 0.1}, {"epsilon": 0.1}, {"logprobs": 0}, {"logprobs": 5}], ids=str
)
def test_what_else_a_request_asks_for_is_not_forgotten(more):
    rule = {"generator": np.random.default_rng(0), "temperature": 0.5, "top_k": 9}
    assert draws_by_top_k(ShortRule(**rule))
    assert not draws_by_top_k(ShortRule(**rule | more))
