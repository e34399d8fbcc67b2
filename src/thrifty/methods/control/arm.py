"""ARM: four reasoning formats, chosen by the model, by the user, or by the agreement of the cheap ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from thrifty import sandbox
from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, Role, conclude
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.models.base import Job, Model
from thrifty.models.formats import FORMAT_TAGS, format_of, in_format
from thrifty.models.torch import TorchModel
from thrifty.traces.answers import extract_answer
from thrifty.traces.equality import same_answer
from thrifty.traces.trace import Segment, Trace

CHEAP = ("direct", "short", "code")
MODES = ("adaptive", *FORMAT_TAGS, "consensus")
LONGEST_OUTPUT = 300
"""Characters of a last line that can be an answer."""


@dataclass(frozen=True)
class Reply:
    """What came of one format.

    Attributes:
        row: the response.
        stated: the answer that its text states.
        output: the last line that its program printed.
        status: how its program ended, None if none was run.
    """

    row: Row
    stated: str | None
    output: str | None = None
    status: str | None = None

    @property
    def answer(self) -> str | None:
        """The program's, else the one stated."""
        return self.output or self.stated


def program_of(text: str) -> str | None:
    """Return the program of a reply: what stands in ``<CODE>`` tags, or its last closed fenced block.

    Args:
        text: the reply.
    """
    inside = _between(text, "<CODE>", "</CODE>")
    code = text if inside is None else inside
    blocks = code.split("```")[1:-1:2]
    if blocks:
        return blocks[-1].partition("\n")[2]
    return inside


def stated_answer(text: str, format: str = "long") -> str | None:
    """Return the answer that a reply states: what stands in ``<ANSWER>`` tags, else what is stated anywhere.

    Args:
        text: the reply, without its thinking.
        format: its format; what stands in a program of ``code`` states nothing.
    """
    tagged = _between(text, "<ANSWER>", "</ANSWER>")
    if tagged is not None:
        return extract_answer(tagged) or tagged.strip() or None
    if format == "code":
        text = text.partition("</CODE>")[2] if "<CODE>" in text else "\n".join(text.split("```")[::2])
    return extract_answer(text)


def consensus(answers: Sequence[str | None]) -> bool:
    """Tell whether there are answers and all are the same, each to the next: 4, 4, 4.0 are; 4, 4, None are not."""
    known = [answer for answer in answers if answer is not None]
    if not known or len(known) < len(answers):
        return False
    return all(same_answer(a, b) for a, b in pairwise(known))


@dataclass(frozen=True, kw_only=True)
class ARM(FlowMethod):
    """Answer in one of four formats: direct, short, code or long; long only where the cheap ones disagree.

    - ``adaptive``: the model's own choice. On a model that was never taught to choose this is plain sampling.
    - ``direct``, ``short``, ``code``, ``long``: instruction-guided, in the format named.
    - ``consensus``: direct, short and code; if all three answers are the same that is the answer, else long.
      All calls are in the account.

    Source: ARM: Adaptive Reasoning Model, arXiv 2505.20258; card ``arm``. Follows paper and release, which never run
    the program: its output is the model's emulation (``run_code=false``). Running it, with the model's own answer where
    it fails, is the paper's ablation, and what models need that write programs without emulating them.

    Attributes:
        mode: the inference mode.
        formats: how a format is asked for: ``tags``, the response begins with its tag (``<ANSWER>``, ``<COT>``,
            ``<CODE>``, ``<LONG_COT>``) as in the release; ``prompts``, by the embedded models' system prompts; ``auto``
            for tags if the model has no think blocks, or has the tags in its vocabulary, else prompts.
        run_code: run the program of a reply in format ``code`` in the sandbox (`thrifty.sandbox` says what it holds);
            the last line that it prints is then the answer.
        seconds: limit on a program.
    """

    slug: ClassVar[str] = "arm"
    needs: ClassVar[Need] = Need.SAMPLING
    thinks: ClassVar[bool] = False
    mode: str = "adaptive"
    formats: str = "auto"
    run_code: bool = True
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ThriftyError(f"arm: mode is one of {', '.join(MODES)}")
        if self.formats not in ("auto", "tags", "prompts"):
            raise ThriftyError("arm: formats is one of auto, tags, prompts")
        if self.seconds <= 0:
            raise ThriftyError("arm: seconds must be positive")

    def check(self, model: Model) -> None:
        super().check(model)
        if self.run_code and self.mode in ("code", "consensus"):
            try:
                sandbox.isolation()
            except ThriftyError as error:
                raise ThriftyError(f"arm runs programs: {error}, or choose run_code=false") from error

    def flow(self, stage: Stage, job: Job) -> Flow:
        replies: dict[str, Reply] = {}
        if self.mode == "adaptive":
            (row,) = yield [stage.call(stage.render(job))]
            format = format_of(row.text()) or "unknown"
            return self._conclude(stage, {format: self._read(row, format)})
        for asked in (CHEAP, ("long",)) if self.mode == "consensus" else ((self.mode,),):
            rows = yield [self._call(stage, job, format) for format in asked]
            replies |= {format: self._read(row, format) for format, row in zip(asked, rows, strict=True)}
            if consensus([reply.answer for reply in replies.values()]):
                break
        return self._conclude(stage, replies)

    def _call(self, stage: Stage, job: Job, format: str) -> Call:
        if self.tagged(stage.model):
            return stage.call(stage.render(job), prefix=f"{FORMAT_TAGS[format]}\n")
        return stage.call(stage.render(job, in_format(job.problem.messages, format)))

    def tagged(self, model: TorchModel) -> bool:
        """Tell whether this model's formats are asked for by tags."""
        if self.formats == "auto":
            return not model.think.thinks or len(model.encode(FORMAT_TAGS["long"])) == 1
        return self.formats == "tags"

    def _read(self, row: Row, format: str) -> Reply:
        trace = row.trace("")
        if trace.closed_by is None:
            return Reply(row, None)
        stated = stated_answer(trace.answer_text, format)
        program = program_of(trace.answer_text) if self.run_code and format == "code" else None
        if program is None:
            return Reply(row, stated)
        try:
            result = sandbox.run(program, sandbox.Limits(seconds=self.seconds, cpu_seconds=self.seconds))
        except ThriftyError:  # no sandbox here: `check` has refused the modes that are about programs
            return Reply(row, stated, status="unavailable")
        lines = result.stdout.strip().splitlines()
        if result.status != "ok" or not lines or len(lines[-1]) > LONGEST_OUTPUT:
            return Reply(row, stated, status=result.status if result.status != "ok" else "no output")
        return Reply(row, stated, lines[-1].strip(), "ok")

    def _conclude(self, stage: Stage, replies: Mapping[str, Reply]) -> Trace:
        # in agreement the first stands for all, else the long one, which came last
        agreed = len(replies) == len(CHEAP)
        format, chosen = list(replies.items())[0 if agreed else -1]
        others: list[tuple[Row, Role]] = [(r.row, "sample") for r in replies.values() if r is not chosen]
        events = {
            "mode": self.mode,
            "format": format,
            "answers": {name: reply.answer for name, reply in replies.items()},
            "programs": dict(Counter(reply.status for reply in replies.values() if reply.status)),
        }
        trace = conclude(chosen.row, stage.method, others, {"arm": events})
        trace.answer = chosen.answer
        if chosen.answer is not None and chosen.answer != extract_answer(trace.answer_text):
            _state(trace, chosen.answer)
        return trace


def _state(trace: Trace, answer: str) -> None:
    """Write an answer under a response that does not state it so; no model reads it, and it costs nothing."""
    box = f"\\boxed{{{answer}}}" if extract_answer(f"\\boxed{{{answer}}}") == answer else answer
    end = sum(segment.kind not in ("probe", "helper") for segment in trace.segments)
    trace.segments.insert(end, Segment("injected", "answer", f"\n\n**Final Answer:** {box}"))


def _between(text: str, opening: str, closing: str) -> str | None:
    """Return what follows the last opening tag, up to its closing tag or the text's end; None without the tag."""
    _, tag, rest = text.rpartition(opening)
    return rest.partition(closing)[0] if tag else None
