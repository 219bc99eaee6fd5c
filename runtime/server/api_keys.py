"""API keys: who may use the server. Only hashes of them stay in memory."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from neo_tf.errors import RequestError
from neo_tf.text_files import read_option_file

from .errors import ServerError


class ApiKeys:
    """The keys that are accepted.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Reads a file with a key on each line. Empty lines and lines that begin with # are left out.

        Raises:
            RequestError: The file cannot be read, or has no key.
        """
        lines = [line.strip() for line in read_option_file("--api-keys", path).splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise RequestError(f"--api-keys {path}: holds no key: write one on each line")
        return cls(keys)

    def check(self, authorization: str) -> None:
        """Checks the header Authorization of a request.

        Raises:
            ServerError: It has none of the keys.
        """
        scheme, _, key = authorization.partition(" ")
        if not (scheme.lower() == "bearer" and self.accepts(key.strip())):
            raise refused("is wrong" if authorization else "is needed: send Authorization: Bearer KEY")

    def accepts(self, key: str) -> bool:
        """Whether a key is one of them. It takes the same time whichever it is, and if it is none."""
        given = _hash(key)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(given, known)
        return found


def refused(why: str) -> ServerError:
    """The error of a request that has no key of this server.

    Args:
        why: What follows "the API key".
    """
    return ServerError(401, f"the API key {why}", code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
