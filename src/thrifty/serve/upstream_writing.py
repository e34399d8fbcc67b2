"""One response that another server writes: watched while it comes, its thinking closed in time, its tokens counted.

Where the thinking has to end, the stream is hung up and the server is asked to go on from there: behind the closed
think block, where it lets a message of the assistant be continued, else in a second call that quotes the thinking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from thrifty.models.payload import account
from thrifty.serve.engine import Channel, Piece
from thrifty.serve.errors import Refusal
from thrifty.serve.shown import StopFilter
from thrifty.serve.upstream_client import Delta, Upstreams
from thrifty.serve.upstream_order import Call, Learned, Order
from thrifty.traces.repetition import repeats
from thrifty.traces.think import Splitter
from thrifty.traces.trace import Segment, Trace, Usage

MOST_EXTRA = 64
"""Tokens in which a model is to answer after all, where a server let the thinking have everything."""
_WORD = re.compile(r"\S{1,8}")
_RECENT = 4096
_CHECKED = 256
"""Characters at the end of a text among which repetitions are looked for, and between one look and the next."""
_ENDS = re.compile(r"\n|[.!?][\"')\]]*\s")


class Writing:
    """A response at work.

    Args:
        upstreams: which write it.
        order: what they are to write.
        emit: told what can be shown, in order.

    Attributes:
        finishing: whether its thinking is to be closed.
        begun: whether a server has begun to answer.
        usage: the account so far.
        prompt_tokens: of the first call.
        estimated: whether some of it had to be estimated.
    """

    def __init__(self, upstreams: Upstreams, order: Order, emit: Callable[[Piece], None]) -> None:
        self._upstreams, self.order, self._learned, self._emit = upstreams, order, Learned(), emit
        self.finishing = self.begun = self.estimated = False
        self.usage, self.prompt_tokens = Usage(), 0
        self._texts: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        self._phase: Channel = "answer"
        self._stop = StopFilter(())
        self._closed_by: str | None = "prompt"
        self._notes: dict[str, Any] = {}
        self._line = self._recent = ""
        self._unchecked = 0
        self._answering = self._leading = False
        self._near: str | None = None
        self._ended: str | None = None
        self._call = Call()

    async def write(self) -> Trace:
        """Write it.

        Returns:
            The record, without an identity.

        Raises:
            Refusal: it cannot be had.
        """
        order = self.order
        nothing = next((name for name, budget in order.budgets.items() if budget == 0), None)
        if nothing and order.thought is None and order.styles[0] == "prefill":
            reason = await self._answer(nothing)
        else:
            reason = await self._behind_thought() or await self._read(order.body())
            call, unanswered = self._call, not self._text("answer").strip()
            thought = order.thought is not None or self._text("thinking")
            # a raw prompt may well be gone on from with nothing
            lost = unanswered and reason != "stop string" and (thought or (reason != "stop" and order.prompt is None))
            alone = call.splitter.opened_by == "prompt" and self._closed_by is None and not call.reasoned
            if lost and reason == "stop" and alone:  # it had not thought at all
                self._closed_by = "prompt"
                self.usage.answer, self.usage.thinking = self.usage.answer + self.usage.thinking, 0
                self._show("answer", self._text("thinking"))
            elif lost and not order.thought_only:
                reason = await self._answer("limit" if reason in ("length", "stop") else reason)
        self._show("answer", "", last=True)
        return self._trace(reason)

    async def _behind_thought(self) -> str | None:
        """Have a given thought gone on from, where the server lets it; return why that ended, None if it does not."""
        thought = self.order.thought
        if thought:
            self._emit(Piece("thinking", thought))
        if thought is None or self.order.styles[0] != "prefill":
            return None
        try:
            return await self._read(self.order.answer_body("prefill", thought, None), behind=True)
        except Refusal as error:
            if not self._may_ask_otherwise(error):
                raise
            return None

    def _may_ask_otherwise(self, error: Refusal) -> bool:
        """Tell whether another form of a call may be answered; some servers fail on a prefill, others refuse it."""
        return error.status not in (429, 504) and not self._text("answer").strip()

    def _trace(self, reason: str) -> Trace:
        texts = [("thinking", self._text("thinking")), ("answer", self._text("answer"))]
        segments = [Segment("injected", "thinking", self.order.thought)] if self.order.thought else []
        segments += [Segment(phase, phase, text) for phase, text in texts if text]  # type: ignore[arg-type]  # literals
        reasons = {"length": "max_tokens", "limit": "max_tokens", "loop": "loop", "stop string": "stop"}
        return Trace(
            problem_id="", method="", sample=0, seed=0, segments=segments, stop_reason=reasons.get(reason, "eos"),
            closed_by=self._closed_by, usage=self.usage, events=self._notes,
        )  # fmt: skip

    def _text(self, channel: Channel) -> str:
        pieces = self._texts[channel]
        if len(pieces) > 1:
            pieces[:] = ["".join(pieces)]
        return pieces[0] if pieces else ""

    async def _answer(self, closed_by: str) -> str:
        """Have the thinking closed and the answer written; return why it ended."""
        self._closed_by, self._answering = closed_by, True
        reason = "length"
        for style in self.order.styles:
            spent = self.usage.generated
            room = None
            if self.order.limit is not None:
                room = max(self.order.limit - spent, min(self.order.reserve, MOST_EXTRA), 1)
            try:
                thought = "\n".join(filter(None, (self.order.thought, self._text("thinking"))))
                body = self.order.answer_body(style, thought, room)
                reason = await self._read(body, behind=style == "prefill")
            except Refusal as error:
                if style == self.order.styles[-1] or not self._may_ask_otherwise(error):
                    raise
                continue
            if self._text("answer").strip():
                self._notes["answered_by"] = style
                return reason
        lines = [line for line in self._text("thinking").splitlines() if line.strip()]
        if not lines or "response_format" in self.order.fields:
            raise Refusal(
                "the model thought for all the tokens that it had, and gave no answer: raise max_tokens, or lower "
                "reasoning_effort",
                502,
                "no_answer",
            )
        self._notes["answered_by"] = "last line of the thinking"
        self._stop = StopFilter(())  # this is all there is, even where the client wants to stop at it
        self._show("answer", lines[-1].strip())
        return "length"

    async def _read(self, body: Mapping[str, Any], behind: bool = False) -> str:
        """Read a stream until it ends or has to end; return why it did.

        Args:
            body: of the request.
            behind: whether it goes on behind a closed block, so that there is nothing but answer.
        """
        asked = sum(len(m["content"]) for m in body.get("messages", ())) + len(body.get("prompt", ""))
        call = self._call = Call(asked=asked, behind=behind)
        cut: str | None = None
        taken = complete = False
        try:
            async with self._upstreams.stream(self.order.path, body) as incoming:
                self.begun = taken = True
                self._begin(incoming.learned)
                async for delta in incoming:
                    self._take(delta)
                    if cut := self._due():
                        break
            if cut is None:
                self._rest()
                complete = True
        finally:
            if taken:
                self._count(complete)
        if not self._answering and call.splitter.closed_by != "prompt":
            unclosed = call.reasoned and not self._text("answer").strip()
            self._closed_by = None if unclosed else call.splitter.closed_by
        return cut or ("length" if call.finish == "length" else "stop")

    def _begin(self, learned: Learned) -> None:
        """Get ready for what the server that answers is known to send."""
        call, self._learned = self._call, learned
        known = self.order.opened is not None
        opened = self.order.opened if known else learned.opened
        if call.behind or self._answering:
            opened = bool(opened) and not call.behind and not known
        else:
            call.teaches = not known
        call.held = [] if opened is None else None  # until it shows who opens think blocks
        call.splitter = Splitter(bool(opened), markers=False, format=self.order.think)
        self._phase = "thinking" if opened else "answer"
        # no attempt is to answer for another one
        self._leading = call.behind or self._answering
        self._stop = StopFilter(() if self.order.thought_only else self.order.stop)

    def _take(self, delta: Delta) -> None:
        call = self._call
        call.finish = delta.finish or call.finish
        if delta.thought or delta.text:
            call.since += 1
        if delta.usage:
            call.tell(delta.usage)
        if delta.thought and call.behind:
            if self._learned.misplaced:
                self._show("answer", delta.thought)
            else:
                call.late.append(delta.thought)
                call.weigh("answer", delta.thought)
        elif delta.thought:
            self._resolve("answer")
            if not call.reasoned:
                call.reasoned, call.teaches = True, False
                call.splitter.reasoned()
                self._learned.opened = False
            self._show("thinking", delta.thought)
        if delta.text:
            if call.behind and self._learned.misplaced and delta.text.strip():
                self._learned.misplaced = False
            self._split(delta.text)
        if delta.thought or delta.text:
            call.deltas[self._phase] += 1

    def _split(self, text: str, last: bool = False) -> None:
        call, splitter = self._call, self._call.splitter
        for phase, piece in splitter.feed(text, last):
            if phase == "thinking":
                if splitter.opened_by == "model" or splitter.closed_by == "model":
                    self._teach(splitter.opened_by == "prompt")
                self._resolve("thinking" if splitter.opened_by == "prompt" else "answer")
                self._show("thinking", piece)
            elif call.held is not None:
                call.held.append(piece)
            else:
                self._show("answer", piece)
        if splitter.closed_by != "prompt" and not call.reasoned:
            self._phase = "thinking" if splitter.closed_by is None else "answer"

    def _resolve(self, channel: Channel) -> None:
        """Show what was held back, now that it is known what it is."""
        held, self._call.held = self._call.held, None
        if held is not None:
            if channel == "thinking":
                self._call.deltas.update(thinking=self._call.deltas["answer"], answer=0)
            self._show(channel, "".join(held))

    def _teach(self, opened: bool) -> None:
        if self._call.teaches:
            self._call.teaches = False
            self._learned.see(opened)

    def _rest(self) -> None:
        """Show what is left at the end of a stream."""
        call = self._call
        self._split("", last=True)
        if call.finish != "length" and any(call.deltas.values()):
            self._teach(opened=False)  # there was no marker
        self._resolve("answer")
        if call.late and not self._text("answer").strip():
            self._learned.misplaced |= call.finish == "stop"
            self._show("answer", "".join(call.late), weigh=False)
        self._show("answer", "", last=True)

    def _show(self, channel: Channel, text: str, last: bool = False, weigh: bool = True) -> None:
        if text and weigh:
            self._call.weigh(channel, text)
        if text:
            self._phase = channel
        if channel == "thinking" and not self._answering:
            text = self._until_due(text)
        if text:
            self._recent = (self._recent + text)[-_RECENT:]
            self._unchecked += len(text)
        if channel == "answer" and self._leading:
            text = text.lstrip()
            self._leading = not text
        if channel == "answer":
            text = self._stop.feed(text, last)
        if text:
            self._texts[channel].append(text)
            self._emit(Piece(channel, text))

    def _until_due(self, text: str) -> str:
        """Return what of a text still belongs to the thinking, and note why nothing behind it does."""
        if self._ended:
            return ""
        start = 0
        while self.order.watches and (end := text.find("\n", start) + 1):
            line, self._line, start = self._line + text[start:end], "", end
            for name, stops in self.order.watches.items() if line.strip() else ():
                if stops(line):
                    self._ended = name
                    return text[:end]
        self._line = (self._line + text[start:])[-_RECENT:]
        # near a budget the end of a sentence will do, so that the model need not stop in mid-word
        before = self._recent[-2:]
        if self._near and (match := _ENDS.search(before + text)):
            self._ended = self._near
            return (before + text)[len(before) : match.end()]
        return text

    def _due(self) -> str | None:
        """Return why a stream has to end here, None if it may go on."""
        order, call = self.order, self._call
        if self._stop.stopped:
            return "stop string"
        if order.loop_stop and self._unchecked >= _CHECKED:
            self._unchecked = 0
            if repeats(_WORD.findall(self._recent)):
                self._recent = ""
                return "loop"
        if self._phase != "thinking":
            closed = order.thought_only and (call.reasoned or call.splitter.closed_by == "model")
            return "stop" if closed and not call.behind else None
        if self._answering:
            return None  # what a second call thinks is bounded by its limit
        if self.finishing:
            return "finish"
        return self._over_budget() or self._ended

    def _over_budget(self) -> str | None:
        bounds = dict(self.order.budgets)
        if self.order.limit is not None:
            bounds["limit"] = min(self.order.limit - self.order.reserve, bounds.get("limit", self.order.limit))
        if not bounds:
            return None
        name, budget = min(bounds.items(), key=lambda bound: bound[1])
        spent = self._call.written(self._learned)
        self._near = name if spent >= budget - min(64, budget // 8) else None
        return name if spent >= budget else None

    def _count(self, complete: bool) -> None:
        """Add a call to the account."""
        call, learned = self._call, self._learned
        characters = call.characters
        told, written = call.told, call.written(learned)
        exact = call.counted > 0 and (complete or not call.since)
        if exact:
            written = call.counted
        elif sum(characters.values()):  # the count is not of all that came
            told = {name: count for name, count in told.items() if name != "completion_tokens"}
        if exact and complete and written <= sum(characters.values()):
            learned.weigh(sum(characters.values()), written)
        # servers that send each token by itself tell the shares of thinking and answer exactly
        single = exact and 0.8 * written <= sum(call.deltas.values()) <= written
        shares = call.deltas if single else characters
        usage, marks = account(told, call.asked, shares["thinking"], shares["answer"], written)
        self.estimated |= bool(marks)
        self._notes |= marks
        if not self._answering or not self.prompt_tokens:
            self.prompt_tokens = usage.prompt
        else:  # what was read once is read again
            usage.reread, usage.prompt = usage.prompt, 0
        self.usage = self.usage + usage
