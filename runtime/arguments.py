"""The arguments of a pipeline's call: their names, defaults and meanings, and the Request that they make."""

import difflib
from dataclasses import MISSING, fields

from neo_tf.errors import RequestError

from .engine.lookup import check_lookup
from .engine.request import Request
from .sampling.beams import BeamOptions
from .sampling.checks import check_ids, check_number
from .sampling.options import SamplingOptions

DEFAULT_NEW_TOKENS = 256  # as transformers' pipeline; fewer where the context ends
DEFAULT_TOP_K = 50  # of sampling, as in transformers

# What the model cards' hosted services called them: {old name: (name, its value from the old one's)}
_OLD_NAMES = {
    "response_length": ("max_new_tokens", lambda value: value),
    "remove_input": ("return_full_text", lambda value: not value),
}
# transformers' that are left out: {name: why}
_LEFT_OUT = {
    "force_words_ids": "transformers 5 has left it out, and 4's search often returns texts without the words; "
    "sequence_bias makes words likelier",
}
_WHOLE_NUMBERS = ("max_new_tokens", "max_length", "min_new_tokens", "min_length", "num_return_sequences")
_FLAGS = ("do_sample", "renormalize_logits", "return_full_text", "return_tensors", "include_stop_str_in_output")
_FLAGS += ("output_scores", "output_logits")
_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_OF_BEAMS = ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")
_OF_ONE_SEQUENCE = ("streamer", "logprobs", "prompt_logprobs", "output_logits", "prompt_lookup_num_tokens")
_OF_LOOKUP = ("prompt_lookup_num_tokens", "max_matching_ngram_size")
_KEPT = {
    "logprobs": ("token_logprobs", "top_logprobs"),
    "prompt_logprobs": ("prompt_token_logprobs", "prompt_top_logprobs"),
    "output_scores": ("scores",),
    "output_logits": ("logits",),
}


class GenerateArguments:
    """The arguments of a call, with their defaults; unknown ones are refused by name. None means the default.

    Args:
        max_new_tokens, max_length: limit of the new tokens, or of prompt and new tokens; 256 new ones by default.
        min_new_tokens, min_length: end-of-text is not chosen before.
        max_time: seconds after which a sequence ends, from when it begins.
        stop_strings: a text, or texts, that end the text. One may begin anywhere, also in the prompt or inside a token.
        include_stop_str_in_output: as in transformers, the text goes on to the end of the token that completes the
            stop string. With False it ends before the stop string, and no piece of one is streamed.
        eos_token_id: id, or ids, that end the text; the model's own by default.
        stop_token_ids: more ids that end it.
        do_sample, temperature, top_k, ..., logits_processor: see SamplingOptions; top_k is 50 by default.
        seed: of sampling. Of several prompts each draws with the seed on its own.
        num_return_sequences: continuations of each prompt; with a seed, they use seed, seed + 1, ... Of beams, so many
            are returned, at most num_beams.
        num_beams, length_penalty, early_stopping, num_beam_groups, diversity_penalty: see BeamOptions. More than one
            beam is beam search: of several texts that are followed together, the likeliest ones come back.
        return_full_text: whether generated_text begins with the prompt; it does by default.
        return_tensors: returns generated_token_ids in place of generated_text.
        prefix: a text that goes before prompts, and does not come back.
        handle_long_generation: "hole" leaves out the beginning of a prompt that is too long.
        streamer: called as streamer(text) with each piece of new text; or with transformers' put and end. One prompt.
        prompt_lookup_num_tokens, max_matching_ngram_size: see Request: the same text (in int8 and int4 one as
            likely), faster where it repeats itself or its prompt.
        logprobs: adds token_logprobs and top_logprobs of so many tokens: see Request.
        prompt_logprobs: adds prompt_token_logprobs and prompt_top_logprobs.
        output_scores, output_logits: adds scores or logits, float32 [new tokens, n_vocab]. With beams output_scores
            adds sequence_score, a float, and token_scores, a float for each new token: see Hypothesis.
        pad_token_id: is not needed, as nothing is padded.
        response_length, remove_input: old names of max_new_tokens, and of return_full_text=False.
    """

    DEFAULTS = {  # noqa: RUF012  (never changed)
        "max_new_tokens": None,
        "max_length": None,
        "min_new_tokens": 0,
        "min_length": 0,
        "max_time": None,
        "stop_strings": (),
        "include_stop_str_in_output": True,
        "eos_token_id": None,
        "stop_token_ids": (),
        **{one.name: {} if one.default is MISSING else one.default for one in fields(SamplingOptions)},
        "top_k": DEFAULT_TOP_K,
        **{one.name: one.default for one in fields(BeamOptions)},
        "return_full_text": True,
        "return_tensors": False,
        "prefix": None,
        "handle_long_generation": None,
        "prompt_lookup_num_tokens": None,
        "max_matching_ngram_size": 3,
        "streamer": None,
        "logprobs": None,
        "prompt_logprobs": None,
        "output_scores": False,
        "output_logits": False,
        "pad_token_id": None,
    }

    def __init__(self, values):
        self.__dict__ |= self.DEFAULTS | values

    @classmethod
    def parse(cls, values):
        """Checks names, values and what they make together, as far as that needs no prompt.

        Raises:
            RequestError: what is wrong, in one line.
        """
        values = cls.known({name: value for name, value in values.items() if value is not None})
        if isinstance(values.get("stop_strings"), str):
            values["stop_strings"] = [values["stop_strings"]]
        options = cls(values)
        for name in _WHOLE_NUMBERS:
            if getattr(options, name) is not None:
                check_number(name, getattr(options, name), int, lambda value: True, "")
        for name in _FLAGS:
            if getattr(options, name) not in (False, True):
                raise RequestError(f"{name} must be True or False, not {getattr(options, name)!r}")
            setattr(options, name, bool(getattr(options, name)))
        options._sampling(0)
        guessed = options.prompt_lookup_num_tokens
        check_lookup(1 if guessed is None else guessed, options.max_matching_ngram_size)
        options._beams()
        options._check_together()
        return options

    @classmethod
    def known(cls, values):
        """The same arguments by their new names.

        Raises:
            RequestError: a name that is unknown, or given in both forms.
        """
        for name in values:
            if name in _LEFT_OUT:
                raise RequestError(f"{name} is not served: {_LEFT_OUT[name]}")
            if name not in cls.DEFAULTS and name not in _OLD_NAMES:
                near = difflib.get_close_matches(name, [*cls.DEFAULTS, *_OLD_NAMES], 1)
                hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(cls.DEFAULTS)})"
                raise RequestError(f"unknown argument {name!r}{hint}")
        for old, (name, convert) in _OLD_NAMES.items():
            if old in values and name in values:
                raise RequestError(f"{old} is an old name of {name}: give one of them")
            if old in values:
                values = values | {name: convert(values[old])}
        return {name: value for name, value in values.items() if name in cls.DEFAULTS}

    def _check_together(self):
        if self.max_new_tokens is not None and self.max_length is not None:
            raise RequestError("max_new_tokens and max_length are both given: one limit is enough")
        if self.num_return_sequences < 1:
            raise RequestError(f"num_return_sequences must be at least 1, not {self.num_return_sequences}")
        if self.num_return_sequences > 1 and not (self.do_sample or self.num_beams > 1):
            raise RequestError(
                "num_return_sequences needs do_sample=True or num_beams: without them all sequences are the same"
            )
        for name in _OF_SAMPLING:
            if not self.do_sample and getattr(self, name) != self.DEFAULTS[name]:
                raise RequestError(f"{name} needs do_sample=True: without it the most likely token is taken")
        if (
            self.prompt_lookup_num_tokens is None
            and self.max_matching_ngram_size != self.DEFAULTS["max_matching_ngram_size"]
        ):
            raise RequestError("max_matching_ngram_size needs prompt_lookup_num_tokens: without it nothing is guessed")
        self._check_beams()
        if self.prefix is not None and not isinstance(self.prefix, str):
            raise RequestError(f"prefix must be a text, not {self.prefix!r}")
        if self.handle_long_generation not in (None, "hole"):
            raise RequestError(f"handle_long_generation must be 'hole' or None, not {self.handle_long_generation!r}")
        if self.streamer and not callable(self.streamer) and not hasattr(self.streamer, "put"):
            raise RequestError("streamer must be a function of text, or have put and end")

    def _check_beams(self):
        for name in _OF_BEAMS:
            if self.num_beams == 1 and getattr(self, name) != self.DEFAULTS[name]:
                raise RequestError(f"{name} needs num_beams above 1: without beams one text is followed")
        for name in _OF_ONE_SEQUENCE:
            value = getattr(self, name)
            if self.num_beams > 1 and value is not None and value is not False:
                raise RequestError(f"{name} with num_beams {self.num_beams}: which beam returns shows only at the end")
        if beams := self._beams():
            beams.check_sampling(self._sampling(0))

    @property
    def needs_text(self):
        """Whether text is written that is not returned."""
        return bool(self.streamer or self.stop_strings)

    @property
    def kept(self):
        """What was asked for: {its name in a result: attribute of a Request, or with beams of a Hypothesis}."""
        if self.num_beams > 1:
            return {"sequence_score": "score", "token_scores": "token_scores"} if self.output_scores else {}
        asked = [name for name in _KEPT if getattr(self, name) is not None and getattr(self, name) is not False]
        return {attribute: attribute for name in asked for attribute in _KEPT[name]}

    @property
    def requests_of_each(self):
        """How many Requests a prompt makes: one for each sequence, or one for all of beam search's."""
        return 1 if self.num_beams > 1 else self.num_return_sequences

    def fit(self, prompt, n_ctx):
        """A prompt's token ids, without its beginning where handle_long_generation says so."""
        new = self.max_new_tokens or max((self.max_length or 0) - len(prompt), 1)
        if self.handle_long_generation is None or len(prompt) + new <= n_ctx or new >= n_ctx:
            return prompt
        return prompt[len(prompt) + new - n_ctx :]

    def request(self, prompt, number, config, tokenizer):
        """The Request for a prompt's sequence of that number.

        Raises:
            RequestError: lengths that the prompt leaves no room for.
        """
        limit = self._limit(len(prompt), config.n_ctx)
        least = max(self.min_new_tokens, self.min_length - len(prompt), 0)
        if least > limit:
            raise RequestError(f"at least {least} new tokens are asked for, but at most {limit} allowed")
        stops = self._stops(config)
        if self.exponential_decay_length_penalty and not stops:
            raise RequestError("exponential_decay_length_penalty needs an eos_token_id: the model has none")
        names = ("max_time", "include_stop_str_in_output", *_OF_LOOKUP, *(() if self.num_beams > 1 else _KEPT))
        kept = {name: getattr(self, name) for name in names}
        return Request(
            prompt,
            limit,
            least,
            stops,
            self._sampling(number),
            tokenizer=tokenizer,
            stop_strings=self.stop_strings,
            beams=self._beams(),
            **kept,
        )

    def _limit(self, used, n_ctx):
        """New tokens that are allowed."""
        if self.max_new_tokens is not None:
            if self.max_new_tokens < 1:
                raise RequestError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
            return self.max_new_tokens
        if self.max_length is None:
            return max(1, min(DEFAULT_NEW_TOKENS, n_ctx - used))
        if self.max_length <= used:
            raise RequestError(f"max_length {self.max_length} leaves no room after a prompt of {used} tokens")
        return self.max_length - used

    def _stops(self, config):
        """Ids that end the text."""
        ends = self.eos_token_id if self.eos_token_id is not None else config.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list | tuple) else [ends]
        return tuple(check_ids("eos_token_id", ends) + check_ids("stop_token_ids", self.stop_token_ids))

    def _beams(self):
        """A BeamOptions, or None of one beam."""
        check_number("num_beams", self.num_beams, int, lambda value: value >= 1, "be at least 1")
        if self.num_beams == 1:
            return None
        return BeamOptions(**{one.name: getattr(self, one.name) for one in fields(BeamOptions)})

    def _sampling(self, number):
        values = {one.name: getattr(self, one.name) for one in fields(SamplingOptions)}
        if self.seed is not None:
            check_number("seed", self.seed, int, lambda value: True, "")
            values["seed"] = self.seed + number
        return SamplingOptions(**values)
