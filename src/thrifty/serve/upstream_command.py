"""From the options of ``thrifty serve --upstream`` to an engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from thrifty.errors import ThriftyError, UnknownName, Unreachable
from thrifty.models.client import Client, Patience
from thrifty.serve.upstream import UpstreamEngine, workable_methods
from thrifty.serve.upstream_client import Upstreams
from thrifty.serve.upstream_helpers import HELPER_SECONDS, Helpers
from thrifty.serve.upstream_order import PREFILLS
from thrifty.traces.think import THINK_FORMATS, think_format

MOST_TOKENS = 1 << 17
"""Of a response, where neither the operator nor the server names a limit."""


def connect(
    urls: Sequence[str],
    *,
    model: str = "",
    key_envs: Sequence[str] = (),
    prefill: str = "none",
    efforts: bool = True,
    timeout: float = 120.0,
    think: str | None = None,
    method: str = "vanilla",
    offered: Mapping[str, str] | None = None,
    slots: int | None = None,
    queue: int = 256,
    max_tokens: int | None = None,
    helper_key_env: str = "",
    helper_timeout: float = HELPER_SECONDS,
) -> UpstreamEngine:
    """Return an engine before some servers.

    Args:
        urls: as ``http://localhost:8000/v1``, perhaps with ``#MODEL``; the first is asked, the others if it fails.
        model: the only model to serve, empty for the one behind the first ``#``, or all that the first server lists.
        key_envs: environment variables with the servers' keys, see `keys_for`.
        prefill: how they are asked to continue a message.
        efforts: whether they understand ``reasoning_effort``.
        timeout: seconds of silence after which a server is given up.
        think: name of the think format there, or its two markers; None for ``<think>``.
        method: see `UpstreamEngine`, as for what follows.
        offered: likewise.
        slots: likewise.
        queue: likewise.
        max_tokens: likewise.
        helper_key_env: environment variable with the key of a server elsewhere whose model a method names.
        helper_timeout: seconds of silence after which it is given up.

    Raises:
        ThriftyError: a server cannot be asked, or a method cannot work there.
    """
    for option, names in (("--upstream-key-env", key_envs), ("--helper-key-env", [helper_key_env])):
        for name in names:
            if name and not os.environ.get(name, "").strip():
                raise ThriftyError(f"the environment variable {name} holds no key: set it, or leave out {option}")
    if prefill not in PREFILLS:
        raise UnknownName("--upstream-prefill", prefill, PREFILLS)
    patience = Patience(timeout=timeout, retries=2)
    keys = keys_for(urls, key_envs)
    upstreams = Upstreams(urls, keys, patience)
    workable_methods()  # takes a moment, which no request should wait for
    model = model or urls[0].partition("#")[2]
    found: Mapping[str, int | None] = {model: None}
    if not model:
        models = asyncio.run(listed(urls[0], keys[0], Patience(timeout=min(timeout, 10.0), retries=0)))
        found = {one["id"]: _context(one) for one in models}
    return UpstreamEngine(
        upstreams,
        found,
        method=method,
        offered=offered,
        slots=slots or 256,
        queue=queue,
        max_tokens=max_tokens or MOST_TOKENS,
        prefill=next(p for p in PREFILLS if p == prefill),
        efforts=efforts,
        think=think_format(think) if think else THINK_FORMATS["think"],
        helpers=Helpers(dict(zip(urls, keys, strict=True)), helper_key_env, helper_timeout),
    )


def _context(model: Mapping[str, object]) -> int | None:
    """Return the tokens of a model's context, where its server tells them as vLLM and SGLang do."""
    told = model.get("max_model_len")
    return told if isinstance(told, int) and told > 0 else None


def keys_for(urls: Sequence[str], variables: Sequence[str]) -> list[str]:
    """Return the environment variable with the key of each server, empty for none.

    Args:
        urls: as for `Upstreams`.
        variables: one for each server, in their order; a single one is for the first server and for what else runs
            at the same scheme, host and port, because no vendor should see the key of another.

    Raises:
        ThriftyError: their number fits neither.
    """
    if len(variables) == len(urls):
        return list(variables)
    if len(variables) > 1:
        raise ThriftyError(
            f"{len(variables)} keys for {len(urls)} servers: give --upstream-key-env once, or once per --upstream"
        )
    first = _origin(urls[0])
    return [variables[0] if variables and _origin(url) == first else "" for url in urls]


def _origin(url: str) -> tuple[str, ...]:
    try:
        found = httpx.URL(url.strip())
    except httpx.InvalidURL:
        return (url,)  # which the client will refuse
    return found.scheme, found.host, str(found.port)


async def listed(url: str, key_variable: str, patience: Patience) -> list[Mapping[str, Any]]:
    """Return what a server lists under ``/models``.

    Args:
        url: as for `Upstreams`.
        key_variable: the environment variable with its key, empty for none.
        patience: how long to ask.

    Raises:
        ThriftyError: it lists nothing; the message names the fix.
    """
    client = Client(url.partition("#")[0], key_variable, patience)
    try:
        found, _ = await client.fetch("GET", "/models", None, _models, retries=0)
    except Unreachable as error:
        raise ThriftyError(f"{error}; or name the model with --upstream-model") from error
    finally:
        await client.aclose()
    if not found:
        raise ThriftyError(f"{client.url} lists no model: name it with --upstream-model")
    return found


def _models(payload: Any) -> list[Mapping[str, Any]]:
    data = payload.get("data") if isinstance(payload, dict) else None
    if not isinstance(data, list):
        raise ValueError("no list of models")
    return [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str) and m["id"].isprintable()]
