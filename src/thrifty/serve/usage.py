"""What a client is told of the tokens: OpenAI's counts, and the whole account beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from thrifty.serve.engine import Done
from thrifty.traces.trace import Usage

MOST_NOTES = 1 << 16
"""Characters of the longest notes that are told."""
_PARTS = ("prompt", "thinking", "answer", "injected", "latent_steps", "probe", "helper", "reread", "drafted")


def account(dones: Sequence[Done], saved: dict[str, Any] | None, explain: bool) -> dict[str, Any]:
    """Return ``usage.thrifty``.

    Args:
        dones: the ends of all responses of a request, in order.
        saved: against plain responses, None while nothing is known of them.
        explain: whether to tell what the method did.
    """
    total = sum((done.usage for done in dones), Usage())
    counts = asdict(total)
    told: dict[str, Any] = {
        "method": dones[0].method,
        "seed": dones[0].seed,
        "exit_reasons": [done.exit_reason for done in dones],
        "tokens": {part: counts[part] for part in _PARTS},
        "total_tokens": total.total,
        "forward_passes": total.forward_passes,
        "wall_seconds": round(max(done.usage.wall_seconds for done in dones), 4),
        "saved": saved,
        "estimated": any(done.estimated for done in dones),
    }
    if explain:
        notes = [dict(done.notes) for done in dones]
        text = json.dumps(notes, default=str)
        told["notes"] = json.loads(text) if len(text) <= MOST_NOTES else [{"left_out": len(text)}]
    return told


def usage(dones: Sequence[Done], saved: dict[str, Any] | None, explain: bool) -> dict[str, Any]:
    """Return the ``usage`` of chat and text completions; see `account`."""
    counts = counted(dones)
    return {
        "prompt_tokens": counts["prompt"],
        "completion_tokens": counts["completion"],
        "total_tokens": counts["prompt"] + counts["completion"],
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": counts["reasoning"]},
        "thrifty": account(dones, saved, explain),
    }


def responses_usage(dones: Sequence[Done], saved: dict[str, Any] | None, explain: bool) -> dict[str, Any]:
    """Return the ``usage`` of the Responses API; see `account`."""
    counts = counted(dones)
    return {
        "input_tokens": counts["prompt"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": counts["completion"],
        "output_tokens_details": {"reasoning_tokens": counts["reasoning"]},
        "total_tokens": counts["prompt"] + counts["completion"],
        "thrifty": account(dones, saved, explain),
    }


def counted(dones: Sequence[Done]) -> dict[str, int]:
    """Return tokens of the prompts, each once however many samples it has, of the responses, and of their thinking."""
    return {
        "prompt": sum(done.prompt_tokens for done in dones),
        "completion": sum(done.completion_tokens for done in dones),
        "reasoning": sum(done.reasoning_tokens for done in dones),
    }
