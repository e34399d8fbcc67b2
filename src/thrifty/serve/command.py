"""``thrifty serve``: the gateway from the command line."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.options import DeviceOption, DtypeOption, ModelOption, ThinkOption

if TYPE_CHECKING:
    from thrifty.serve.engine import Engine


def serve(
    model: ModelOption = "pebble",
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL of a server to ask instead, as http://HOST:PORT/v1; a second one if the first fails."),
    ] = None,
    upstream_model: Annotated[str, typer.Option(help="The only model to serve there. Default: all it lists.")] = "",
    upstream_key_env: Annotated[
        list[str] | None,
        typer.Option(
            help="Environment variable with its key: once per --upstream, or once for the first and its origin."
        ),
    ] = None,
    upstream_prefill: Annotated[
        str, typer.Option(help="How it continues a message: vllm (SGLang, too), assistant (llama.cpp), none.")
    ] = "none",
    upstream_effort: Annotated[
        bool, typer.Option(help="It understands reasoning_effort; if not, that bounds the thinking here.")
    ] = True,
    upstream_timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of silence before it is given up.")] = 120.0,
    helper_key_env: Annotated[
        str, typer.Option(help="Environment variable with the key of the server that a method's helper is on.")
    ] = "",
    helper_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds of silence before a helper is given up.")
    ] = 20.0,
    host: Annotated[str, typer.Option(help="Where to listen. Beyond this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    method: Annotated[str, typer.Option(help="What answers where a client names nothing.")] = "vanilla",
    offer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=METHOD, for MODEL@NAME: the way to options that clients may not set, such as files."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Where a client gives none. 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most of a response. Default: the context.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Requests at work together. Default: 32; 256 before an upstream.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait beyond them.")] = 256,
    difficulty: Annotated[
        str, typer.Option(help="What `thrifty tune diffadapt` wrote, to tell what the effort 'auto' stands for.")
    ] = "",
    vanilla_tokens: Annotated[
        float | None, typer.Option(min=0, help="What a plain response takes, until some were measured.")
    ] = None,
    vanilla_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the requests, answered plainly beside, to measure what is saved.")
    ] = 0.0,
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the keys that let in.")] = None,
    keys: Annotated[Path | None, typer.Option(help="File with the SHA-256 of a key on each line.")] = None,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of the largest request.")] = 4 << 20,
    key_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests at the same time for each key, waiting ones included.")
    ] = None,
    key_requests: Annotated[int | None, typer.Option(min=1, help="Requests a minute for each key.")] = None,
    key_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens a minute for each key, read and written.")
    ] = None,
    first_token: Annotated[
        float, typer.Option(min=0, help="Seconds that a request may wait until work on it begins. 0 for any.")
    ] = 60.0,
    deadline: Annotated[
        float, typer.Option(min=0, help="Seconds for a whole response; its thinking is closed in time. 0 for any.")
    ] = 600.0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for requests at work when the server is told to stop.")
    ] = 30.0,
    log: Annotated[bool, typer.Option(help="A line of JSON on standard output for each request.")] = True,
    log_prompts: Annotated[bool, typer.Option(help="Put what was asked and answered into the log.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    think: ThinkOption = None,
) -> None:
    """Answer OpenAI's API with fewer reasoning tokens."""
    for package in ("httptools", "prometheus_client", "pydantic", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtra(package.replace("_", "-"), "serve")
    from thrifty.serve.app import Gateway
    from thrifty.serve.asking import Defaults
    from thrifty.serve.deadlines import Deadlines
    from thrifty.serve.guard import LOOPBACK_HOSTS, Door, read_keys
    from thrifty.serve.limits import Limits
    from thrifty.serve.logs import configure
    from thrifty.serve.saved import VanillaMean
    from thrifty.serve.server import Server

    found = read_keys(key_env, keys)
    if not found and host not in LOOPBACK_HOSTS:
        raise ThriftyError(f"{host} is open to others: give keys with --key-env or --keys, or listen on 127.0.0.1")
    if not 0 <= temperature <= 2:
        raise ThriftyError("temperature must be between 0 and 2")
    offered = dict(map(_offered, offer or ()))
    engine: Engine
    if upstream:
        from thrifty.serve.upstream_command import connect

        engine = connect(
            upstream,
            model=upstream_model,
            key_envs=upstream_key_env or (),
            prefill=upstream_prefill,
            efforts=upstream_effort,
            timeout=upstream_timeout,
            think=think,
            method=method,
            offered=offered,
            slots=slots,
            queue=queue,
            max_tokens=max_tokens,
            helper_key_env=helper_key_env,
            helper_timeout=helper_timeout,
        )
    else:
        from thrifty.models import load_model
        from thrifty.models.torch import TorchModel
        from thrifty.serve.local import LocalEngine

        loaded = load_model(model, device=device, dtype=dtype, think=think)
        if not isinstance(loaded, TorchModel):
            raise ThriftyError(f"{model!r} runs elsewhere: put the gateway before it with --upstream URL")
        engine = LocalEngine(
            loaded,
            method=method,
            offered=offered,
            slots=slots or 32,
            queue=queue,
            max_tokens=max_tokens,
            difficulty=difficulty,
        )
    gateway = Gateway(
        engine,
        Door(found, max_body, limits=Limits(key_concurrency, key_requests, key_tokens)),
        Defaults(temperature),
        VanillaMean(vanilla_tokens),
        vanilla_share,
        Deadlines(first_token or None, deadline or None),
        log_prompts,
    )

    def ready(address: str) -> None:
        names = [served.id for served in engine.models()]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"{names[0]}{more} answers at {address}/v1, with {method}", err=True)

    server = Server(gateway, host, port, grace, ready)
    configure(sys.stdout, requests=log, prompts=log_prompts)
    server.listen()


def _offered(text: str) -> tuple[str, str]:
    name, equals, method = text.partition("=")
    if not (equals and name.strip() and method.strip()) or "(" in name:
        raise ThriftyError(f"--offer {text!r}: write NAME=METHOD, as mild='cgrs(delta=0.95)'")
    return name.strip(), method.strip()
