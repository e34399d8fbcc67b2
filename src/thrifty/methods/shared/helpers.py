"""Models beside the main one: helpers, planners and judges, asked for a text rather than for a thought."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import TypeVar

from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Call, Role
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.models import load_model
from thrifty.models.base import Model, Settings, TextModel
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import boxed, extract_candidates
from thrifty.traces.segments import sentences
from thrifty.traces.trace import Message

M = TypeVar("M", bound=Model)


class StopBehindThinking(Controller):
    """End a response where its thinking ends: only the thought is wanted."""

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            if row.closed_by is not None:
                row.stop("thought")


@functools.cache
def _loaded(name: str, device: str | None, dtype: str | None) -> Model:
    return load_model(name, device=device, dtype=dtype)


def helper_model(name: str, main: M) -> M:
    """Return a helper, loaded when it is first asked for and once in a process.

    It computes where and in the precision in which the main model does.

    Args:
        name: as for `load_model`; empty for the main model itself.
        main: the main model.

    Raises:
        ThriftyError: there is no such model, or it runs elsewhere: beside a local model a helper is local, beside
            a server's model another server's.
    """
    if name in ("", main.name):
        return main
    if isinstance(main, TextModel) and (partner := main.partner(name)) is not None:
        return partner  # type: ignore[return-value]  # of the kind of the main model
    local = isinstance(main, TorchModel)
    if isinstance(main, TorchModel):
        helper = _loaded(name, str(main.device), str(main.dtype).removeprefix("torch."))
    else:
        helper = _loaded(name, None, None)
    if isinstance(helper, TorchModel) != local:
        kind = "local" if local else "on a server"
        raise ThriftyError(f"{main.name!r} is {kind}, so its helper must be too: {name!r} is not")
    return helper  # type: ignore[return-value]  # of the kind of the main model, as checked above


def role_of(helper: Model, main: Model) -> Role:
    """Return as what a helper's tokens count: as side streams of the main model, or as another model's."""
    return "probe" if helper is main else "helper"


def helper_settings(settings: Settings, max_tokens: int, **changes: float) -> Settings:
    """Return the settings of a side stream: nothing of the run's that is meant for the response.

    Args:
        settings: of the run.
        max_tokens: limit of the side stream.
        **changes: further settings; greedy without a temperature.
    """
    plain = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **changes}
    return settings.with_(max_tokens=max_tokens, thinking_budget=None, answer_reserve=None, stop=(), **plain)


def clean_thought(text: str, markers: Collection[str], keep_answers: bool = False) -> str:
    """Return a helper's text as it may stand within a think block.

    Args:
        text: what it wrote.
        markers: texts that would end the block or the turn; they are removed.
        keep_answers: leave sentences in that state the answer.
    """
    while any(marker in text for marker in markers):  # what is removed may leave another marker behind
        for marker in markers:
            text = text.replace(marker, "")
    if not keep_answers:
        spans = [span.of(text) for span in sentences(text)]
        text = "".join(part for part in spans if not boxed(part) and extract_candidates(part) is None)
    return text.strip()


def think_block(model: TorchModel, prompt: str, question: str, thought: str) -> str:
    r"""Return the text that makes a thought the whole of a response's thinking.

    Behind a prompt that ends in ``<think>\n``, the thought ``a;b`` becomes ``a;b\n</think>\n\n``; behind one that
    leaves the block to the model, ``<think>\na;b\n</think>\n\n``.

    Args:
        model: which responds.
        prompt: rendered.
        question: the last text in it that may mention think markers without meaning them.
        thought: what to put there; empty for an empty block.

    Returns:
        The beginning of the response, empty for a model without think blocks.
    """
    think = model.think
    if not think.thinks:
        return ""
    question = question.strip()
    tail = prompt[prompt.rfind(question) + len(question) :] if question in prompt else prompt
    opener = "" if model.tracker.start(tail).phase == "thinking" else think.force_open
    thought = thought.strip()
    return f"{opener}{thought}{chr(10) * bool(thought)}{think.force_close}"


def ask(model: TorchModel | TextModel, messages: Sequence[Message], settings: Settings) -> Call:
    """Return a call for a plain answer, which no method steers: the think block is written empty.

    A model on a server thinks as it pleases.

    Args:
        model: which is asked.
        messages: the conversation.
        settings: how to generate; see `helper_settings`.
    """
    if not isinstance(model, TorchModel):
        return Call(settings=settings, model=model, messages=messages)
    prompt = model.render(messages)
    return Call(prompt, settings=settings, model=model, prefix=think_block(model, prompt, messages[-1]["content"], ""))


def reply_of(row: Row) -> str:
    """Return what a side stream answered, without its thinking."""
    return row.trace("").answer_text.strip()
