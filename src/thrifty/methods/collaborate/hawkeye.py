"""Hawkeye: a large model writes a concise chain of thought, and a small one makes the answer of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.flow import Call, Flow, conclude
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.base import FlowMethod, Stage
from thrifty.methods.shared.helpers import ask, clean_thought, helper_settings, reply_of, role_of, think_block
from thrifty.methods.shared.relay import Turn, partner_model, relay, think_only, thought_of, with_system
from thrifty.models.base import Job, Model, TextModel
from thrifty.models.formats import FORMAT_PROMPTS, in_format
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Message

CHAIN_PROMPT = (
    "Think in brief instructions: only the reasoning steps without which the problem cannot be solved, each of them "
    "once, and no closing words."
)
RESPONSE_PROMPT = (
    "You are given a problem and the reasoning that solves it. Follow the reasoning, carry out its steps, and state "
    "the final answer in \\boxed{}."
)
HANDOVERS = ("prompt", "think")
RATIO = 0.3


def calibrated_penalty(original: Tensor, ratio: float = RATIO) -> Tensor:
    """Return the weight with which a right answer from an uncompressed chain is worth nothing.

    Chains of 500 tokens: 1 / (0.7 * 500)^2 = 8.16e-6. Reconstruction: the paper's weight is not known.

    Args:
        original: tokens of the original chains ``(n,)``; their mean counts.
        ratio: of the original length that a chain may have for nothing.
    """
    return 1 / ((1 - ratio) * original.double().mean()) ** 2


def hawkeye_reward(
    lengths: Tensor,
    original: Tensor,
    correct: Tensor,
    penalty: Tensor | float,
    ratio: float = RATIO,
    normalised: bool = False,
) -> Tensor:
    """Return the rewards of chains: whether the small model answers rightly from them, less a penalty for length.

    R = correct - penalty * max(0, length - ratio * original)^2. With an original of 500 tokens and a penalty of 1e-5
    up to 150 tokens are free; 200 tokens are worth 0.975, or -0.025 where the answer is wrong, and 500 are -0.225.

    Args:
        lengths: tokens of the chains, in the large model's tokenizer ``(n,)``.
        original: tokens of the large model's original chains, likewise ``(n,)`` or a scalar.
        correct: whether the small model's answers are right ``(n,)``.
        penalty: lambda.
        ratio: of the original length that is free.
        normalised: measure the excess in parts of the original length instead of tokens, so that long problems are not
            penalised more (a variant, not the paper's).

    Returns:
        Float64 ``(n,)``.
    """
    lengths, original = lengths.double(), torch.as_tensor(original).double()
    excess = (lengths - ratio * original).clamp(min=0)
    return correct.double() - penalty * (excess / original if normalised else excess) ** 2


def leaks(chain: str) -> bool:
    """Tell whether a chain states an answer and no step that leads to it.

    Args:
        chain: a chain of thought, without markers.
    """
    rest = clean_thought(chain, ())
    return bool(chain.strip()) and rest != chain.strip() and not any(c.isalnum() for c in rest)


@dataclass(frozen=True, kw_only=True)
class Hawkeye(FlowMethod):
    """Let the main, large model write a concise chain of thought only, and a small one the response.

    The large model is stopped where its thinking ends, or at the cap; the small one reads the question and the chain
    and answers greedily. An empty chain leaves it the question alone.

    ``events["hawkeye"]`` holds the tokens that each model wrote (``large``, ``small``), those of the account that the
    small one ``read``, and whether the chain was nothing but the answer (``leak``). The small model's tokens count as
    ``helper``; the account's operations weigh them by its size.

    Source: Hawkeye: Efficient Reasoning with Model Collaboration, arXiv 2504.00424; card ``hawkeye``. Roles, reward
    and ratio follow the release; the large model is not trained here. Reconstruction: the prompts, the cap, what counts
    as a leak. Ours: asking for a format of the embedded models, and a chain that fills the small model's think block.

    Attributes:
        small: name or folder of the model that answers. Beside a model on a server it may be a local one. Empty for
            none: the large model goes on to answer by itself.
        ask: how the large model is asked for a concise chain: ``prompt`` by words, ``none`` not at all (as one that was
            trained for it), or by the name of a format of the embedded models, such as ``short``.
        cap: tokens of the chain at the most.
        handover: where the small model finds the chain: in its ``prompt``, or as what it ``think``s.
        strip: take the sentences that state the answer out of the chain.
    """

    slug: ClassVar[str] = "hawkeye"
    needs: ClassVar[Need] = Need.TEXT
    thinks: ClassVar[bool] = False
    small: str = "pebble-small"
    ask: str = "prompt"
    cap: int = 512
    handover: str = "prompt"
    strip: bool = False

    def __post_init__(self) -> None:
        if self.ask not in ("prompt", "none", *FORMAT_PROMPTS):
            raise UnknownName("ask of hawkeye", self.ask, ("prompt", "none", *FORMAT_PROMPTS))
        if self.handover not in HANDOVERS:
            raise UnknownName("handover of hawkeye", self.handover, HANDOVERS)
        if self.cap < 1:
            raise ThriftyError("hawkeye: cap must be at least 1")

    def check(self, model: Model) -> None:
        super().check(model)
        small = partner_model(self.small, cast("TorchModel | TextModel", model))
        if self.small and self.handover == "think" and not (isinstance(small, TorchModel) and small.think.thinks):
            raise ThriftyError(
                f"hawkeye: {small.name!r} has no think block here that a chain could fill: leave out handover=think"
            )

    def flow(self, stage: Stage, job: Job) -> Flow:
        messages = self._asking(job.problem.messages)
        prompt = stage.render(job, messages)
        if not self.small:
            (row,) = yield [stage.call(prompt, messages=messages, stream=0)]
            return conclude(row, stage.method)
        small = partner_model(self.small, stage.model)
        (thought,) = yield [replace(think_only(stage, prompt, messages, stage.settings, self.cap), stream=0)]
        chain = thought_of(thought, stage.model, small)
        leak = leaks(chain)
        if self.strip:
            chain = clean_thought(chain, ())
        (response,) = yield [self._answering(stage, job, small, chain, thought.usage.generated)]
        told = {
            "large": thought.usage.thinking + thought.usage.answer,
            "small": response.usage.thinking + response.usage.answer,
            "read": response.usage.prompt + response.usage.injected,
            "leak": leak,
        }
        turns = [Turn(thought, "sample"), Turn(response, role_of(small, stage.model), reply_of(response))]
        return relay(turns, stage.method, self.slug, {self.slug: told})

    def _asking(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the conversation in which the large model is asked for a concise chain."""
        if self.ask == "none":
            return messages
        if self.ask in FORMAT_PROMPTS:
            return in_format(messages, self.ask)
        *before, question = messages
        return [*before, {**question, "content": f"{question['content']}\n\n{CHAIN_PROMPT}"}]

    def _answering(self, stage: Stage, job: Job, small: TorchModel | TextModel, chain: str, spent: int) -> Call:
        """Return the call of the small model, greedy, with what the chain has left of the limit."""
        room = max(stage.settings.max_tokens - spent, stage.settings.reserve, 1)
        settings = helper_settings(stage.settings, room).with_(stop=stage.settings.stop)
        if self.handover == "think" and isinstance(small, TorchModel):
            prompt = small.render(job.problem.messages)
            prefix = think_block(small, prompt, job.problem.question, chain)
            settings = settings.with_(max_tokens=room + len(small.encode(prefix)))  # what it is given is not its own
            return Call(prompt, settings=settings, model=small, prefix=prefix, stream=1)
        *before, question = with_system(job.problem.messages, RESPONSE_PROMPT)
        given = f"{question['content']}\n\nReasoning:\n{chain}" if chain else question["content"]
        return replace(ask(small, [*before, {**question, "content": given}], settings), stream=1)
