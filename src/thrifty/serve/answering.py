"""The responses of one request, on their way from the engine to the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from thrifty.errors import ThriftyError
from thrifty.serve.engine import CANCELLED, Ask, Channel, Done, Engine, Event, Piece, Stream, TokenLogprob
from thrifty.serve.errors import Refusal, refusal


@dataclass
class Answer:
    """One response as far as it has come.

    Attributes:
        runs: of text of one channel, each in pieces.
        logprobs: of the tokens of the answer, where they were asked for.
        done: its end, once that has come.
    """

    runs: list[tuple[Channel, list[str]]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: Done | None = None

    def text(self, channel: Channel) -> str:
        """Return all that belongs to the reasoning, or to the answer."""
        return "".join(piece for of, pieces in self.runs if of == channel for piece in pieces)

    @property
    def end(self) -> Done:
        """Its end; only for a response that has come to it."""
        assert self.done is not None, "a response has an end only when it is complete"
        return self.done

    def take(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, Done):
            self.done = event
            return
        if not self.runs or self.runs[-1][0] != event.channel:
            self.runs.append((event.channel, []))
        self.runs[-1][1].append(event.text)
        self.logprobs += event.logprobs


class Answering:
    """The streams of one request, read side by side.

    Args:
        asks: what is asked.
        streams: the engine's answers to them.
        observe: told the end of each response, also of one that was cancelled.

    Attributes:
        answers: as far as they have come.
        first_piece: when the first bit of text came, by the clock of `time.monotonic`; None before.
    """

    def __init__(
        self, asks: Sequence[Ask], streams: Sequence[Stream], observe: Callable[[Ask, Done], None] | None = None
    ) -> None:
        self.asks, self._streams, self._observe = asks, streams, observe
        self.answers = [Answer() for _ in asks]
        self.first_piece: float | None = None
        self._broken: set[int] = set()
        self._cut: Refusal | None = None

    @classmethod
    async def open(
        cls, engine: Engine, asks: Sequence[Ask], observe: Callable[[Ask, Done], None] | None = None
    ) -> Answering:
        """Hand a request to the engine.

        Args:
            engine: which answers.
            asks: all or none of them are taken.
            observe: see `Answering`.

        Raises:
            Refusal: the engine does not take it.
        """
        begun: dict[int, Stream] = {}

        async def begin(first: int) -> None:
            """Begin the samples of one prompt."""
            for index in range(first, len(asks)):
                if index > first and not asks[index].sample:
                    return
                begun[index] = await engine.start(asks[index])

        prompts = [asyncio.ensure_future(begin(i)) for i, ask in enumerate(asks) if not (i and ask.sample)]
        try:
            await asyncio.gather(*prompts)
        except BaseException as error:
            for prompt in prompts:
                prompt.cancel()
            # what they have taken counts, although the request is not answered
            for found in await asyncio.gather(*prompts, return_exceptions=True):
                if isinstance(found, Refusal) and found.done is not None and observe is not None:
                    observe(asks[0], found.done)
            rest = cls([asks[index] for index in begun], list(begun.values()), observe)
            rest.cancel()
            await rest.settle()
            if not isinstance(error, ThriftyError):
                raise
            raise refusal(error) from error
        return cls(asks, [begun[index] for index in range(len(asks))], observe)

    def cancel(self) -> None:
        """Stop everything: the client is gone."""
        for stream in self._streams:
            stream.cancel()

    def cut(self, error: Refusal) -> None:
        """End all responses where they stand, as a limit of tokens would.

        Args:
            error: its code is the exit reason of those that have an answer by now; the client is told it where one
                has none, for no answer comes back empty.
        """
        self._cut = error
        self.cancel()

    @property
    def waiting(self) -> int:
        """How many responses wait for their turn."""
        return sum(answer.done is None and not s.begun for s, answer in zip(self._streams, self.answers, strict=True))

    @property
    def running(self) -> int:
        """How many responses are being written."""
        return sum(answer.done is None for answer in self.answers) - self.waiting

    @property
    def begun(self) -> bool:
        """Whether any response has begun to be written."""
        return self.waiting < len(self.answers)

    def finish(self) -> None:
        """Close the thinking of all responses."""
        for stream in self._streams:
            stream.finish()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield the events of all responses as they come, with the index of each response.

        Raises:
            Refusal: one of them broke off; the others are cancelled.
        """
        if len(self._streams) == 1:  # no need to merge
            async for event in self._read(0):
                yield 0, event
            return
        merged: asyncio.Queue[tuple[int, Event] | BaseException | None] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(index, merged)) for index in range(len(self._streams))]
        try:
            missing = len(pumps)
            while missing:
                found = await merged.get()
                if found is None:
                    missing -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
        finally:
            for pump in pumps:
                pump.cancel()
            if missing:
                self.cancel()

    async def _pump(self, index: int, merged: asyncio.Queue[tuple[int, Event] | BaseException | None]) -> None:
        try:
            async for event in self._read(index):
                merged.put_nowait((index, event))
            merged.put_nowait(None)
        except Exception as error:
            merged.put_nowait(error)

    async def _read(self, index: int) -> AsyncIterator[Event]:
        try:
            async for event in self._streams[index]:
                if isinstance(event, Piece) and self.first_piece is None:
                    self.first_piece = time.monotonic()
                cut = self._cut if isinstance(event, Done) and event.exit_reason == CANCELLED else None
                if cut is not None and isinstance(event, Done):
                    event = replace(event, finish="length", exit_reason=cut.code or CANCELLED)
                self.answers[index].take(event)
                if isinstance(event, Done) and self._observe is not None:
                    self._observe(self.asks[index], event)
                if cut is not None and not self.answers[index].text("answer").strip():
                    raise cut
                yield event
        except Exception as error:
            self._broken.add(index)
            if isinstance(error, Refusal) and error.done is not None and self._observe is not None:
                self._observe(self.asks[index], error.done)
            raise

    async def collect(self) -> list[Answer]:
        """Return the complete responses.

        Raises:
            Refusal: one of them broke off.
        """
        async for _ in self.events():
            pass
        return self.answers

    async def settle(self) -> None:
        """Read on to the ends of cancelled responses, whose tokens count as well."""
        for index, answer in enumerate(self.answers):
            if answer.done is None and index not in self._broken:
                with suppress(Refusal):
                    async for _ in self._read(index):
                        pass
