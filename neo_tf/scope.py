"""The scopes of a Keras model's variables."""

from __future__ import annotations

from typing import Any


class Scope(dict[str, Any]):
    """A scope of the original: {"g": keras.Variable} or {"attn": Scope}, as the variables' names nest."""

    def insert(self, name: str, variable: Any) -> None:
        """Adds a variable under a name such as "attn/q"."""
        head, _, rest = name.partition("/")
        if rest:
            self.setdefault(head, Scope()).insert(rest, variable)
        else:
            self[head] = variable
