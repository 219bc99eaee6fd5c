"""Compiles guides into grammars over a tokenizer's tokens, and keeps the last ones."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from neo_tf.errors import MissingExtraError, RequestError, first_line

from .guide import Guide
from .token_bytes import token_bytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from tokenizers import Tokenizer

# The library goes into the parts of a schema by recursion, with about 10 KB for each, and ends the process where its
# stack is full: this is enough for guide.MOST_SCHEMAS of them inside each other.
_STACK_BYTES = 256 << 20
_KEPT = 32  # compiled grammars: a large one takes a few MB


class GrammarState(Protocol):
    """Where one text stands in a grammar."""

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        ...

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool [number of token ids]. Special tokens never may."""
        ...

    def may_end_with(self, token: int) -> bool:
        """Whether a token may end the text: one without text ends it before itself, another one after itself."""
        ...

    def add(self, tokens: list[int]) -> None:
        """Goes on with tokens that were allowed."""
        ...


class Grammar(Protocol):
    """A compiled guide."""

    name: str
    """The argument that it comes from."""

    def start(self) -> GrammarState:
        """The state of an empty text."""
        ...


class Grammars:
    """The grammars of one tokenizer. Any number of threads may use it.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._tokens: _Tokens | None = None
        self._compiled = functools.lru_cache(maxsize=_KEPT)(self._compile)

    def compile(self, guide: Guide) -> Grammar:
        """The grammar of a guide, from the cache where it is there.

        Raises:
            RequestError: It is none, or it has something that is not served; or the tokenizer cannot be guided.
            MissingExtraError: The extra `guided` is not installed.
        """
        return self._compiled(guide)

    def _compile(self, guide: Guide) -> Grammar:
        try:
            import llguidance
        except ImportError:
            raise MissingExtraError(f"{guide.name} needs the extra guided: pip install 'neo-tf[guided]'") from None
        with self._lock:
            if self._tokens is None:
                self._tokens = _Tokens(token_bytes(self._tokenizer))
        tokens = self._tokens.for_library
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = _with_large_stack(lambda: llguidance.LLMatcher(tokens, guide.grammar, log_level=0, limits=limits))
        if matcher.is_error():
            raise RequestError(f"{guide.name}: {_reason(matcher.get_error())}")
        return _Compiled(guide.name, matcher, self._tokens.has_text)


_stack_size = threading.Lock()


def _with_large_stack(make: Callable[[], LLMatcher]) -> LLMatcher:
    """What a function returns, or raises, in a thread with a stack of _STACK_BYTES; memory is used as it is needed."""
    made: Future[LLMatcher] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    thread = threading.Thread(target=run, name="neo-tf grammar")
    with _stack_size:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    return made.result()


class _Tokens:
    """A tokenizer's tokens.

    Args:
        found: The bytes of each token id, None for a token without text.

    Attributes:
        has_text: bool [number of token ids].
        for_library: The same tokens, as llguidance takes them.
    """

    def __init__(self, found: list[bytes | None]) -> None:
        import llguidance

        self.has_text = np.array([bool(text) for text in found])
        self.for_library: LLTokenizer = llguidance.LLTokenizer(_Wrapped(found))  # type: ignore[arg-type]  # by its shape


class _Wrapped:
    """Tokens with the attributes that llguidance reads. One more token, the last, is its end of a text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, found: list[bytes | None]) -> None:
        self.eos_token_id = len(found)
        self.tokens = [*(text or b"" for text in found), b"<end>"]
        self.special_token_ids = [index for index, text in enumerate([*found, None]) if not text]

    def __call__(self, text: Any) -> list[int]:
        """Is never called: the grammars force no tokens."""
        raise NotImplementedError("the tokens of a guided text are chosen one by one")


class _Compiled:
    """A compiled guide; a Grammar.

    Args:
        name: The argument that it comes from.
        matcher: The library's state of an empty text, which is only copied.
        has_text: bool [number of token ids].
    """

    def __init__(self, name: str, matcher: LLMatcher, has_text: np.ndarray) -> None:
        self.name = name
        self._matcher = matcher
        self._has_text = has_text

    def start(self) -> GrammarState:
        """The state of an empty text."""
        return _State(self.name, self._matcher.deep_copy(), self._has_text)


class _State:
    """Where one text stands in a grammar; a GrammarState."""

    def __init__(self, name: str, matcher: LLMatcher, has_text: np.ndarray) -> None:
        self._name = name
        self._matcher = matcher
        self._has_text = has_text

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self._matcher.is_accepting()

    def allowed(self) -> np.ndarray:
        """The tokens that may come next, bool [number of token ids].

        Raises:
            RequestError: The grammar is too large to be followed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._refuse_error()
        allowed = np.unpackbits(bits, count=len(self._has_text), bitorder="little").view(bool)
        return allowed & self._has_text

    def may_end_with(self, token: int) -> bool:
        """Whether a token may end the text: one without text ends it before itself, another one after itself."""
        if token >= len(self._has_text) or not self._has_text[token]:
            return self.is_complete
        after = self._matcher.deep_copy()
        return after.try_consume_tokens([token]) == 1 and after.is_accepting()

    def add(self, tokens: list[int]) -> None:
        """Goes on with tokens that were allowed.

        Raises:
            RequestError: One was not, or the grammar is too large to be followed.
        """
        if not self._matcher.consume_tokens(tokens):
            self._refuse_error()

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"{self._name}: cannot be followed further: {first_line(self._matcher.get_error())}")


def _reason(message: str) -> str:
    """The library's reason in one line, without the place in the grammar that the user did not write."""
    found = re.search(r"^error: (.*)$", message, re.MULTILINE)
    if found:
        return found[1]
    first = re.sub(r"^(?:at )?\d+\(\d+\): ", "", first_line(message))
    first = re.sub(r"^failed to compile JSON schema: |^invalid regex .* \(in regex\): ", "", first)
    return first.removesuffix(". Enable 'coerce_one_of' option to approximate oneOf with anyOf")
