"""``thrifty serve``: the gateway from the command line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.options import DeviceOption, DtypeOption, ModelOption, ThinkOption


def serve(
    model: ModelOption = "pebble",
    host: Annotated[str, typer.Option(help="Where to listen. Beyond this machine only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    method: Annotated[str, typer.Option(help="What answers where a client names nothing.")] = "vanilla",
    offer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=METHOD, for MODEL@NAME: the way to options that clients may not set, such as files."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Where a client gives none. 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most of a response. Default: the context.")] = None,
    slots: Annotated[int, typer.Option(min=1, help="Requests decoded together.")] = 32,
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
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    think: ThinkOption = None,
) -> None:
    """Answer OpenAI's API with fewer reasoning tokens."""
    for package in ("httptools", "pydantic", "starlette", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtra(package, "serve")
    from thrifty.models import load_model
    from thrifty.models.torch import TorchModel
    from thrifty.serve.app import Gateway
    from thrifty.serve.asking import Defaults
    from thrifty.serve.guard import LOOPBACK_HOSTS, Door, read_keys
    from thrifty.serve.local import LocalEngine
    from thrifty.serve.saved import VanillaMean
    from thrifty.serve.server import Server

    found = read_keys(key_env, keys)
    if not found and host not in LOOPBACK_HOSTS:
        raise ThriftyError(f"{host} is open to others: give keys with --key-env or --keys, or listen on 127.0.0.1")
    if not 0 <= temperature <= 2:
        raise ThriftyError("temperature must be between 0 and 2")
    loaded = load_model(model, device=device, dtype=dtype, think=think)
    if not isinstance(loaded, TorchModel):
        raise ThriftyError(f"{model!r} runs elsewhere: give a model to load here, as --model FOLDER")
    engine = LocalEngine(
        loaded,
        method=method,
        offered=dict(map(_offered, offer or ())),
        slots=slots,
        queue=queue,
        max_tokens=max_tokens,
        difficulty=difficulty,
    )
    gateway = Gateway(engine, Door(found, max_body), Defaults(temperature), VanillaMean(vanilla_tokens), vanilla_share)

    def ready(address: str) -> None:
        typer.echo(f"{loaded.name} answers at {address}/v1, with {method}", err=True)

    Server(gateway, host, port, ready=ready).listen()


def _offered(text: str) -> tuple[str, str]:
    name, equals, method = text.partition("=")
    if not (equals and name.strip() and method.strip()) or "(" in name:
        raise ThriftyError(f"--offer {text!r}: write NAME=METHOD, as mild='cgrs(delta=0.95)'")
    return name.strip(), method.strip()
