"""Majority: the answer that most of several samples agree on. The baseline of everything that samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.catalogue import Need
from thrifty.decoding.flow import Flow
from thrifty.decoding.row import Row
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.candidates import answers_of, choose, sampling
from thrifty.models.base import Job, Settings
from thrifty.traces.selection import still_needed, vote


@dataclass(frozen=True, kw_only=True)
class Majority(FlowMethod):
    """Sample several responses and return the first one with the answer that most of them give.

    Answers are the same if they are mathematically equal; a response without an answer has no vote, and a tie goes
    to the answer that came first.

    Source: Self-Consistency Improves Chain of Thought Reasoning in Language Models, arXiv 2203.11171: the unweighted
    vote. The early end is exact: the answer is the one that all samples would have elected.

    Attributes:
        samples: responses to each problem; 1 is the model as it is.
        early: stop sampling as soon as the rest cannot change the winner. As many are drawn at once as it takes at
            least, so that no sample is drawn in vain: of five, three, then one or two.
        temperature: of the samples where the run is greedy, which would make them all alike.
    """

    slug: ClassVar[str] = "majority"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    samples: int = 5
    early: bool = False
    temperature: float = 0.6

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 < self.temperature <= 100:
            raise ThriftyError("majority: samples must be at least 1, temperature above 0 and at most 100")

    def settings(self, settings: Settings) -> Settings:
        return sampling(settings, self.samples, self.temperature)

    def flow(self, stage: Stage, job: Job) -> Flow:
        prompt = stage.render(job)
        rows: list[Row] = []
        answers: list[str | None] = []
        while missing := self._missing(answers):
            more = yield [stage.call(prompt, messages=job.problem.messages) for _ in range(missing)]
            rows, answers = rows + more, answers + answers_of(more)
        return choose(stage, self.slug, rows, vote(answers), {"answers": answers})

    def _missing(self, answers: list[str | None]) -> int:
        remaining = self.samples - len(answers)
        return still_needed(answers, remaining) if self.early else remaining
