"""The reasoning formats of the embedded models, each asked for by a system prompt."""

from __future__ import annotations

FORMAT_PROMPTS = {
    "direct": "Answer directly.",
    "short": "Think briefly.",
    "long": "Think at length.",
    "code": "Write a program.",
    "plan": "Plan first.",
}
"""``long`` is also what the embedded models write without a system prompt."""
