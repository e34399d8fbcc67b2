"""Where a small model would have left a large one's path, and whether that would have changed what is said.

The label pipeline of R2R (arXiv 2505.21600): every token of a response of the large model gets a label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thrifty.decoding.loop import Plan, decode_rows
from thrifty.decoding.router import DIVERGENT, IDENTICAL, NEUTRAL, Examples, final_states, top_logits
from thrifty.decoding.session import Session
from thrifty.decoding.teacher_forcing import predictions
from thrifty.methods.shared.helpers import helper_settings, reply_of, think_block
from thrifty.models.base import Job, Settings
from thrifty.models.torch import TorchModel
from thrifty.tasks.base import Task
from thrifty.traces.equality import same_plainly
from thrifty.traces.think import split_thinking
from thrifty.traces.trace import Problem

VERIFIERS = ("numbers", "answer", "judge", "none")
LONGEST = 8192
"""Tokens of a continuation at the most."""
JUDGE_TOKENS, JUDGE_CHARACTERS = 16, 2000
_NUMBER = re.compile(r"(?:(?<![\w).])-)?\d+(?:\.\d+)?")
"""A minus that follows an operand subtracts, and is no sign."""
_DIGIT = re.compile(r"\d")
_CLOSERS = " \"')*]”’"

JUDGE_PROMPT = """Two continuations of one text part at the word that is marked by << >>.

Text so far:
{context}

First continuation:
{ours}

Second continuation:
{theirs}

Reply with 1 if they differ in meaning, reasoning, logic or conclusion, or if one brings in new or contradictory \
information. Reply with 0 if they only say the same in other words. Reply with the digit only."""


@dataclass(frozen=True)
class Parting:
    """A place in a response at which the small model would have written another token.

    Attributes:
        place: index of the token in the response.
        ours: the small model's token and what the large one goes on with behind it.
        theirs: what stands in the response from the place on, as far.
    """

    place: int
    ours: list[int]
    theirs: list[int]


def sentence_ends(model: TorchModel) -> frozenset[int]:
    """Return the tokens that end a sentence: those with a closing punctuation or a newline, think markers, ends.

    Tokens with a colon end none, whatever else they hold.
    """
    markers = {model.think.open, model.think.close} - {""}

    def ends(text: str) -> bool:
        body = text.rstrip(_CLOSERS)
        return ":" not in text and (text in markers or "\n" in text or body.endswith((".", "!", "?", "。", "！", "？")))

    texts = model.texts.all()[: model.vocabulary_size]
    return model.eos_ids | {i for i, text in enumerate(texts) if ends(text)}


def until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return tokens up to the first end behind the first token, which may be one itself: the sentence it leads to."""
    end = next((i for i, token in enumerate(ids) if i and token in ends), len(ids))
    return list(ids[: end + 1])


@torch.inference_mode()
def continuations(
    model: TorchModel,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    departures: Sequence[tuple[int, int]],
    ends: frozenset[int],
    limit: int,
    batch_size: int = 16,
) -> list[list[int]]:
    """Return what a model writes greedily behind a response that is left at some place by another token.

    Args:
        model: which goes on.
        prompt_ids: the rendered prompt.
        ids: the response.
        departures: indices of tokens in the response, and the tokens to put there.
        ends: tokens that end a continuation, as far as they stand behind its first token.
        limit: tokens of a continuation at the most.
        batch_size: how many are written together.

    Returns:
        For each departure the token and what follows it, up to an end, which is part of it.
    """
    written = [[token] for _, token in departures]
    path = Session(model)
    if departures:  # the path is read once, as far as it is shared
        path.add([[*prompt_ids, *ids[: max(place for place, _ in departures)]]])
    for start in range(0, len(departures), batch_size):
        mine = [i for i in range(start, min(start + batch_size, len(departures))) if written[i][0] not in model.eos_ids]
        if not mine:
            continue
        session = path.fork([0] * len(mine))
        for row, i in enumerate(mine):
            session.rewind(row, session.lengths[row] - len(prompt_ids) - departures[i][0])
        session.append([[written[i][0]] for i in mine])
        while mine:
            best = session.logits.argmax(-1).tolist()
            going = []
            for row, i in enumerate(mine):
                written[i].append(best[row])
                room = session.lengths[row] + 1 < model.context_length
                if best[row] not in ends and len(written[i]) < limit and room:
                    going.append(row)
            if len(going) < len(mine):
                order = session.drop([row for row in range(len(mine)) if row not in going])
                mine, best = [mine[row] for row in order], [best[row] for row in order]
            if mine:
                session.append(torch.tensor(best))
    return written


def same_numbers(ours: str, theirs: str, markers: Sequence[str] = ()) -> bool:
    """Tell whether two continuations state the same numbers in the same order, and the same markers or none.

    ``Hmm, 3-4=-1.`` and ``So 3 - 4 = -1.`` do, ``3-4=1.`` does not.
    """
    if any((marker in ours) != (marker in theirs) for marker in markers):
        return False
    return _NUMBER.findall(ours) == _NUMBER.findall(theirs)


def parse_verdict(reply: str) -> int | None:
    """Return what a judge replied: 1 if its first digit is 1, 0 if it is 0, None for anything else."""
    found = _DIGIT.search(reply)
    return int(found[0]) if found and found[0] in "01" else None


@dataclass(frozen=True)
class Labeller:
    """Labels the tokens of the large model's responses.

    Attributes:
        small: the model that is to be routed.
        large: which wrote the responses.
        task: of the problems.
        settings: of the run.
        verifier: what tells whether two continuations part: ``numbers``, where they state other numbers or only one
            ends the thinking; ``answer``, where the large model comes to another final answer in the end; ``judge``, a
            language model's verdict; ``none``, always.
        judge: the language model.
        top: logits to keep.
    """

    small: TorchModel
    large: TorchModel
    task: Task
    settings: Settings
    verifier: str
    judge: TorchModel | None
    top: int

    def label(self, problem: Problem, ids: Sequence[int], ends: frozenset[int]) -> Examples:
        """Return the tokens that the small model would have written along a response, with their labels.

        Those on which the judge gives no verdict are left out.

        Args:
            problem: what was asked.
            ids: the response of the large model, finished.
            ends: of sentences, from `sentence_ends`.
        """
        read = self.read(self._prompt_ids(problem), ids)
        labels, kept = torch.full((len(ids),), IDENTICAL), torch.ones(len(ids), dtype=torch.bool)
        if self.verifier == "none":
            labels[read.tokens != torch.tensor(ids)] = DIVERGENT
            return replace(read, labels=labels)
        partings = self.partings(problem, ids, ends, read)
        for parting, verdict in zip(partings, self._verdicts(problem, ids, partings), strict=True):
            labels[parting.place] = DIVERGENT if verdict else NEUTRAL
            kept[parting.place] = verdict is not None
        return replace(read, labels=labels).take(kept)

    def partings(
        self, problem: Problem, ids: Sequence[int], ends: frozenset[int], read: Examples | None = None
    ) -> list[Parting]:
        """Return where the small model would have left a response, and what the large one makes of that.

        Args:
            problem: what was asked.
            ids: the response.
            ends: of sentences; final answers are waited for to the end of the response.
            read: what the small model read, None to let it read.
        """
        prompt_ids = self._prompt_ids(problem)
        read = self.read(prompt_ids, ids) if read is None else read
        tokens = read.tokens.tolist()
        departures = [(i, token) for i, token in enumerate(tokens) if token != ids[i]]
        until = self.large.eos_ids if self.verifier == "answer" else ends
        most, together = min(LONGEST, self.settings.max_tokens), self.settings.batch_size
        written = continuations(self.large, prompt_ids, ids, departures, until, most, together)
        return [
            Parting(place, ours, until_end(ids[place:], until))
            for (place, _), ours in zip(departures, written, strict=True)
        ]

    def _prompt_ids(self, problem: Problem) -> list[int]:
        return self.large.encode_prompt(self.large.render(problem.messages))

    def read(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> Examples:
        """Let the small model read a response; all labels are `IDENTICAL`, whatever it would have written."""
        layer = self.small.layers
        parts = [
            Examples(
                final_states(self.small, states[layer]).cpu(),
                logits.argmax(-1).cpu(),
                top_logits(logits, self.top).cpu(),
                torch.full((len(logits),), IDENTICAL),
            )
            for logits, states in predictions(self.small, prompt_ids, ids, [layer])
        ]
        return Examples.joined(parts)

    def _verdicts(self, problem: Problem, ids: Sequence[int], partings: Sequence[Parting]) -> list[int | None]:
        texts = self.large.texts
        if self.verifier == "judge":
            return self._judged(problem, ids, partings)
        if self.verifier == "numbers":
            markers = [m for m in (self.large.think.open, self.large.think.close) if m]
            return [int(not same_numbers(texts.text(p.ours), texts.text(p.theirs), markers)) for p in partings]
        right = self._answer(problem, ids)
        found = [self._answer(problem, [*ids[: p.place], *p.ours]) for p in partings]
        return [int(not (a == right or (a and right and same_plainly(a, right)))) for a in found]

    def _answer(self, problem: Problem, ids: Sequence[int]) -> str | None:
        prompt = self.large.render(problem.messages)
        question = problem.question.strip()
        tail = prompt[prompt.rfind(question) + len(question) :] if question in prompt else prompt
        opened = self.large.tracker.start(tail).phase == "thinking"
        text = self.large.texts.text(t for t in ids if t not in self.large.eos_ids)
        _, answer = split_thinking(text, self.large.think, opened)
        return None if answer is None else self.task.extract(problem, answer)

    def question(self, problem: Problem, ids: Sequence[int], parting: Parting) -> str:
        """Return what a judge is asked about a parting; of long texts it is shown what is nearest."""
        texts = self.large.texts
        ours, theirs = (
            f"<<{texts.text(some[:1])}>>{texts.text(some[1:])}"[:JUDGE_CHARACTERS]
            for some in (parting.ours, parting.theirs)
        )
        context = texts.text(ids[: parting.place])[-JUDGE_CHARACTERS:]
        return JUDGE_PROMPT.format(context=f"{problem.question}\n\n{context}", ours=ours, theirs=theirs)

    def _judged(self, problem: Problem, ids: Sequence[int], partings: Sequence[Parting]) -> list[int | None]:
        judge = self.judge
        assert judge is not None
        plans = []
        for parting in partings:
            content = self.question(problem, ids, parting)
            prompt = judge.render([{"role": "user", "content": content}])
            job = Job(Problem.ask(content, id=str(parting.place)))
            empty = think_block(judge, prompt, content, "")
            settings = helper_settings(self.settings, JUDGE_TOKENS + len(judge.encode(empty)))  # it counts as written
            plans.append((job, Plan(prompt, settings=settings, prefix=empty)))
        replies = {int(row.job.problem.id): reply_of(row) for row in decode_rows(judge, plans, self.settings)}
        return [parse_verdict(replies[parting.place]) for parting in partings]


def counts(labels: Tensor) -> dict[str, int]:
    """Return how many tokens have each label."""
    names = {"identical": IDENTICAL, "neutral": NEUTRAL, "divergent": DIVERGENT}
    return {name: int((labels == value).sum()) for name, value in names.items()}
