"""Long⊗Short: a model for long thoughts and one for short ones take turns until the short one answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.flow import Flow, conclude
from thrifty.errors import ThriftyError
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.helpers import ask, helper_settings, reply_of, role_of
from thrifty.methods.shared.relay import Turn, partner_model, relay, think_only, thought_of, with_system
from thrifty.models.base import Job, Model, Settings, TextModel
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message

Role = Literal["long", "short"]

THINK, THOUGHT, ANSWER, RETHINK, ANSWERED = "<think>", "</think>", "<answer>", "</rethink>", "</answer>"
TEAM_PROMPT = (
    "Two assistants solve a problem by turns. The first one does the hard reasoning, between <think> and </think>. "
    "The second one carries out the easy steps behind <answer>: it ends with the final answer in \\boxed{{}} and "
    "</answer>, or with </rethink> if it has found a gap or an error and needs more thinking. You are the {which} "
    "assistant."
)
_STRICT = {
    "long": re.compile(r"<think>[^<]*</think>"),
    "short": re.compile(r"<answer>[^<]+</(?:rethink|answer)>"),
}
_CLOSER = re.compile(f"{RETHINK}|{ANSWERED}")


def monte_carlo_scores(correct: Tensor) -> Tensor:
    """Return the accuracy behind each thought: the share of right ones among the responses that go on from it.

    Args:
        correct: whether they are right, bool ``(thoughts + 1, rollouts)``; the first row goes on from the question.

    Returns:
        Float64 ``(thoughts + 1,)``.
    """
    return correct.double().mean(-1)


def joint_scores(accuracies: Tensor, shares: Tensor, decay: float = 0.5, penalty: float = 0.5) -> Tensor:
    """Return the joint scores of thoughts: effective ones that come early stand high.

    S_i = acc_i * (1 - decay * share_i) - (penalty if acc_i <= acc_(i-1)). With acc .2 .7 .7 .6 and shares 0 .3 .6 1:
    .595, -.01, -.2. Reconstruction: of the paper's score only the ingredients are known.

    Args:
        accuracies: behind the question and each thought ``(thoughts + 1,)``.
        shares: of the trace's tokens up to there, likewise.
        decay: kappa, how much the end of the trace is worth less than its beginning.
        penalty: gamma, for a thought that does not help.

    Returns:
        Float64 ``(thoughts,)``, between -gamma and 1.
    """
    accuracies, shares = accuracies.double(), shares.double()
    idle = accuracies[1:] <= accuracies[:-1]
    return accuracies[1:] * (1 - decay * shares[1:]) - penalty * idle


def important(scores: Tensor) -> Tensor:
    """Tell which thoughts stay long: those above the mean of their trace, the best one in any case.

    Args:
        scores: joint scores ``(thoughts,)``.
    """
    chosen = scores > scores.mean()
    chosen[scores.argmax()] = True
    return chosen


def format_reward(text: str, role: Role) -> int:
    """Return 1 for a turn in its strict format, else 0: any ``<`` within the tags breaks it, as in the release.

    1 for ``<think>a</think>`` and ``<answer>x</rethink>``, 0 for ``<answer></answer>`` and ``<answer>x<y</answer>``.

    Args:
        text: of the turn, tags included.
        role: whose it is.
    """
    return int(_STRICT[role].fullmatch(text) is not None)


def length_rewards(lengths: Tensor, correct: Tensor) -> Tensor:
    """Return the length rewards of a group of completions: 0.5 for the shortest to -0.5 for the longest.

    A wrong one gets no more than 0, and all get 0 if all are of one length. Lengths 100, 200, 300, the last one wrong:
    0.5, 0, -0.5.

    Args:
        lengths: in characters as in the release, or in tokens ``(n,)``.
        correct: whether the answers are right ``(n,)``.

    Returns:
        Float64 ``(n,)``.
    """
    lengths = lengths.double()
    spread = lengths.max() - lengths.min()
    if not spread:
        return torch.zeros_like(lengths)
    rewards = 0.5 - (lengths - lengths.min()) / spread
    return torch.where(correct.bool(), rewards, rewards.clamp(max=0))


@dataclass
class Transcript:
    """A dialogue of the two models.

    Attributes:
        turns: their texts, tags included; the long model begins.
        tokens: that each of them wrote.
    """

    turns: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=lambda: {"long": 0, "short": 0})

    def add_long(self, thought: str, tokens: int) -> None:
        """Add a thought; the tags are put around it, whichever of them were written."""
        self.turns.append(f"{THINK}{thought}{THOUGHT}")
        self.tokens["long"] += tokens

    def add_short(self, reply: str, tokens: int) -> None:
        """Add a reply up to its first closing tag; one without is an answer, for the model has ended there."""
        before, tag, rest = reply.strip().partition(ANSWER)
        reply = rest if tag else before
        closer = _CLOSER.search(reply)
        self.turns.append(f"{ANSWER}{reply[: closer.start()]}{closer[0]}" if closer else f"{ANSWER}{reply}{ANSWERED}")
        self.tokens["short"] += tokens

    @property
    def rounds(self) -> int:
        """Turns of the short model so far."""
        return len(self.turns) // 2

    @property
    def done(self) -> bool:
        """Whether the short model has answered."""
        return bool(self.turns) and self.turns[-1].startswith(ANSWER) and self.turns[-1].endswith(ANSWERED)

    @property
    def answer(self) -> str:
        """The content of the last turn."""
        return self.turns[-1].removeprefix(ANSWER).removesuffix(ANSWERED).removesuffix(RETHINK).strip()

    def messages(self, question: list[Message], role: Role) -> list[Message]:
        """Return the conversation that a model is asked to go on from: all turns stand behind the question.

        Args:
            question: the conversation of the problem.
            role: who is asked.
        """
        *before, last = with_system(question, TEAM_PROMPT.format(which="first" if role == "long" else "second"))
        return [*before, {**last, "content": "\n\n".join([last["content"], *self.turns])}]


@dataclass(frozen=True, kw_only=True)
class LongShort(FlowMethod):
    """Let the main model write the hard thoughts and a second one the easy steps, by turns, until the second answers.

    Each turn is a call of its own that reads the question and all turns so far: ``<think>…</think>`` by the long
    model, then ``<answer>…</answer>`` by the short one, or ``<answer>…</rethink>`` to ask for more thinking. Models
    that were not trained for it rarely ask: the short one then answers behind the first thought.

    ``events["long-short"]`` holds the ``rounds``, whether the short model came to an answer (``done``), and the tokens
    that each wrote (``long``, ``short``); the account also has every reading of the history. The short model's tokens
    count as ``helper``.

    Source: Not All Thoughts are Generated Equal: Efficient LLM Reasoning via Multi-Turn Reinforcement Learning,
    arXiv 2505.11827; card ``long-short``. Protocol, temperature, limits and rewards follow the release; neither model
    is trained here. Reconstruction: the wording of the prompts, the limit on rounds, the joint score. Tags are read
    leniently: what is missing is put in, and the strict format is left to the reward.

    Attributes:
        short: name or folder of the model for short thoughts. Beside a model on a server it may be a local one. Empty
            for none: the long model answers by itself, as it is.
        max_turns: rounds of both models; if the last one asks for more thinking, what it says is the answer.
        turn_tokens: limit on each turn.
        temperature: of both models, -1 for that of the run.
    """

    slug: ClassVar[str] = "long-short"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    short: str = "pebble-small"
    max_turns: int = 6
    turn_tokens: int = 2048
    temperature: float = 0.3

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.turn_tokens < 1:
            raise ThriftyError("long-short: max_turns and turn_tokens must be at least 1")
        if self.temperature != -1 and not 0 <= self.temperature <= 100:
            raise ThriftyError("long-short: temperature must be between 0 and 100, or -1 for that of the run")

    def check(self, model: Model) -> None:
        super().check(model)
        partner_model(self.short, cast("TorchModel | TextModel", model))

    def flow(self, stage: Stage, job: Job) -> Flow:
        question = list(job.problem.messages)
        if not self.short:
            (row,) = yield [stage.call(stage.render(job), messages=question, stream=0)]
            return conclude(row, stage.method)
        short = partner_model(self.short, stage.model)
        heat = stage.settings.temperature if self.temperature == -1 else self.temperature
        run = stage.settings.with_(temperature=heat)
        transcript, turns, left = Transcript(), list[Turn](), run.max_tokens
        while not transcript.done and transcript.rounds < self.max_turns and (not turns or left > run.reserve):
            asked = transcript.messages(question, "long")
            call = think_only(stage, stage.render(job, asked), asked, _rest(run, left, turns), self.turn_tokens)
            (row,) = yield [replace(call, stream=len(turns))]
            transcript.add_long(thought_of(row, stage.model, short), row.usage.thinking + row.usage.answer)
            turns.append(Turn(row, "sample"))
            left = max(left - row.usage.generated, 1)
            asked = transcript.messages(question, "short")
            limit = min(self.turn_tokens, left)
            settings = helper_settings(run, limit, temperature=heat)
            if isinstance(short, TorchModel):  # a server would not say which of the tags it has stopped at
                settings = settings.with_(stop=(*run.stop, RETHINK, ANSWERED))
            (row,) = yield [replace(ask(short, asked, settings), stream=len(turns))]
            spent = row.usage.thinking + row.usage.answer
            transcript.add_short(reply_of(row), spent)
            turns.append(Turn(row, role_of(short, stage.model), transcript.turns[-1], "thinking"))
            left = max(left - spent, 1)
        turns[-1] = replace(turns[-1], text=transcript.answer, phase="answer")  # the tags are no part of it
        told = {"rounds": transcript.rounds, "done": transcript.done, **transcript.tokens}
        return relay(turns, stage.method, self.slug, {self.slug: told})


def _rest(run: Settings, left: int, turns: Sequence[Turn]) -> Settings:
    """Return the settings of a run for what is left of the response."""
    reserve, budget = run.answer_reserve, run.thinking_budget
    thought = sum(turn.row.usage.thinking for turn in turns if turn.role == "sample")
    return run.with_(
        max_tokens=left,
        answer_reserve=None if reserve is None else min(reserve, left),
        thinking_budget=None if budget is None else max(budget - thought, 0),
    )
