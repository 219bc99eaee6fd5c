"""`neo-tf serve`: a model behind HTTP."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neo_tf.cli.console import export_progress, results
from neo_tf.cli.shared_options import (
    AdapterPath,
    ChosenPrecision,
    Device,
    Model,
    MoePolicy,
    Revision,
    Threads,
    TokenizerPath,
    optional_size,
    size_in_bytes,
)
from neo_tf.errors import MissingExtraError, RequestError

if TYPE_CHECKING:
    from neo_tf.runtime.server.api_keys import ApiKeys

_NETWORK = "Address and clients"
_LIMITS = "Limits"
_LOG = "Log and end"


class LogFormat(StrEnum):
    """How the log is written."""

    text = "text"
    json = "json"


def _option(panel: str, words: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=words, rich_help_panel=panel, **more)


def serve(
    model: Model,
    host: Annotated[
        str, _option(_NETWORK, "The address to listen at. 0.0.0.0 is every address of this machine.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[
        int, _option(_NETWORK, "The port to listen at; 0 takes a free one.", min=0, max=65535, metavar="N")
    ] = 8000,
    api_keys: Annotated[
        Path | None,
        _option(
            _NETWORK,
            "A file of the keys that clients must send, one on each line. Without it no key is needed.",
            metavar="FILE",
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        _option(_NETWORK, "Let everybody in who can reach the address, without keys.", "--no-auth", metavar=""),
    ] = False,
    model_name: Annotated[
        str | None,
        _option(_NETWORK, "The model's name for clients. By default it is that of MODEL.", metavar="NAME"),
    ] = None,
    alias: Annotated[
        list[str] | None,
        _option(_NETWORK, "Another name of the model. It can be repeated.", metavar="NAME"),
    ] = None,
    chat_template: Annotated[
        Path | None,
        _option(
            _NETWORK,
            "A file with the Jinja template that chats are written with. By default the tokenizer's own is used.",
            metavar="FILE",
        ),
    ] = None,
    text_filter: Annotated[
        str | None,
        _option(
            _NETWORK,
            "Let a function of (text, prompt) judge each text before it is sent: it returns the text, another one, or "
            "None, which withholds it. Streams then wait for the end of the text.",
            "--filter",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    slots: Annotated[
        int, _option(_LIMITS, "Decode this number of sequences at the same time.", min=1, metavar="N")
    ] = 16,
    cache_memory: Annotated[
        str | None,
        _option(
            _LIMITS,
            "Use at most this memory for the KV caches of running sequences, such as 2GB. Without it most of the free "
            "memory is used.",
            metavar="SIZE",
        ),
    ] = None,
    prefix_cache_memory: Annotated[
        str | None,
        _option(
            _LIMITS,
            "Use at most this memory to keep the KV caches of beginnings that prompts have in common, such as 500MB; 0 "
            "keeps none. Without it the memory of one whole context is used.",
            metavar="SIZE",
        ),
    ] = None,
    max_queue: Annotated[
        int, _option(_LIMITS, "Let this number of sequences wait for a slot; more are refused.", min=0, metavar="N")
    ] = 256,
    max_body: Annotated[str, _option(_LIMITS, "Refuse requests that are larger than this.", metavar="SIZE")] = "4MB",
    max_logprobs: Annotated[
        int | None,
        _option(
            _LIMITS,
            "Return at most this number of alternatives for each token. By default it is 5 for completions and 20 for "
            "chats.",
            min=0,
            metavar="N",
        ),
    ] = None,
    shutdown_timeout: Annotated[
        float,
        _option(_LOG, "Let running requests finish for this many seconds after SIGTERM.", min=0, metavar="SECONDS"),
    ] = 30,
    log_format: Annotated[LogFormat, _option(_LOG, "Write the log as text or as lines of JSON.")] = LogFormat.text,
    log_prompts: Annotated[
        bool, _option(_LOG, "Write prompts into the log. Without it they are not written.", "--log-prompts", metavar="")
    ] = False,
    device: Device = None,
    precision: ChosenPrecision = None,
    threads: Threads = None,
    tokenizer: TokenizerPath = None,
    revision: Revision = None,
    moe_policy: MoePolicy = None,
    adapter: AdapterPath = None,
) -> None:
    """Serve a model over HTTP, for clients of OpenAI's API and of huggingface_hub. One line says when it is ready."""
    try:
        from neo_tf.runtime.server.app import create_app
        from neo_tf.runtime.server.logs import set_up_logging
        from neo_tf.runtime.server.serve import DrainingServer, address_of, bind
        from neo_tf.runtime.server.serving import ServerOptions, Serving
        from neo_tf.runtime.server.text_filter import load_judge
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "neo_tf":
            raise
        raise MissingExtraError(
            f"neo-tf serve needs {error.name}: install it with `pip install 'neo-tf[server]'`"
        ) from None
    from neo_tf.hub import tokenizer_path
    from neo_tf.model_cache import resolve_model
    from neo_tf.runtime.pipeline import TextGenerationPipeline

    options = ServerOptions(
        names=(model_name or Path(model).name or model, *(alias or ())),
        max_queue=max_queue,
        max_body=size_in_bytes("--max-body", max_body, least=1),
        max_logprobs=max_logprobs,
        keys=_keys(api_keys, no_auth),
        chat_template=_template(chat_template),
        judge=None if text_filter is None else load_judge(text_filter),
        log_prompts=log_prompts,
    )
    cache_bytes = optional_size("--cache-memory", cache_memory, least=1)
    prefixes = optional_size("--prefix-cache-memory", prefix_cache_memory)
    chosen = precision and precision.value
    with bind(host, port) as bound:
        _check_public(bound, host, options.keys, no_auth)
        set_up_logging(log_format.value)
        its_tokenizer = tokenizer_path(tokenizer)
        folder = resolve_model(model, its_tokenizer, revision, export_progress, moe_policy, chosen, adapter)
        pipeline = TextGenerationPipeline(
            folder,
            its_tokenizer,
            device,
            slots,
            threads,
            chosen,
            cache_bytes=cache_bytes,
            prefix_cache_bytes=prefixes,
            defaults={},
        )
        serving = Serving(pipeline, options)
        line = f"neo-tf serves {serving.name} at {address_of(bound)}"
        server = DrainingServer(create_app(serving), serving, shutdown_timeout, lambda: results.print(line))
        server.run([bound])


def _keys(path: Path | None, no_auth: bool) -> "ApiKeys | None":
    from neo_tf.runtime.server.api_keys import ApiKeys

    if path is None:
        return None
    if no_auth:
        raise RequestError("--api-keys and --no-auth are both given: either keys are needed, or they are not")
    return ApiKeys.read(path)


def _template(path: Path | None) -> str | None:
    if path is None:
        return None
    from neo_tf.runtime.chat_template import read_template

    return read_template("--chat-template", path)


def _check_public(bound: Any, host: str, keys: "ApiKeys | None", no_auth: bool) -> None:
    from neo_tf.runtime.server.serve import is_public

    if is_public(bound) and keys is None and not no_auth:
        raise RequestError(
            f"--host {host} lets other machines in: give --api-keys FILE, or --no-auth where everybody may use it"
        )
