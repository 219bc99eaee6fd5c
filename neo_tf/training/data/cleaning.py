"""What may be done to a text before it is tokenised: mending its Unicode, and undoing Wikitext's tokenising."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from neo_tf.errors import MissingExtraError


@dataclass(frozen=True)
class Cleaning:
    """What is done to each text, in this order. By default nothing.

    Args:
        ftfy: Mends texts that were decoded wrongly, and normalises to NFKC, with the library ftfy.
        wikitext: Puts the spaces of Wikitext back as they were; see wikitext_detokenize.
    """

    ftfy: bool = False
    wikitext: bool = False

    def function(self) -> Callable[[str], str]:
        """The function that does it.

        Raises:
            MissingExtraError: The extra `ftfy` is not installed.
        """
        steps: list[Callable[[str], str]] = []
        if self.ftfy:
            steps.append(_ftfy())
        if self.wikitext:
            steps.append(wikitext_detokenize)

        def clean(text: str) -> str:
            for step in steps:
                text = step(text)
            return text

        return clean


def _ftfy() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtraError.of("--ftfy needs the library ftfy", error, "ftfy") from None
    return lambda text: ftfy.fix_text(text, normalization="NFKC")


# (what is written, what it becomes), in the original's order, on which the result depends.
_CONTRACTIONS_AND_NUMBERS = (("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_PUNCTUATION = tuple((f" {sign} ", f"{sign} ") for sign in ":;.!?,")
# Spaces inside these pairs, next to them, are removed.
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_OTHERS = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
_INSIDE = tuple(
    (
        re.compile(rf"{re.escape(begin)}\s*([^{re.escape(end)}]*?)\s*{re.escape(end)}"),
        lambda found, begin=begin, end=end: f"{begin}{found[1]}{end}",
    )
    for begin, end in _PAIRS
)


def wikitext_detokenize(text: str) -> str:
    """Puts the spaces of a Wikitext file back as they were before it was tokenised.

    It is meant for Wikitext alone. Other texts lose by it: a space after each line break, and spaces inside brackets
    and between quotes.
    """
    for written, wanted in (*_CONTRACTIONS_AND_NUMBERS, *_PUNCTUATION):
        text = text.replace(written, wanted)
    for pattern, replace in _INSIDE:
        text = pattern.sub(replace, text)
    for written, wanted in _OTHERS:
        text = text.replace(written, wanted)
    return text
