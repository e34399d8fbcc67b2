"""Responses grown step by step: rows go on from the caches of others, a verifier scores them, one is chosen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.controller import Batch, Controller
from thrifty.decoding.flow import Call, account
from thrifty.decoding.row import Row
from thrifty.decoding.verifier import EMBEDDED, Verifier
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.models.base import Job, Model, Settings
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Segment, Trace

STEPS = ("paragraph", "line", "response")
"""Where a step ends: at a blank line, at a line that is not blank, or with the response."""
RUN = -1.0
"""The temperature that stands for that of the run."""
_LIMITS = ("max_tokens", "context", "loop")


class StepEnd(Controller):
    """Stop rows at the end of a step.

    Args:
        step: one of `STEPS`.
        tokens: limit on a step.
    """

    def __init__(self, step: str, tokens: int) -> None:
        self.step, self.tokens = step, tokens

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.state[self] = len(row.ids)

    def after_token(self, rows: Sequence[Row], batch: Batch) -> None:
        if self.step == "response":
            return
        for row in rows:
            start = row.state[self]
            ended = row.paragraph_ended if self.step == "paragraph" else row.line_ended
            # a row that ends, or has to write what a method forces, is not cut short
            goes_on = row.ids[-1] not in row.model.eos_ids and not row.forced and row.closing is None
            if goes_on and (len(row.ids) - start >= self.tokens or (ended and row.text(start).strip())):
                row.stop("step")


class _Read(Controller):
    """Read the prompt and write nothing."""

    def begin(self, rows: Sequence[Row], batch: Batch) -> None:
        for row in rows:
            row.stop("step")


_READ = _Read()


@dataclass(eq=False)
class Node:
    """A partial response.

    Attributes:
        row: which wrote its newest step.
        stream: the random stream that its first child goes on with.
        parent: what it went on from, None for the prompt.
        children: how many went on from it.
    """

    row: Row
    stream: int
    parent: Node | None = None
    children: int = 0

    @property
    def open(self) -> bool:
        """Whether it can be gone on from."""
        return self.row.stopped == "step"

    @property
    def ended(self) -> bool:
        """Whether the response is complete, and not merely cut off by a limit."""
        return not self.open and self.row.stopped not in _LIMITS

    @property
    def tokens(self) -> int:
        """Of its newest step."""
        return len(self.row.ids) - self.row.inherited

    @property
    def text(self) -> str:
        """Of its newest step."""
        return self.row.text(self.row.inherited)


Nodes = Generator[Sequence[Call], list[Row], list[Node]]
"""Part of a flow that gives nodes."""


class Growth:
    """The partial responses to one problem, and what they cost.

    The first child of a node goes on with its random stream, so that first children alone spell what the plain
    model would have written.

    Args:
        stage: where the flow plays, that of a `StepwiseMethod`.
        job: what is answered.
        verifier: which scores.

    Attributes:
        tokens: generated so far, in all branches.
        scored: partial responses that the verifier has scored.
    """

    def __init__(self, stage: Stage, job: Job, verifier: Verifier) -> None:
        self.stage, self.job, self.verifier = stage, job, verifier
        self.tokens = self.scored = 0
        self._streams = itertools.count(1)
        self._nodes: list[Node] = []

    def root(self) -> Nodes:
        """Read the prompt."""
        steering = [*self.stage.controllers, _READ]
        (row,) = yield [Call(self.stage.render(self.job), steering, self.stage.settings, keep=True, stream=0)]
        self._nodes.append(Node(row, 0))
        return self._nodes[:1]

    def grow(self, parents: Sequence[Node]) -> Nodes:
        """Go on from each of some open nodes by one step; all that is ever to come of a node is asked for at once.

        Args:
            parents: a node stands as often as it is gone on from.

        Returns:
            A node for each, in the same order.
        """
        # the method's own come last: what others force at the end of a step is to be written within it
        return (yield from self._grow(parents, self.stage.settings, [*self.stage.controllers, *self.stage.own]))

    def complete(self, node: Node) -> Nodes:
        """Go on from an open node to the end, greedily."""
        settings = self.stage.settings.with_(temperature=0.0)
        return (yield from self._grow([node], settings, self.stage.controllers, keep=False))

    def _grow(
        self, parents: Sequence[Node], settings: Settings, controllers: Sequence[Controller], keep: bool = True
    ) -> Nodes:
        streams = []
        for parent in parents:
            streams.append(next(self._streams) if parent.children else parent.stream)
            parent.children += 1
        rows = yield [
            Call(controllers=controllers, settings=settings, parent=parent.row, keep=keep, stream=stream)
            for parent, stream in zip(parents, streams, strict=True)
        ]
        grown = [Node(*parts) for parts in zip(rows, streams, parents, strict=True)]
        for parent in parents:
            self.forget(parent)
        self.tokens += sum(node.tokens for node in grown)
        self._nodes += grown
        return grown

    def score(self, nodes: Sequence[Node]) -> list[float]:
        """Return the verifier's probability for each of some nodes that it will end right."""
        self.scored += len(nodes)
        scores: list[float] = self.verifier.score([node.row for node in nodes]).tolist()
        for node in nodes:
            if not node.open:
                self.forget(node)
        return scores

    def forget(self, node: Node) -> None:
        """Let go of the cache of a node that will not be gone on from."""
        node.row.kept = None

    def conclude(self, chosen: Node, events: dict[str, object]) -> Trace:
        """Return the trace of a node's response, with the account of all nodes.

        Args:
            chosen: whose response it is.
            events: what to tell reports, by the slug of the method.
        """
        trace = chosen.row.trace(self.stage.method)
        path = set()
        node: Node | None = chosen.parent
        while node is not None:
            path.add(node)
            node = node.parent
        for node in self._nodes:
            if node is chosen:
                continue
            trace.usage = trace.usage + account(node.row, "sample" if node in path else "probe")
            if node not in path and node.tokens:
                trace.segments.append(Segment("probe", "answer", node.text))
        trace.events = {**trace.events, **events}
        return trace


@dataclass(frozen=True, kw_only=True)
class StepwiseMethod(FlowMethod):
    """What methods that stand on `Growth` have in common.

    Attributes:
        step: one of `STEPS`.
        step_tokens: limit on a step.
        temperature: of the steps, `RUN` for that of the run.
        depth: limit on the steps of a response.
        verifier: which scores, as for `Verifier.load`.
    """

    needs: ClassVar[Need] = Need.SAMPLING
    thinks: ClassVar[bool] = False
    step: str = "paragraph"
    step_tokens: int = 512
    temperature: float = 0.8
    depth: int = 40
    verifier: str = EMBEDDED

    @property
    def width(self) -> int:
        """Samples of a step that only their random numbers tell apart."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        if self.step_tokens < 1 or self.depth < 1:
            raise ThriftyError(f"{self.slug}: step_tokens and depth must be at least 1")
        if self.step not in STEPS:
            raise ThriftyError(f"{self.slug}: step is one of {', '.join(STEPS)}, not {self.step!r}")
        if self.temperature != RUN and not 0 <= self.temperature <= 100:
            raise ThriftyError(f"{self.slug}: temperature must be between 0 and 100, or -1 for that of the run")
        self._check_sampling(self.temperature)

    def _check_sampling(self, temperature: float) -> None:
        if temperature == 0 and self.width > 1:
            raise ThriftyError(
                f"{self.slug}: at temperature 0 all {self.width} samples of a step are alike: set its option "
                "temperature above 0"
            )

    @functools.cached_property
    def judge(self) -> Verifier:
        """The verifier, loaded when it is first asked for."""
        return Verifier.load(self.verifier)

    def settings(self, settings: Settings) -> Settings:
        settings = settings if self.temperature == RUN else settings.with_(temperature=self.temperature)
        self._check_sampling(settings.temperature)
        return settings

    def check(self, model: Model) -> None:
        super().check(model)
        if isinstance(model, TorchModel):
            self.judge.trunk(model)

    def controllers(self, model: TorchModel) -> list[Controller]:
        return [*self.judge.controllers(model), StepEnd(self.step, self.step_tokens)]
