"""What the tests of sampling and beams share: random scores, the distribution that is to be drawn, and models."""

import numpy as np
import pytest
from conftest import GOLDEN, TINY_PYTHON, Reference

from neo_tf.runtime.sampling.sampler import Sampler

FALSE_ALARM = 1e-6  # of each chi-square test, were its seed drawn anew
MODELS = {"tiny-python": TINY_PYTHON} | {name: GOLDEN / name for name in ("vocab-padded", "tiny-global-local")}


def scores(kind, rows=8, n_vocab=200, seed=0):
    """Random logits; "ties" has few different values, "peaked" nearly all probability in one token."""
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 3, (rows, n_vocab))
    if kind == "ties":
        values = np.round(values / 2)
    elif kind == "peaked":
        values[np.arange(rows), generator.integers(0, n_vocab, rows)] += 40
    return values.astype(np.float32)


def chi_square_p_value(counts, probabilities):
    """Probability of counts at least so unlikely; the rarest tokens are pooled so that each cell expects 10."""
    torch = pytest.importorskip("torch")
    draws = counts.sum()
    order = np.argsort(-probabilities)
    cells = int((probabilities * draws >= 10).sum())
    pooled = [np.append(values[order[:cells]], values[order[cells:]].sum()) for values in (counts, probabilities)]
    observed, expected = pooled[0], pooled[1] * draws
    if expected[-1] < 10:  # the remainder goes to the rarest cell of its own
        observed, expected = (np.append(values[:-2], values[-2:].sum()) for values in (observed, expected))
    statistic = ((observed - expected) ** 2 / expected).sum()
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def transformers_warpers(options):
    """transformers' own for our options, in its order."""
    import transformers as its

    kinds = {
        "temperature": its.TemperatureLogitsWarper,
        "top_k": its.TopKLogitsWarper,
        "top_p": its.TopPLogitsWarper,
        "min_p": its.MinPLogitsWarper,
        "typical_p": its.TypicalLogitsWarper,
        "epsilon_cutoff": its.EpsilonLogitsWarper,
        "eta_cutoff": its.EtaLogitsWarper,
    }
    return [kind(options[name]) for name, kind in kinds.items() if name in options]


def make_sampler(options):
    """A function that chooses from scores: float32 [batch, n_vocab] -> int [batch]. It owns its random generator."""
    sampler = Sampler(options)
    return lambda scores: sampler(scores)[0]


def prompt_of(name, length):
    return Reference.load(MODELS[name]).inputs[0, 3 : 3 + length].tolist()
