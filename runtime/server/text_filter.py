"""A user's own function that judges each text before it is sent: it may replace a text, or withhold it."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from neo_tf.errors import RequestError, one_line

from ..engine.generation import FinishReason
from .errors import ServerError

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..sampling.beam_group import Hypothesis
    from ..tokenizer import Tokenizer

Judge = Callable[[str, str], str | None]

_THREADS = 32
_log = logging.getLogger("neo_tf.filter")


def load_judge(name: str) -> Judge:
    """Loads the function that `--filter module:function` names.

    Args:
        name: A module and a function in it. The module is looked for in the working directory, too.

    Raises:
        RequestError: There is no such function, or its module fails.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise RequestError(f"--filter {name}: write it as module:function")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last: it hides no installed package
    try:
        judge = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise RequestError(f"--filter {name}: cannot be loaded: {type(error).__name__}: {one_line(error)}") from None
    if not callable(judge):
        raise RequestError(f"--filter {name}: is no function")
    return judge


class TextFilter:
    """Judges texts by a function of (text, prompt).

    The function returns the text that is sent: the same one, or another. None withholds the text. It may be called from
    several threads at once. A function that fails, or returns something else, ends the request with an error: a text
    that was not judged is never sent.

    Args:
        judge: The function.
        tokenizer: Writes the prompts.
    """

    def __init__(self, judge: Judge, tokenizer: Tokenizer) -> None:
        self._judge = judge
        self._tokenizer = tokenizer
        # Threads of its own: a filter that takes long does not take those that requests are worked out in.
        self._threads = ThreadPoolExecutor(_THREADS, "neo-tf filter")

    async def apply(self, generation: Generation) -> Generation:
        """What is sent of a Generation that has ended.

        Returns:
            The same one where the text stays as it is. Otherwise a copy with the other text and without what would tell
            of the first one: its tokens and their probabilities.

        Raises:
            ServerError: The function failed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._apply, generation)

    def _apply(self, generation: Generation) -> Generation:
        prompt = self._tokenizer.decode(generation.request.prompt)
        if not generation.hypotheses:
            text = self._judged(generation.text, prompt)
            return generation if text == generation.text else _changed(generation, text)
        texts = [self._judged(one.text, prompt) for one in generation.hypotheses]
        hypotheses = [
            one if text == one.text else _changed_hypothesis(one, text)
            for one, text in zip(generation.hypotheses, texts, strict=True)
        ]
        changed = generation if texts[0] == generation.text else _changed(generation, texts[0])
        changed = copy.copy(changed)
        changed.hypotheses = hypotheses
        return changed

    def _judged(self, text: str, prompt: str) -> str | None:
        try:
            judged = self._judge(text, prompt)
            if judged is not None and not isinstance(judged, str):
                raise TypeError(f"it returned {type(judged).__name__}, not a text or None")
        except Exception as error:
            _log.exception("the filter failed")
            raise ServerError(
                500, "the server's filter failed, so that no text is sent", code="filter_failed"
            ) from error
        return judged


def _changed(generation: Generation, text: str | None) -> Generation:
    changed = copy.copy(generation)
    changed.text = text or ""
    changed.tokens = []
    changed.token_logprobs = []
    changed.top_logprobs = []
    changed.logits = []
    changed.scores = []
    if text is None:
        changed.finish_reason = FinishReason.WITHHELD
    return changed


def _changed_hypothesis(hypothesis: Hypothesis, text: str | None) -> Hypothesis:
    reason = FinishReason.WITHHELD if text is None else hypothesis.finish_reason
    return dataclasses.replace(hypothesis, text=text or "", tokens=[], token_scores=[], finish_reason=reason)
