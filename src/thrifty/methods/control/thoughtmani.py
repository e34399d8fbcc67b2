"""ThoughtMani: a helper outlines the solution, and the outline stands in for the reasoner's thinking."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.helpers import (
    StopBehindThinking,
    ask,
    clean_thought,
    helper_model,
    helper_settings,
    reply_of,
    role_of,
    think_block,
)
from thrifty.methods.shared.relay import thought_of
from thrifty.models.base import Job, Model, Settings, TextModel
from thrifty.models.formats import FORMAT_PROMPTS, in_format
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import extract_answer
from thrifty.traces.segments import paragraphs
from thrifty.traces.think import CLOSERS, MARKERS, split_thinking
from thrifty.traces.trace import Message, Trace

DECLINE = "<STOP>"
GENERATOR_PROMPT = (
    "List, in as few words as possible, the key reasoning steps that lead to the solution. Do not calculate and do "
    f"not state the answer. If the problem is too complex for you to outline reliably, reply with {DECLINE} only."
)
THOUGHTS = ("outline", "reasoning", "empty", "none")
FALLBACKS = ("native", "empty", "ignore")


def decline_reason(text: str | None, tokens: int, cap: int) -> str | None:
    """Return why a helper's text is not used: ``stop``, ``empty`` or ``long``; None if it is.

    ``<STOP>`` within a longer text declines too.

    Args:
        text: what it wrote, None for nothing.
        tokens: as many it has.
        cap: as many it may have.
    """
    if text is None or not text.strip():
        return "empty"
    if DECLINE in text:
        return "stop"
    return "long" if tokens > cap else None


@dataclass(frozen=True)
class _Thought:
    text: str = ""
    declined: str | None = None
    tokens: int = 0
    rows: tuple[tuple[Row, Role], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ThoughtMani(FlowMethod):
    """Fill the think block with a helper's outline of the solution, or let the model think where the helper declines.

    ``events["thoughtmani"]`` tells of each response why the helper declined (``stop``, ``empty``, ``long``,
    ``always``, ``failed`` where its server did, or null where its thought was used), and how much the model wrote of
    its own: tokens, paragraphs and reopened think blocks. Responses whose thinking the outline ended count as ended by
    ``thoughtmani``. The account's floating-point operations weigh a helper's tokens by its size.

    A model on a server goes on from the filled block where the server lets a message be continued, else it answers a
    second message that quotes the thought. Its prompt holds the thought then, so that no limit of tokens is spent.

    Source: Thought Manipulation: External Thought Can Be Efficient for Large Reasoning Models, arXiv 2504.13626;
    card ``thoughtmani``. Follows the paper; no code was released. Reconstruction: the wording of the prompt, the
    decline test, greedy helpers and their limit. A thought that leaves no room for the answer counts as too long.

    Attributes:
        helper: name or folder of the model that writes the outline; beside a model on a server,
            ``http://HOST:PORT/v1#MODEL``. Empty for the main model itself, its think block left empty; its tokens then
            count as probes.
        thought: what stands in the block: ``outline``; ``reasoning``, the helper's own thinking (without a helper,
            that of the model itself); ``empty``; ``none`` as if the helper always declined, which is the plain model.
        format: ask for the helper's reasoning in a format of the embedded models, such as ``short``; empty for none.
        cap: tokens of the helper above which its text is not used.
        on_decline: what then: ``native`` thinking, an ``empty`` block, or ``ignore`` to use the text nevertheless.
        keep_answers: leave sentences in that state the answer. The method's intent is an outline without it.
    """

    slug: ClassVar[str] = "thoughtmani"
    needs: ClassVar[Need] = Need.TEXT
    streams: ClassVar[bool] = True
    helper: str = ""
    thought: str = "outline"
    format: str = ""
    cap: int = 512
    on_decline: str = "native"
    keep_answers: bool = False

    def __post_init__(self) -> None:
        if self.thought not in THOUGHTS:
            raise UnknownName("thought of thoughtmani", self.thought, THOUGHTS)
        if self.on_decline not in FALLBACKS:
            raise UnknownName("on_decline of thoughtmani", self.on_decline, FALLBACKS)
        if self.format and self.format not in FORMAT_PROMPTS:
            raise UnknownName("format of thoughtmani", self.format, FORMAT_PROMPTS)
        if self.format and self.thought != "reasoning":
            raise ThriftyError("thoughtmani: a format is one of reasoning; add thought=reasoning, or leave it out")
        if self.cap < 1:
            raise ThriftyError("thoughtmani: cap must be at least 1")

    def check(self, model: Model) -> None:
        super().check(model)
        helper = helper_model(self.helper, model)
        if self.thought == "reasoning" and isinstance(helper, TorchModel) and not helper.think.thinks:
            raise ThriftyError(f"thoughtmani: {helper.name!r} has no think blocks: leave out thought=reasoning")

    def flow(self, stage: Stage, job: Job) -> Flow:
        thought = yield from self._think(stage, job)
        given: str | None = None
        if thought.declined is None or (self.on_decline != "native" and thought.declined not in ("always", "failed")):
            given = "" if thought.declined and self.on_decline == "empty" else thought.text
        answer = self._over_text if isinstance(stage.model, TextModel) else self._behind_block
        return (yield from answer(stage, job, thought, given))

    def _over_text(self, stage: Stage, job: Job, thought: _Thought, given: str | None) -> Flow:
        (row,) = yield [stage.call(messages=job.problem.messages, thought=given, stream=0)]
        response = row.trace(stage.method)
        own = "".join(segment.text for segment in response.segments if segment.kind in ("thinking", "answer"))
        reopened = given is not None and any(segment.kind == "thinking" for segment in response.segments)
        trace = conclude(row, stage.method, thought.rows, {self.slug: _told(thought, row, own, int(reopened))})
        if given is not None and trace.closed_by == "prompt":
            trace.closed_by = self.slug
        return trace

    def _behind_block(self, stage: Stage, job: Job, thought: _Thought, given: str | None) -> Flow:
        prompt, prefix = stage.render(job), ""
        if given is not None:
            prefix = think_block(stage.model, prompt, job.problem.question, given)
            if self._too_long(stage, prompt, prefix):
                thought, prefix = replace(thought, declined="long"), ""
        (row,) = yield [stage.call(prompt, prefix=prefix, stream=0)]
        own = row.text(len(stage.model.encode(prefix)) if prefix else 0)
        reopened = row.phases.blocks - 1 if prefix else 0
        trace = conclude(row, stage.method, thought.rows, {self.slug: _told(thought, row, own, reopened)})
        if prefix and not reopened:
            trace.closed_by = self.slug
        elif prefix and trace.closed_by is not None:
            _answer_behind_last_block(trace)
        return trace

    def _think(self, stage: Stage, job: Job) -> Generator[Sequence[Call], list[Row], _Thought]:
        if self.thought in ("none", "empty"):
            return _Thought(declined="always" if self.thought == "none" else None)
        model = stage.model
        helper = helper_model(self.helper, model)
        closing = model.close_length if isinstance(model, TorchModel) else 0
        cap = max(1, min(self.cap, stage.settings.max_tokens - stage.settings.reserve - closing))
        settings = helper_settings(stage.settings, cap)
        *before, question = job.problem.messages
        if self.thought == "outline":
            outline = {**question, "content": f"{GENERATOR_PROMPT}\n\n{question['content']}"}
            (row,) = yield [replace(ask(helper, [*before, outline], settings), stream=1, optional=True)]
            text = reply_of(row)
        else:
            messages = in_format(job.problem.messages, self.format) if self.format else job.problem.messages
            (row,) = yield [replace(_reasoning(helper, messages, settings), stream=1, optional=True)]
            if isinstance(helper, TorchModel):
                text, _ = split_thinking(row.text(), helper.think, opened=row.begun.phase == "thinking")
            else:
                text = thought_of(row, helper)
        tokens, rows = row.usage.thinking + row.usage.answer, ((row, role_of(helper, model)),)
        if row.stopped == "failed":
            return _Thought("", "failed", tokens, rows)
        markers = set(MARKERS)
        if isinstance(model, TorchModel):
            special = [t.content for t in getattr(model.tokenizer, "added_tokens_decoder", {}).values()]
            markers = {m for m in (*special, model.think.open, model.think.close) if m}
        if self.on_decline == "ignore":
            markers.add(DECLINE)
        cleaned = clean_thought(text, markers, self.keep_answers)
        # what did not come to an end of its own has reached the cap, the context or a loop
        unfinished = row.stopped not in ("eos", "thought", "stop") or row.trace("").closed_by == "loop"
        reason = decline_reason(cleaned, cap + 1 if unfinished else tokens, cap)
        return _Thought(cleaned, reason, tokens, rows)

    @staticmethod
    def _too_long(stage: Stage, prompt: str, prefix: str) -> bool:
        """Tell whether a beginning leaves less than the reserve for the answer; an empty block never does."""
        model, settings = stage.model, stage.settings
        room = min(settings.max_tokens, model.context_length - len(model.encode_prompt(prompt))) - settings.reserve
        return len(model.encode(prefix)) > max(room, model.close_length + len(model.encode(model.think.force_open)))


def _reasoning(helper: TorchModel | TextModel, messages: Sequence[Message], settings: Settings) -> Call:
    """Return a call for a helper's thinking alone."""
    if isinstance(helper, TorchModel):
        return Call(helper.render(messages), [StopBehindThinking()], settings.with_(answer_reserve=0), helper)
    return Call(settings=settings.with_(stop=CLOSERS), model=helper, messages=messages)


def _told(thought: _Thought, row: Row, own: str, reopened: int) -> dict[str, object]:
    """Return what reports are told of a response, of which the main model has written a text of its own."""
    return {
        "declined": thought.declined,
        "helper_tokens": thought.tokens,
        "own_tokens": row.usage.thinking + row.usage.answer,
        "own_paragraphs": sum(not span.of(own).isspace() for span in paragraphs(own)),
        "reopened": reopened,
    }


def _answer_behind_last_block(trace: Trace) -> None:
    """Make what the model wrote before it reopened its thinking part of that, if an answer follows the last block."""
    response = [s for s in trace.segments if s.kind not in ("probe", "helper")]
    last = max(i for i, segment in enumerate(response) if segment.phase == "thinking")
    if any(segment.text.strip() for segment in response[last + 1 :]):
        for i, segment in enumerate(response[:last]):
            if segment.phase == "answer":
                trace.segments[i] = replace(segment, phase="thinking")
        trace.answer = extract_answer(trace.answer_text)
