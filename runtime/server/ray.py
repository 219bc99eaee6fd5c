"""The app on Ray Serve: each replica has a model and an engine of its own, and Ray shares the requests out."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neo_tf.errors import EngineError
from neo_tf.hub import tokenizer_path
from neo_tf.sizes import bytes_of

from ..chat_template import read_template
from ..pipeline import TextGenerationPipeline
from .api_keys import ApiKeys
from .app import create_app
from .logs import set_up_logging
from .serving import ServerOptions, Serving
from .text_filter import load_judge

if TYPE_CHECKING:
    from ray import serve

# Requests that a replica takes beyond those that its queue holds, so that they get a 429 of the app, and not Ray's 503.
_REFUSED_AT_ONCE = 32
# Ray replaces a replica whose health check has failed three times in a row.
_HEALTH_CHECK_SECONDS = 2


class ReplicaArguments(BaseModel):
    """How each replica serves the model: most options of `neo-tf serve` in the same words, and the number of replicas.

    The address and the port are Ray's. An adapter, a revision and a policy for experts are given to `neo-tf export`.

    Args:
        model: The ONNX folder. It lies under this path on every node, as all files that are named here.
        device: "cpu", or "cuda", which gives each replica a GPU of its own besides its CPUs.
        threads: The number of CPUs of a replica; on the CPU its model computes with as many threads.
        slots: The number of sequences that a replica decodes at the same time.
        max_queue: The number of sequences that may wait in a replica.
        num_replicas: The number of replicas, where neither `min_replicas` nor `max_replicas` is given.
        min_replicas, max_replicas: Ray starts and ends replicas between these numbers, so that there are about as many
            requests as slots.
        max_queued_requests: The number of requests that may wait in each of Ray's proxies while all replicas are full;
            Ray answers more with 503. -1 is no limit.
        shutdown_timeout: Seconds in which a replica that ends may finish its requests.
        model_name: The model's name for clients. By default it is that of the folder.
        alias: Other names of the model.
        api_keys: A file of the keys that clients must send.
        tokenizer, precision, cache_memory, prefix_cache_memory, max_body, max_logprobs, chat_template, filter,
            log_format, log_prompts: See `neo-tf serve --help`. A wrong precision is refused in the replica only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(1, ge=1, le=256)
    slots: int = Field(16, ge=1)
    max_queue: int = Field(256, ge=0)
    num_replicas: int = Field(1, ge=1)
    min_replicas: int | None = Field(None, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    max_queued_requests: int = Field(-1, ge=-1)
    shutdown_timeout: float = Field(30, ge=0)
    model_name: str | None = None
    alias: list[str] = []
    api_keys: str | None = None
    tokenizer: str | None = None
    precision: str | None = None
    cache_memory: str | None = None
    prefix_cache_memory: str | None = None
    max_body: str = "4MB"
    max_logprobs: int | None = Field(None, ge=0)
    chat_template: str | None = None
    filter: str | None = None
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False


class Replica:
    """One replica: a model, its engine, and the app over them.

    Args:
        arguments: How it serves the model.
    """

    async def __init__(self, arguments: ReplicaArguments) -> None:  # type: ignore[misc]  # Ray awaits it
        set_up_logging(arguments.log_format)
        # In a thread: the loop answers Ray meanwhile.
        self._serving = await asyncio.to_thread(load, arguments)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app, which Ray calls with the requests that come to this replica."""
        return _WithoutRequestId(create_app(self._serving))

    async def check_health(self) -> None:
        """Ray asks this every two seconds, and replaces a replica that fails three times.

        Raises:
            EngineError: The engine's thread has ended.
        """
        failure = self._serving.service.failure
        if failure is not None:
            raise EngineError(failure)


class _WithoutRequestId:
    """The app without the header X-Request-Id in its answers: Ray's proxy has chosen the id, and writes it itself.

    Args:
        app: The app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without)


def load(arguments: ReplicaArguments) -> Serving:
    """Loads the model of a replica.

    Raises:
        NeoTFError: An argument is wrong, or the model cannot be loaded.
    """
    template = arguments.chat_template
    options = ServerOptions(
        names=(arguments.model_name or Path(arguments.model).name, *arguments.alias),
        max_queue=arguments.max_queue,
        max_body=bytes_of("max_body", arguments.max_body),
        max_logprobs=arguments.max_logprobs,
        keys=ApiKeys.read(Path(arguments.api_keys)) if arguments.api_keys else None,
        chat_template=template and read_template("chat_template", Path(template)),
        judge=load_judge(arguments.filter) if arguments.filter else None,
        log_prompts=arguments.log_prompts,
    )
    pipeline = TextGenerationPipeline(
        arguments.model,
        tokenizer_path(arguments.tokenizer),
        arguments.device,
        arguments.slots,
        arguments.threads,
        arguments.precision,
        cache_bytes=_size("cache_memory", arguments.cache_memory),
        prefix_cache_bytes=_size("prefix_cache_memory", arguments.prefix_cache_memory),
        defaults={},
    )
    return Serving(pipeline, options)


def app(arguments: ReplicaArguments) -> "serve.Application":
    """The application for Ray Serve: `serve run neo_tf.runtime.server.ray:app model=/models/onnx threads=8`.

    Args:
        arguments: How each replica serves the model. Ray reads them from its command line or its YAML file.

    Returns:
        What `ray.serve.run` takes. A client's request goes to one replica, and ends there.
    """
    from ray import serve

    for name in ("max_body", "cache_memory", "prefix_cache_memory"):
        _size(name, getattr(arguments, name))  # what is wrong is said here, before a replica starts
    scaling: dict[str, object] = {"num_replicas": arguments.num_replicas}
    if arguments.min_replicas is not None or arguments.max_replicas is not None:
        least = 1 if arguments.min_replicas is None else arguments.min_replicas
        bounds = {"min_replicas": least, "max_replicas": max(arguments.max_replicas or least, 1)}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": arguments.slots}}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="neo-tf",
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": int(arguments.device == "cuda")},
        max_ongoing_requests=arguments.slots + arguments.max_queue + _REFUSED_AT_ONCE,
        max_queued_requests=arguments.max_queued_requests,
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"enable_access_log": False},  # the app writes its own
        graceful_shutdown_timeout_s=arguments.shutdown_timeout,
        **scaling,
    )
    return deployment.bind(arguments)


def _size(name: str, text: str | None) -> int | None:
    return None if text is None else bytes_of(name, text)
