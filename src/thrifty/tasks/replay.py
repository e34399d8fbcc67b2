"""The problems of a file of recordings, for the model that plays them back."""

from __future__ import annotations

from pathlib import Path

from thrifty.tasks.jsonl import BadRecord, JsonlTask
from thrifty.traces.trace import Problem


class ReplayTask(JsonlTask):
    """Each question of a file of recordings once, with its reference answer; see `thrifty.models.replay`."""

    def __init__(self, path: str | Path, *, hold_out: bool = False, skip_bad: bool = False) -> None:
        """Describe the file; see `JsonlTask`."""
        super().__init__(path, hold_out=hold_out, skip_bad=skip_bad)
        self.name = f"replay:{self.name}"

    def _problem(self, number: int, raw: bytes) -> Problem:
        problem = super()._problem(number, raw)
        if problem.answer is None:
            raise BadRecord("it has no answer to score against: add the field answer")
        if "choices" in problem.metadata:
            raise BadRecord("it has choices: write them into the question, as the recorded model saw them")
        return problem
