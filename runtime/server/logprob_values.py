"""What every protocol does with log-probabilities: how many it returns, and which ones JSON can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import bad_request

if TYPE_CHECKING:
    from .serving import Serving


# Alternatives for each token, where the server's --max-logprobs does not say another number: as in OpenAI's completions
# and in Text Generation Inference.
MOST_LOGPROBS = 5


def check_logprobs(count: int | None, field: str, most: int, serving: Serving) -> None:
    """Raises ServerError where more alternatives are asked for than the server returns."""
    limit = most if serving.options.max_logprobs is None else serving.options.max_logprobs
    if count is not None and count > limit:
        raise bad_request(f"{field} must be at most {limit} on this server, not {count}", field, "invalid_value")


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold. As in OpenAI's API, -9999 stands for what is too small."""
    return max(logprob, -9999.0)
