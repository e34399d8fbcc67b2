"""What tuning has in common: problems of the train split, judged responses, splits, options and a report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from thrifty.errors import ThriftyError
from thrifty.models.base import Job, Model, Settings, jobs_for
from thrifty.models.torch import TorchModel
from thrifty.spec import checked_options
from thrifty.tasks.base import Task
from thrifty.traces.trace import Problem, Trace

if TYPE_CHECKING:
    from thrifty.decoding.controller import Controller

Progress = Callable[[str, int, int, int], None]
"""Called with what is being done, how many of how many responses are finished, and their tokens."""

Options = TypeVar("Options")
LEAST = 10
"""Problems below which there is nothing to train, validate and test on."""
SHARES = (3, 4)
"""Fifths of the problems up to which they train and validate; the rest is held out for the report."""


def _silent(what: str, done: int, total: int, tokens: int) -> None:
    pass


class Solver(Protocol):
    """A method, as far as tuning is concerned."""

    @property
    def spec(self) -> str:
        """Its specification."""
        ...

    def solve(
        self, model: Model, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller] = ()
    ) -> Iterator[Trace]:
        """Answer problems."""
        ...


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What a method is tuned on and how.

    Attributes:
        slug: of the method.
        model: for which it is tuned.
        task: whose train split gives the problems.
        settings: how to generate.
        limit: number of problems.
        options: of the tuning, as the user wrote them.
        progress: told how far it is.
    """

    slug: str
    model: TorchModel
    task: Task
    settings: Settings
    limit: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    progress: Progress = _silent

    def read(self, kind: type[Options]) -> Options:
        """Return the tuning's options as a dataclass.

        Raises:
            ThriftyError: an option that it does not have, or a value of the wrong type.
        """
        return kind(**checked_options(kind, dict(self.options), f"tuning {self.slug!r}"))

    def problems(self) -> list[Problem]:
        """Return the problems to tune on, of the train split, in an order that their number does not change.

        Raises:
            ThriftyError: there are too few.
        """
        found = list(self.task.problems(self.limit, self.settings.seed, "train"))
        if len(found) < LEAST:
            raise ThriftyError(
                f"{len(found)} problems are too few to tune {self.slug!r}: give --limit and a task with {LEAST} or more"
            )
        return found

    def layer(self, wanted: int) -> int:
        """Return the layer that an option means, -1 for the last.

        Raises:
            ThriftyError: the model does not have it.
        """
        last = self.model.layers
        if not -1 <= wanted <= last:
            raise ThriftyError(f"{self.model.name!r} has no layer {wanted}: 0 for the embeddings to {last}, or -1")
        return last if wanted == -1 else wanted

    def solve(
        self,
        method: Solver,
        problems: Sequence[Problem],
        samples: int = 1,
        watch: Sequence[Controller] = (),
        what: str = "",
    ) -> list[list[Trace]]:
        """Answer problems and judge the answers.

        Args:
            method: which answers.
            problems: what to answer.
            samples: responses for each problem.
            watch: further controllers.
            what: name of this step for the progress.

        Returns:
            The judged traces of each problem, in order.
        """
        wanted = {problem.id: problem for problem in problems}
        traces: dict[str, list[Trace]] = {problem.id: [] for problem in problems}
        total, done, tokens = len(problems) * samples, 0, 0
        for trace in method.solve(self.model, jobs_for(problems, samples), self.settings, watch):
            problem = wanted[trace.problem_id]
            trace.answer = self.task.extract(problem, trace.answer_text) if trace.closed_by else None
            trace.correct = self.task.score(problem, trace.answer) >= 1.0
            traces[trace.problem_id].append(trace)
            done, tokens = done + 1, tokens + trace.usage.generated
            self.progress(what or method.spec, done, total, tokens)
        return [sorted(traces[problem.id], key=lambda trace: trace.sample) for problem in problems]

    def about(self, **made_with: Any) -> dict[str, Any]:
        """Return what an artefact was made with: task, limit and settings, and whatever the method adds."""
        settings = dataclasses.asdict(self.settings)
        del settings["batch_size"]
        return {"task": self.task.name, "limit": self.limit, **settings, **made_with}


def divide(examples: int | Sequence[int], seed: int = 0) -> tuple[list[int], list[int], list[int]]:
    """Divide examples at random into those to train on, to validate on, and held out; each label by itself.

    Args:
        examples: how many, or the label of each; of a rare label the training gets the first.
        seed: of the order.

    Returns:
        Indices of each part, ascending.
    """
    labels = [0] * examples if isinstance(examples, int) else examples
    order: list[int] = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in sorted(set(labels)):
        mine = [i for i in order if labels[i] == label]
        first, second = (math.ceil(share * len(mine) / 5) for share in SHARES)
        for part, some in zip(parts, (mine[:first], mine[first:second], mine[second:]), strict=True):
            part.extend(some)
    return sorted(parts[0]), sorted(parts[1]), sorted(parts[2])


def lines_of(report: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Yield a report as indented lines for people.

    Args:
        report: names to values, lists of remarks, or further reports.
        indent: of its lines.
    """
    for key, value in report.items():
        name = " " * indent + key.replace("_", " ")
        if isinstance(value, Mapping):
            yield name
            yield from lines_of(value, indent + 2)
        elif isinstance(value, list):
            yield from (f"{name}: {remark}" for remark in value)
        else:
            yield f"{name}: {'-' if value is None else value}"
