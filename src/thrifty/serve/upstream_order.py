"""What a server is asked for one response, and what is kept in mind while it writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from thrifty.methods.base import Method
from thrifty.models.base import Settings, following
from thrifty.models.payload import CHARACTERS_PER_TOKEN, count_of
from thrifty.serve.engine import Channel
from thrifty.traces.think import CLOSERS, Splitter, ThinkFormat
from thrifty.traces.trace import Message

Prefill = Literal["vllm", "assistant", "none"]
PREFILLS: tuple[Prefill, ...] = ("vllm", "assistant", "none")
"""How a server is asked to continue a message: vLLM's and SGLang's fields, by the message alone, or not at all."""
ANSWER_NOW = "Stop thinking here. Give only the final answer to my question now, from the reasoning above."
MOST_QUOTED = 8000
"""Characters of the thinking that a second call quotes, those at its end."""

MOST_CHARACTERS = 8.0
"""That a token is taken to have."""


@dataclass
class Learned:
    """What the responses of a model on a server have shown.

    Attributes:
        opened: whether the prompt opens the think block and the server doesn't tell it apart; None while unknown.
        misplaced: whether what continues a closed block is told as reasoning.
        characters_per_token: of its texts, a running mean.
    """

    opened: bool | None = None
    misplaced: bool = False
    characters_per_token: float = CHARACTERS_PER_TOKEN
    _contrary: int = 0

    def see(self, opened: bool) -> None:
        """Take in what a response has shown of the prompt; what is known changes only after two in a row.

        One alone may be a text about think markers, or thinking that a model left out.
        """
        self._contrary = 0 if opened == self.opened else self._contrary + 1
        if self.opened is None or self._contrary > 1:
            self.opened, self._contrary = opened, 0

    def weigh(self, characters: int, tokens: int) -> None:
        """Take in how long a text was."""
        found = min(max(characters / tokens, 1.0), MOST_CHARACTERS)
        self.characters_per_token += 0.25 * (found - self.characters_per_token)


@dataclass(frozen=True)
class Order:
    """What a server is to write.

    Attributes:
        model: its name.
        messages: the conversation, empty where `prompt` is given.
        prompt: raw text to be continued, None for a conversation.
        fields: of the request beside model, messages and limits.
        limit: tokens of the response, None for as many as the server gives.
        reserve: of those, kept for the answer.
        budgets: tokens of thinking that each of some names allows.
        watches: by name, what is shown each line of the thinking and tells whether to close it.
        stop: strings that end the answer; a closing think marker among them ends the response with the thinking.
        loop_stop: whether a text that only repeats itself is ended.
        prefill: how the server is asked to continue a message.
        think: what the thinking is marked with there.
        opened: whether the prompt has opened a think block.
        thought: what stands in for the model's own thinking, None for nothing.
    """

    model: str
    messages: Sequence[Message]
    prompt: str | None
    fields: Mapping[str, Any]
    limit: int | None
    reserve: int
    think: ThinkFormat
    budgets: Mapping[str, int] = field(default_factory=dict)
    watches: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    loop_stop: bool = True
    prefill: Prefill = "none"
    opened: bool | None = None
    thought: str | None = None

    @property
    def thought_only(self) -> bool:
        """Whether the response ends with its thinking."""
        return any(closer in self.stop for closer in CLOSERS)

    @property
    def path(self) -> str:
        """Where the server takes it."""
        return "/chat/completions" if self.prompt is None else "/completions"

    @property
    def styles(self) -> list[str]:
        """The ways in which the server may be asked to answer behind the thinking, the best first."""
        if self.prompt is not None:
            return ["prefill"]
        return ["quote"] if self.prefill == "none" else ["prefill", "quote"]

    def body(self) -> dict[str, Any]:
        """Return the request for the whole response."""
        usage: dict[str, Any] = {"include_usage": True}
        if self.prefill == "vllm":
            usage["continuous_usage_stats"] = True
        body = {"model": self.model, "stream": True, "stream_options": usage, **self.fields}
        if self.prefill == "vllm":
            body["skip_special_tokens"] = False  # some vocabularies count the think markers among them
        if self.limit is not None:
            body["max_tokens"] = self.limit
        if self.prompt is not None:
            return {**body, "prompt": self.prompt}
        messages = self.messages if self.thought is None else following(self.messages, self.thought)
        return {**body, "messages": [dict(message) for message in messages]}

    def answer_body(self, style: str, thought: str, room: int | None) -> dict[str, Any]:
        """Return the request for the answer behind some thinking.

        Args:
            style: of `styles`.
            thought: the thinking, without markers.
            room: tokens of the answer, None for as many as the server gives.
        """
        body = replace(self, thought=None).body()
        if "reasoning_effort" in body:  # it has thought enough
            body["reasoning_effort"] = "low"
        if room is not None:
            body["max_tokens"] = room
        closed = f"{thought.rstrip()}{chr(10) * bool(thought)}{self.think.force_close}"
        if self.prompt is not None:
            return {**body, "prompt": self.prompt + ("" if self.opened else self.think.force_open) + closed}
        if self.prefill == "vllm":
            body["chat_template_kwargs"] = {"enable_thinking": False}
        if style == "prefill":
            if self.prefill == "vllm":
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            body["messages"].append({"role": "assistant", "content": self.think.force_open + closed})
            return body
        if thought.strip():
            body["messages"].append({"role": "assistant", "content": thought[-MOST_QUOTED:]})
        body["messages"].append({"role": "user", "content": ANSWER_NOW})
        return body


def steered(order: Order, settings: Settings, parts: Sequence[Method]) -> Order:
    """Return an order with the limits of some settings and of steering methods, and their watches anew.

    Args:
        order: what is to be written.
        settings: how.
        parts: the methods; those that do not steer over text change nothing.
    """
    budgets: dict[str, int] = {} if settings.thinking_budget is None else {"limit": settings.thinking_budget}
    watches: dict[str, Callable[[str], bool]] = {}
    for part in parts:
        steering = part.over_text()
        if steering is not None and steering.budget is not None:
            budgets[part.slug] = steering.budget
        if steering is not None and steering.watch is not None:
            watches[part.slug] = steering.watch()
    return replace(order, budgets=budgets, watches=watches, stop=settings.stop, loop_stop=settings.loop_stop)


@dataclass
class Call:
    """One request to a server, as far as its answer has come.

    Attributes:
        splitter: tells thinking from answer where the server does not.
        asked: characters of the prompt.
        held: text of which it is unknown whether it is thinking; None where that is known.
        behind: whether it goes on behind a closed block.
        teaches: whether it can yet show who opens think blocks.
        reasoned: whether the server tells the thinking apart.
        finish: the server's reason for the end.
        told: the server's usage.
        since: events with text since the server's count last grew.
        late: what was told as reasoning behind a closed block.
        characters: of thinking and answer.
        deltas: events with text of thinking and answer.
    """

    splitter: Splitter = field(default_factory=Splitter)
    asked: int = 0
    held: list[str] | None = None
    behind: bool = False
    teaches: bool = False
    reasoned: bool = False
    finish: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict)
    since: int = 0
    late: list[str] = field(default_factory=list)
    characters: dict[str, int] = field(default_factory=lambda: {"thinking": 0, "answer": 0})
    deltas: dict[str, int] = field(default_factory=lambda: {"thinking": 0, "answer": 0})

    def weigh(self, channel: Channel, text: str) -> None:
        """Count the characters of a text."""
        self.characters[channel] += len(text)

    @property
    def counted(self) -> int:
        """Tokens as far as the server has counted them; some count nothing until the end, and say 0."""
        return count_of(self.told, "completion_tokens") or 0

    def tell(self, usage: Mapping[str, Any]) -> None:
        """Take in what the server tells of the usage so far."""
        before, self.told = self.counted, usage
        if self.counted > before:
            self.since = 0

    def written(self, learned: Learned) -> int:
        """Return the tokens that were written: as the server counts them, else an estimate."""
        if self.counted:
            return self.counted + self.since
        characters = sum(self.characters.values()) + sum(map(len, self.held or ()))
        return max(sum(self.deltas.values()), round(characters / learned.characters_per_token))
