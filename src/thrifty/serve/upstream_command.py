"""From the options of ``thrifty serve --upstream`` to an engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from thrifty.errors import ThriftyError, UnknownName
from thrifty.models.client import Patience
from thrifty.serve.upstream import UpstreamEngine, workable_methods
from thrifty.serve.upstream_client import Upstreams, listed
from thrifty.serve.upstream_order import PREFILLS
from thrifty.traces.think import THINK_FORMATS, think_format

MOST_TOKENS = 1 << 17
"""Of a response, where neither the operator nor the server names a limit."""


def connect(
    urls: Sequence[str],
    *,
    model: str = "",
    key_env: str = "",
    prefill: str = "none",
    efforts: bool = True,
    timeout: float = 120.0,
    think: str | None = None,
    method: str = "vanilla",
    offered: Mapping[str, str] | None = None,
    slots: int | None = None,
    queue: int = 256,
    max_tokens: int | None = None,
) -> UpstreamEngine:
    """Return an engine before some servers.

    Args:
        urls: as ``http://localhost:8000/v1``, perhaps with ``#MODEL``; the first is asked, the others if it fails.
        model: the only model to serve, empty for the one behind the first ``#``, or all that the first server lists.
        key_env: environment variable with the servers' key, empty for none.
        prefill: how they are asked to continue a message.
        efforts: whether they understand ``reasoning_effort``.
        timeout: seconds of silence after which a server is given up.
        think: name of the think format there, or its two markers; None for ``<think>``.
        method: see `UpstreamEngine`, as for all that follows.

    Raises:
        ThriftyError: a server cannot be asked, or a method cannot work there.
    """
    if key_env and not os.environ.get(key_env, "").strip():
        raise ThriftyError(f"the environment variable {key_env} holds no key: set it, or leave out --upstream-key-env")
    if prefill not in PREFILLS:
        raise UnknownName("--upstream-prefill", prefill, PREFILLS)
    patience = Patience(timeout=timeout, retries=2)
    upstreams = Upstreams(urls, key_env, patience)
    workable_methods()  # takes a moment, which no request should wait for
    model = model or urls[0].partition("#")[2]
    found: Mapping[str, int | None] = {model: None}
    if not model:
        models = asyncio.run(listed(urls, key_env, Patience(timeout=min(timeout, 10.0), retries=0)))
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
    )


def _context(model: Mapping[str, object]) -> int | None:
    """Return the tokens of a model's context, where its server tells them as vLLM and SGLang do."""
    told = model.get("max_model_len")
    return told if isinstance(told, int) and told > 0 else None
