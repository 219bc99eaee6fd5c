"""Chat templates: messages become one text, by a Jinja template that comes with a model.

The templates come from strangers. They run in Jinja's sandbox, and see strings, numbers, lists and dicts alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neo_tf.errors import MissingExtraError, RequestError, first_line
from neo_tf.text_files import read_option_file

if TYPE_CHECKING:
    import jinja2

_CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "  # marks the end of the last message; templates may strip its space


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The text of a chat, as transformers' apply_chat_template renders it.

    Args:
        template: The Jinja template.
        messages: Dicts with "role" and "content".
        add_generation_prompt: Whether the text ends with the beginning of the assistant's answer.
        continue_final_message: Whether the text ends with the last message, which is to be continued.
        variables: What else the template sees, such as the special tokens.

    Raises:
        RequestError: The messages or the template cannot be rendered.
        MissingExtraError: jinja2 is not installed.
    """
    if not messages:
        raise RequestError("a chat needs at least one message")
    if not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("each message of a chat must be a dict with role and content")
    if continue_final_message and add_generation_prompt:
        raise RequestError("continue_final_message does not go with add_generation_prompt")
    plain = [{key: _plain(value) for key, value in message.items() if value is not None} for message in messages]
    last = plain[-1].get("content")
    if continue_final_message:
        if not isinstance(last, str):
            raise RequestError("continue_final_message needs a last message whose content is a text")
        plain[-1]["content"] = last + _CONTINUED
    try:
        text = _compiled(template).render(
            messages=plain,
            add_generation_prompt=add_generation_prompt,
            **{"tools": None, "documents": None} | {key: _plain(value) for key, value in variables.items()},
        )
    except MissingExtraError:
        raise
    except Exception as error:  # a template may do anything
        raise RequestError(f"the chat template refuses these messages: {first_line(error)}") from None
    return _cut(text, last) if continue_final_message and isinstance(last, str) else text


def read_template(option: str, path: Path) -> str:
    """The template in a file.

    Args:
        option: The option that names the file, for the message.
        path: The file.

    Raises:
        RequestError: The file cannot be read, or holds no valid Jinja.
    """
    text = read_option_file(option, path)
    check_template(text, str(path))
    return text


def check_template(template: str, source: str) -> None:
    """Raises RequestError, which names the source, where a template is no valid Jinja."""
    try:
        _compiled(template)
    except MissingExtraError:
        raise
    except Exception as error:  # jinja2's errors of syntax
        raise RequestError(f"{source}: not a valid chat template: {first_line(error)}") from None


def _cut(text: str, last: str) -> str:
    """The text of a chat up to the end of its last message."""
    mark = _CONTINUED.strip()
    if mark not in text or last.strip() not in text:
        raise RequestError("continue_final_message: the chat template does not write the last message as it is")
    end = text.rindex(mark)
    return text[:end] if text[end:].startswith(_CONTINUED) else text[:end].rstrip()


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise MissingExtraError("a chat template needs jinja2: install it with `pip install jinja2`") from None

    class Generation(jinja2.ext.Extension):
        """Lets {% generation %} blocks pass, with which some templates mark the assistant's words."""

        def __init__(self, environment: jinja2.Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def now(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = now
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _plain(value: Any) -> Any:
    """A value made of JSON's types alone. Whatever else it holds is replaced by the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
