"""How the next token is chosen: the options, and the sampler that draws by them."""

import math
from dataclasses import dataclass, field

from neo_tf.errors import RequestError

from .checks import check_ids, check_number

# {name: (kind, whether a value is in range, what it must be)}
_RANGES = {
    "temperature": (float, lambda value: value > 0, "be greater than 0 (for 0, leave out do_sample)"),
    "top_k": (int, lambda value: value >= 0, "not be negative"),
    "top_p": (float, lambda value: 0 < value <= 1, "be in (0, 1]"),
    "min_p": (float, lambda value: 0 <= value <= 1, "be in [0, 1]"),
    "typical_p": (float, lambda value: 0 < value <= 1, "be in (0, 1]"),
    "epsilon_cutoff": (float, lambda value: 0 <= value < 1, "be in [0, 1)"),
    "eta_cutoff": (float, lambda value: 0 <= value < 1, "be in [0, 1)"),
    "repetition_penalty": (float, lambda value: 0 < value < math.inf, "be greater than 0"),
    "presence_penalty": (float, math.isfinite, "be finite"),
    "frequency_penalty": (float, math.isfinite, "be finite"),
    "no_repeat_ngram_size": (int, lambda value: value >= 0, "not be negative"),
    "seed": (int, lambda value: value >= 0, "not be negative"),
}


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen, with transformers' names, meanings and defaults, and OpenAI's penalties.

    Args:
        do_sample: draws from the distribution; otherwise the most likely token is taken, and what is said below of
            sampling is left out.
        temperature: of sampling: divides the logits; > 0.
        top_k: of sampling: keeps so many most likely tokens; 0 keeps all.
        top_p: of sampling: keeps the smallest set of most likely tokens whose probabilities add up to it; in (0, 1].
        seed: of the request's own random generator; None draws one.
        min_p: of sampling: keeps tokens at least so many times as likely as the most likely one; in [0, 1].
        typical_p: of sampling: keeps tokens of nearly the expected information, of this mass; in (0, 1].
        epsilon_cutoff, eta_cutoff: of sampling: keeps tokens of at least this probability; eta's is lower where the
            distribution is flat; in [0, 1).
        repetition_penalty: divides the logits of tokens in the prompt or since; > 0, above 1 discourages them.
        presence_penalty, frequency_penalty: taken from the logits of new tokens so far, once or for each time.
        no_repeat_ngram_size: no n-gram of this size comes twice, the prompt's included; 0 allows all.
        bad_words_ids: sequences of token ids that must not come: [[5], [7, 8]].
        sequence_bias: {(7, 8): bias}, or [[[7, 8], bias]]: added to the logit of the token that completes a sequence.
        logit_bias: {token id: bias}: added to its logit, as OpenAI's.
        suppress_tokens, begin_suppress_tokens: token ids that must not come, or not as the first new one.
        forced_bos_token_id: the token after a prompt of one.
        forced_eos_token_id: id, or ids, of the last token that max_new_tokens or max_length allow.
        exponential_decay_length_penalty: (start, factor): after so many new tokens, the ends of text become likelier.
        renormalize_logits: the scores that a request keeps are log-probabilities.
        logits_processor: functions of (history, scores) of your own; see sampling/processors.py. They come after the
            others, and before sampling's.

    Raises:
        RequestError: a value outside its range, or of another kind.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list = ()
    sequence_bias: dict = field(default_factory=dict)
    logit_bias: dict = field(default_factory=dict)
    suppress_tokens: list = ()
    begin_suppress_tokens: list = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list | None = None
    exponential_decay_length_penalty: tuple | None = None
    renormalize_logits: bool = False
    logits_processor: list = ()

    def __post_init__(self):
        for name, (kind, test, words) in _RANGES.items():
            check_number(name, getattr(self, name), kind, test, words)
        if not isinstance(self.logits_processor, list | tuple) or not all(map(callable, self.logits_processor)):
            raise RequestError("logits_processor must be a list of functions of (history, scores)")
        self._check_decay()
        self.token_ids()
        for bias in (*(bias for _, bias in _pairs(self.sequence_bias)), *self.logit_bias.values()):
            check_number("a bias", bias, float, lambda value: value < math.inf, "be below infinity")

    def _check_decay(self):
        decay, name = self.exponential_decay_length_penalty, "exponential_decay_length_penalty"
        if decay is None:
            return
        if not isinstance(decay, list | tuple) or len(decay) != 2:
            raise RequestError(f"{name} must be (start, factor), not {decay!r}")
        check_number(f"{name}'s start", decay[0], int, lambda value: value >= 0, "not be negative")
        check_number(f"{name}'s factor", decay[1], float, lambda value: 0 < value < math.inf, "be greater than 0")

    def biases(self):
        """sequence_bias and logit_bias together: {(token id, ...): bias}."""
        found = {tuple(ids): bias for ids, bias in _pairs(self.sequence_bias)}
        for token, bias in self.logit_bias.items():
            found[int(token),] = found.get((int(token),), 0) + bias
        return found

    def token_ids(self):
        """{name of an option: all token ids that it mentions}.

        Raises:
            RequestError: an option that should hold ids holds something else.
        """
        if not isinstance(self.logit_bias, dict):
            raise RequestError(f"logit_bias must be {{token id: bias}}, not {self.logit_bias!r}")
        forced = self.forced_eos_token_id
        lists = {
            # The keys of a JSON object are texts.
            "logit_bias": [int(key) if str(key).isdecimal() else key for key in self.logit_bias],
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "forced_bos_token_id": () if self.forced_bos_token_id is None else [self.forced_bos_token_id],
            "forced_eos_token_id": () if forced is None else forced if isinstance(forced, list | tuple) else [forced],
        }
        found = {name: check_ids(name, ids) for name, ids in lists.items()}
        sequences = {
            "bad_words_ids": self.bad_words_ids,
            "sequence_bias": [ids for ids, _ in _pairs(self.sequence_bias)],
        }
        for name, lists in sequences.items():
            if not isinstance(lists, list | tuple) or not all(isinstance(ids, list | tuple) and ids for ids in lists):
                raise RequestError(f"{name} must hold sequences of token ids, none of them empty")
            found[name] = [token for ids in lists for token in check_ids(name, ids)]
        return found

    def check_vocabulary(self, n_vocab):
        """Raises RequestError where an option mentions a token id outside the vocabulary."""
        for name, ids in self.token_ids().items():
            for token in ids:
                if not 0 <= token < n_vocab:
                    raise RequestError(f"{name}: token id {token} is outside the vocabulary of {n_vocab}")


def _pairs(sequence_bias):
    """Both of transformers' forms, {(7, 8): bias} and [[[7, 8], bias]], as pairs."""
    pairs = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias
    if not isinstance(sequence_bias, dict | list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise RequestError(f"sequence_bias must be {{(token id, ...): bias}}, not {sequence_bias!r}")
    return pairs
