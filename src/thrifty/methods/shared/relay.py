"""Relays: responses of which one model writes the thoughts and another one the answer, handed on as text."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Role, account
from thrifty.decoding.loop import Plan, decode
from thrifty.decoding.row import Row
from thrifty.methods.base import Stage
from thrifty.methods.shared.helpers import StopBehindThinking, helper_model, think_block
from thrifty.models import load_model
from thrifty.models.base import Job, Model, Settings, TextModel
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import extract_answer
from thrifty.traces.think import CLOSERS, MARKERS
from thrifty.traces.trace import Message, Phase, Segment, Trace, Usage


class Answerer(TextModel):
    """A local model that works beside one on a server, and gives plain answers: its think block is written empty.

    Args:
        model: which answers.
    """

    gives: ClassVar[Need] = Need.TEXT

    def __init__(self, model: TorchModel) -> None:
        self.model, self.name = model, model.name

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        def plan(job: Job) -> Plan:
            prompt = self.model.render(job.problem.messages)
            return Plan(prompt, prefix=think_block(self.model, prompt, job.problem.question, ""))

        return decode(self.model, jobs, settings, plan, method)


def partner_model(name: str, main: TorchModel | TextModel) -> TorchModel | TextModel:
    """Return the model that answers behind another one's thoughts; beside one on a server it may be a local one.

    Args:
        name: as for `load_model`; empty for the main model itself.
        main: the model that thinks.

    Raises:
        ThriftyError: there is no such model, or it is on a server beside a local main model.
    """
    if isinstance(main, TorchModel) or name in ("", main.name):
        return helper_model(name, main)
    return main.partner(name) or _beside_a_server(name)


@functools.cache
def _beside_a_server(name: str) -> TextModel:
    partner = load_model(name)
    return Answerer(partner) if isinstance(partner, TorchModel) else cast(TextModel, partner)


def think_only(stage: Stage, prompt: str, messages: Sequence[Message], settings: Settings, limit: int) -> Call:
    """Return a call of the main model for its thinking alone.

    A local model with think blocks stops at the end of its block, which is closed at the limit at the latest. Any
    other one stops at a closing marker if it writes one, or is cut off at the limit; with neither, all that it writes
    counts as thinking.

    Args:
        stage: of the flow.
        prompt: rendered, empty for a model of text.
        messages: the conversation, for a model of text.
        settings: of the whole response.
        limit: tokens of the thinking.
    """
    model = stage.model
    if isinstance(model, TorchModel) and model.think.thinks:
        budget = limit if settings.thinking_budget is None else min(limit, settings.thinking_budget)
        bounded = settings.with_(thinking_budget=budget)
        return stage.call(prompt, controllers=[StopBehindThinking()], settings=bounded, messages=messages)
    room = max(1, min(limit, settings.max_tokens - settings.reserve))
    return stage.call(prompt, settings=settings.with_(max_tokens=room, stop=CLOSERS), messages=messages)


def thought_of(row: Row, *models: Model) -> str:
    """Return what a call for thinking has thought, without what would mean something to a model that reads it.

    Args:
        row: finished.
        models: whose special tokens are removed, beside all think markers.
    """
    trace = row.trace("")
    text = trace.thinking_text if trace.thinking_text.strip() else trace.text
    meaning = {*MARKERS}
    for model in models:
        if isinstance(model, TorchModel):
            tokenizer = getattr(model, "tokenizer", None)  # recordings have none
            added = getattr(tokenizer, "added_tokens_decoder", {}).values()
            # an added token that is not special may be as plain as a run of blanks
            meaning |= {*(token.content for token in added if token.special), model.think.open, model.think.close}
    while found := sorted(marker for marker in meaning if marker and marker in text):
        for marker in found:  # what is removed may leave another one behind
            text = text.replace(marker, "")
    return text.strip()


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """Return a conversation with a system prompt, which follows the one that is there already."""
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


@dataclass(frozen=True)
class Turn:
    """What one model wrote.

    Attributes:
        row: finished.
        role: ``sample`` for the main model, whose thinking it is; ``helper`` or ``probe`` for its partner.
        text: what the partner's part of the response is.
        phase: of that part.
    """

    row: Row
    role: Role
    text: str = ""
    phase: Phase = "answer"


def relay(turns: Sequence[Turn], method: str, by: str, events: dict[str, object]) -> Trace:
    """Return the trace of a response that two models wrote by turns.

    The main model's tokens count as what they are, thinking for the most part; the partner's as ``helper`` (or
    ``probe`` where the main model is its own partner), what it read included, so that segments of its texts have no
    token ids.

    Args:
        turns: in order; the first is the main model's, the last its partner's.
        method: the specification of the method.
        by: the slug of the method, which ends thinking that nobody else has ended.
        events: what to tell reports, beside what the main model's controllers noted.
    """
    trace = turns[0].row.trace(method)
    trace.segments, trace.usage, asides = [], Usage(), list[Segment]()
    noted: dict[str, object] = {}
    thinkers = 0
    for turn in turns:
        trace.usage += account(turn.row, turn.role)
        if turn.role != "sample":
            trace.segments.append(Segment("thinking" if turn.phase == "thinking" else "answer", turn.phase, turn.text))
            continue
        own = turn.row.trace(method)
        thinkers += 1
        noted |= own.events
        trace.closed_by = own.closed_by or by
        for segment in own.segments:
            if segment.kind in ("probe", "helper"):
                asides.append(segment)
            else:  # whatever it wrote, the answer is what its partner makes of it
                trace.segments.append(segment if segment.phase == "aside" else replace(segment, phase="thinking"))
    if thinkers > 1:
        noted.pop("budget", None)  # of one turn, not of the thinking as a whole
    trace.segments += asides
    trace.stop_reason = turns[-1].row.stopped or "stop"
    trace.answer = extract_answer(trace.answer_text)
    trace.events = {**noted, **events}
    return trace
