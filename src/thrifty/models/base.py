"""What every backend offers: a name, the access it gives, and text for messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from thrifty.catalogue import Need
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.traces.trace import Message, Problem, Trace

FOLLOW = "Carry out these steps without thinking them over again, and answer my question."
ANSWER_AT_ONCE = "Answer at once, without thinking first."


@dataclass(frozen=True)
class Settings:
    """How to generate; the same for every method and every backend.

    Attributes:
        max_tokens: limit on the response in tokens: thinking, answer and injected together.
        thinking_budget: limit on the thinking in tokens over all think blocks, None for no limit of its own.
        answer_reserve: tokens of `max_tokens` kept for the answer: the thinking is closed in time so that
            an answer never comes back empty. None for a quarter of `max_tokens`, at most 256.
        temperature: 0 is greedy.
        top_k: sample among the k likeliest tokens, 0 for all.
        top_p: sample among the likeliest tokens that hold this much probability.
        min_p: drop tokens less likely than this fraction of the likeliest.
        seed: of the run; each row derives its own stream from it.
        samples: responses for each problem.
        batch_size: rows decoded together, or requests in flight. Results do not depend on it.
        loop_stop: close the thinking (or end the answer) when it only repeats itself.
        stop: strings that end the answer; inside the thinking they mean nothing.
    """

    max_tokens: int = 1024
    thinking_budget: int | None = None
    answer_reserve: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    samples: int = 1
    batch_size: int = 16
    loop_stop: bool = True
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "thinking_budget must be at least 0": self.thinking_budget is None or self.thinking_budget >= 0,
            "answer_reserve must be between 0 and max_tokens": self.answer_reserve is None
            or 0 <= self.answer_reserve <= self.max_tokens,
            "temperature must be between 0 and 100": 0 <= self.temperature <= 100,
            "top_k must be at least 0 (0 means all)": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "min_p must be at least 0 and below 1": 0 <= self.min_p < 1,
            "samples must be at least 1": self.samples >= 1,
            "batch_size must be at least 1": self.batch_size >= 1,
        }
        for message, good in checks.items():
            if not good:
                raise ThriftyError(message)

    @property
    def reserve(self) -> int:
        """Tokens kept for the answer."""
        if self.answer_reserve is None:
            return min(256, self.max_tokens // 4)
        return self.answer_reserve

    def with_(self, **changes: object) -> Self:
        """Return a copy with some values changed."""
        return replace(self, **changes)  # type: ignore[arg-type]  # checked in __post_init__ and by the dataclass


@dataclass(frozen=True)
class Job:
    """One response to generate.

    Attributes:
        problem: what is asked.
        sample: index among the samples of the problem.
        thought: what stands in for the model's own thinking, for a model that `TextModel.follows`; None for nothing.
        optional: whether its caller can do without it: where a server fails, the trace is then empty and its stop
            reason ``failed``.
    """

    problem: Problem
    sample: int = 0
    thought: str | None = None
    optional: bool = False


def jobs_for(problems: Iterable[Problem], samples: int) -> Iterator[Job]:
    """Yield a job for each sample of each problem, in order, lazily."""
    for problem in problems:
        for sample in range(samples):
            yield Job(problem, sample)


class Model(ABC):
    """A loaded backend.

    Attributes:
        name: as the user would load it again.
        gives: the access it gives.
    """

    gives: ClassVar[Need]
    name: str

    def require(self, needs: Need, method: str) -> None:
        """Refuse a method whose needs this model does not meet.

        Raises:
            MissingAccess: names what is missing and where it can be had.
        """
        missing = needs & ~self.gives
        if missing:
            raise MissingAccess(
                f"method {method!r} needs {', '.join(missing.names)}, which {self.name!r} does not give "
                f"(it gives {', '.join(self.gives.names)}). Load the weights here, as in --model FOLDER, "
                "or see `thrifty methods` for methods that need only text."
            )

    def close(self) -> None:  # noqa: B027  # most backends hold nothing that memory management does not free
        """Release what the model holds; it can't be used afterwards."""


class TextModel(Model):
    """A backend that answers messages as a whole, where no step can be interfered with.

    Attributes:
        follows: whether it takes the `Job.thought`.
    """

    follows: ClassVar[bool] = False

    def partner(self, name: str) -> TextModel | None:
        """Return another server's model that works beside this one, None where it is to be loaded by its name.

        Args:
            name: as the user wrote it.

        Raises:
            ThriftyError: it cannot be had.
        """
        return None

    @abstractmethod
    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        """Generate plainly: no method interferes. Traces come as they finish, in no particular order.

        Args:
            jobs: what to generate; read lazily, `settings.batch_size` at a time.
            settings: how to.
            method: the name that the traces carry.
        """


def following(messages: Sequence[Message], thought: str) -> list[Message]:
    """Return a conversation that asks for an answer by a thought, for a server that continues nothing.

    Args:
        messages: the conversation.
        thought: of somebody else, without markers; empty for none at all.
    """
    if thought.strip():
        return [*messages, {"role": "assistant", "content": thought}, {"role": "user", "content": FOLLOW}]
    *before, question = messages
    return [*before, {**question, "content": f"{question['content']}\n\n{ANSWER_AT_ONCE}"}]


def prompt_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return messages as plain dictionaries, which chat templates and JSON need."""
    return [dict(m) for m in messages]
