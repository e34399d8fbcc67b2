"""R2R: a small model writes, a router calls the large one for the tokens that would lead it astray."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.decoding.follower import Handover, Turns, choices, streams
from thrifty.decoding.gate import rare_classes
from thrifty.decoding.probe import entropy
from thrifty.decoding.router import (
    DIVERGENT,
    Examples,
    Router,
    RouterTraining,
    choose_threshold,
    divergence,
    evaluate_router,
    final_states,
    fit_router,
    top_logits,
)
from thrifty.decoding.row import Row
from thrifty.decoding.sampling import uniforms
from thrifty.errors import ThriftyError, UnknownName
from thrifty.methods.control.vanilla import Vanilla
from thrifty.methods.shared.divergence import VERIFIERS, Labeller, counts, sentence_ends
from thrifty.methods.shared.helpers import helper_model
from thrifty.methods.shared.two_models import TwoModelMethod
from thrifty.methods.tuning import Tuning, divide
from thrifty.models.base import Model
from thrifty.models.torch import TorchModel
from thrifty.traces.trace import Trace

STREAM = 12
"""Of the random numbers that decide who writes a token."""
THRESHOLDS = {"entropy": 0.45, "log-u": 2.275}
STRATEGIES = ("router", *THRESHOLDS, "random")
LOG_U_LOGITS = 10


@dataclass(frozen=True, kw_only=True)
class R2R(TwoModelMethod):
    """Let a small model write, and the main, large one only the tokens at which the small one would leave its path.

    After each step of the small model a router looks at its state, its candidate and its likeliest logits. Where the
    candidate is divergent with probability ``threshold`` or more, the main model reads what it has missed and writes
    that token instead. ``thrifty tune r2r`` trains the router for a pair of models; the other strategies need no
    training: ``entropy`` and ``log-u`` call the main model where the small one is unsure, ``random`` calls it at a
    rate. With ``threshold=0`` the main model writes everything, with a router's threshold above 1 the small one does.

    The account is that of vanilla on the small model, which reads or writes every token, and on top of it, as
    ``helper``, what the main model reads and writes; forward passes are the main model's. ``events["r2r"]`` tells how
    many tokens were routed, what each model did, and the mean number of ``activated_parameters`` of a token in both
    conventions: ``both`` counts the small model at every token, ``one`` the model that wrote it. For 2 routed of 10
    tokens and models of 1.5 and 32 they are 7.9 and 7.6.

    Source: R2R: Efficiently Navigating Divergent Reasoning Paths with Small-Large Model Token Routing,
    arXiv 2505.21600; card ``r2r``. Follows the release, with its router, labels and thresholds. Reconstruction: the
    wording of the judge's prompt, and the convention ``both``. Ours: labels without a judge, which are the default,
    the strategy ``random``, and log-u's negative logits counted as zero.

    Attributes:
        small: name or folder of the model that writes; its tokenizer must be the main model's.
        strategy: ``router``, ``entropy``, ``log-u`` or ``random``.
        threshold: score from which a token is routed; None for the router's own, 0.45 nats for ``entropy`` and 2.275
            for ``log-u``. The paper's routers ran at 0.406 (AIME), 0.42 (GPQA) and 0.1387 (LiveCodeBench).
        router: path of what ``thrifty tune r2r`` wrote.
        rate: share of tokens that ``random`` routes.
        window: tokens over which the mean score must fall below the threshold before the small model takes over again;
            1 looks at each token alone.
    """

    slug: ClassVar[str] = "r2r"
    needs: ClassVar[Need] = Need.LOGITS | Need.HIDDEN
    thinks: ClassVar[bool] = False
    strategy: str = "router"
    threshold: float | None = None
    router: str = ""
    rate: float = 0.12
    window: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UnknownName("strategy of r2r", self.strategy, STRATEGIES)
        if self.threshold is not None and not isinstance(self.threshold, int | float):
            raise ThriftyError("r2r: threshold must be a number")
        if not 0 <= self.rate <= 1 or self.window < 1:
            raise ThriftyError("r2r: rate must be from 0 to 1, window at least 1")
        if self.strategy == "random" and self.threshold is not None:
            raise ThriftyError("r2r: random takes a rate instead of a threshold, as r2r(strategy=random,rate=0.1)")

    @functools.cached_property
    def artefact(self) -> Artefact:
        """What the tuning wrote."""
        if not self.router:
            raise ThriftyError(
                "r2r needs a router trained for your models: `thrifty tune 'r2r(small=SMALL)' --out FILE`, then "
                "r2r(router=FILE); or a strategy without training, as r2r(strategy=entropy)"
            )
        return Artefact.load(self.router, self.slug)

    @property
    def looks(self) -> bool:
        """Whether the router is asked: below and above its probabilities there is nothing to ask."""
        return self.strategy == "router" and (self.threshold is None or 0 < self.threshold <= 1)

    @property
    def tau(self) -> float:
        """The threshold that holds."""
        if self.threshold is not None:
            return self.threshold
        if self.strategy == "random":
            return 1 - self.rate
        return THRESHOLDS[self.strategy] if self.strategy in THRESHOLDS else float(self.artefact.values["threshold"])

    def check(self, model: Model) -> None:
        super().check(model)
        if not self.looks:
            return
        assert isinstance(model, TorchModel)
        self.artefact.require(model)
        made_for = self.artefact.values["small"]
        try:
            replace(self.artefact, model=made_for).require(self.small_model(model))
        except ThriftyError as error:
            raise ThriftyError(
                f"{self.router} was trained for the small model {made_for.get('name')!r}, whose weights are not those "
                f"of {self.small!r}: give that one as small, or tune another router"
            ) from error

    def handover(self, small: TorchModel, large: TorchModel) -> Handover:
        router = None
        if self.looks:
            values = self.artefact.values
            router = Router.restored(values["sizes"], values["normalise"], self.artefact.networks["router"])
        return TokenRouter(small, large, self.strategy, self.tau, self.window, router and router.to(small.device))

    def events(self, row: Row, handover: Handover) -> dict[str, Any]:
        own, other = handover.shares(row)
        tokens = own.written + other.written
        parameters = (handover.model.parameters, handover.follower.model.parameters)
        found = activated_parameters(tokens, other.written, *parameters) if tokens else {}
        return {
            "routed": other.written,
            "routed_share": round(other.written / tokens, 4) if tokens else None,
            "activated_parameters": {k: round(v) for k, v in found.items()},
        }

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:
        """Label the main model's responses and train the router; options are those of `RouterOptions`."""
        options = tuning.read(RouterOptions)
        large, small = tuning.model, options.small_model(tuning.model)
        if options.top > small.vocabulary_size:
            raise ThriftyError(f"tuning 'r2r': {small.name!r} has {small.vocabulary_size} tokens: lower top to that")
        judge = helper_model(options.judge, large) if options.verifier == "judge" else None
        problems = tuning.problems()
        parts = divide(len(problems), tuning.settings.seed)
        answered = tuning.solve(Vanilla(), problems, what="answering")
        labeller = Labeller(small, large, tuning.task, tuning.settings, options.verifier, judge, options.top)
        ends, labelled, tokens = sentence_ends(large), dict[int, Examples](), 0
        for i, (trace,) in enumerate(answered):
            if is_finished(trace):
                ids = [token for segment in trace.segments for token in segment.ids]
                labelled[i] = labeller.label(problems[i], ids, ends)
                tokens += len(ids)
            tuning.progress("labelling", i + 1, len(problems), tokens)
        if not labelled:
            raise ThriftyError("no response of the main model came to an end: raise --max-tokens, or take another task")
        empty = next(iter(labelled.values())).take(slice(0))
        train, validate, rest = (Examples.joined([empty, *(labelled[i] for i in p if i in labelled)]) for p in parts)
        training = RouterTraining(
            **{f.name: getattr(options, f.name) for f in dataclasses.fields(RouterTraining) if f.name != "seed"},
            seed=tuning.settings.seed,
        )
        router = fit_router(functools.partial(options.fresh, small), small, train, validate, training)
        chances = divergence(router, small, validate)
        threshold = choose_threshold(chances, validate.labels == DIVERGENT, options.min_recall, options.max_false_share)
        found = counts(torch.cat([e.labels for e in labelled.values()]))
        report: dict[str, Any] = {
            "responses": {"answered": len(problems), "finished": len(labelled)},
            "labels": found,
            "warning": rare_classes({name: n for name, n in found.items() if name != "neutral"}),
            "threshold": round(threshold, 4),
            "router_on_held_out": evaluate_router(divergence(router, small, rest), rest.labels == DIVERGENT, threshold),
        }
        values = {
            "small": identity(small),
            "sizes": router.sizes,
            "normalise": router.normalise,
            "threshold": threshold,
        }
        networks = {"router": router.state_dict()}
        made_with = tuning.about(**dataclasses.asdict(options))
        return Artefact(cls.slug, identity(large), made_with, values, report, networks=networks)


@dataclass(frozen=True, kw_only=True)
class RouterOptions(TwoModelMethod):
    """How the router is trained, beside the small model; the network and its training are the paper's by default.

    Attributes:
        verifier: what tells whether a token is divergent: ``numbers``, where the sentence that it leads to states other
            numbers or only one of the two ends the thinking; ``answer``, where the main model comes to another final
            answer from it; ``judge``, the verdict of a language model on the two sentences, as in the paper; ``none``,
            wherever the two models differ.
        judge: name or folder of that language model; empty for the main model itself.
        width: of the router's blocks.
        blocks: how many.
        top: logits that it sees.
        classes: 1 for divergent or not; 3 to tell also whether the tokens differ at all.
        normalise: softmax over the logits and layer norms on the other inputs.
        epochs: at the most.
        patience: epochs without a lower validation loss after which the training ends.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        batch_size: tokens in a step.
        recall_factor: by which the weight of divergent tokens exceeds what would balance them.
        min_recall: share of divergent tokens that the threshold must route.
        max_false_share: other tokens that it may route, of all; the strict variant's is 0.1.
    """

    slug: ClassVar[str] = R2R.slug
    needs: ClassVar[Need] = R2R.needs
    verifier: str = "numbers"
    judge: str = ""
    width: int = 1024
    blocks: int = 6
    top: int = 100
    classes: int = 1
    normalise: bool = False
    epochs: int = 50
    patience: int = 10
    learning_rate: float = 5e-5
    weight_decay: float = 5e-4
    batch_size: int = 1024
    recall_factor: float = 1.0
    min_recall: float = 0.95
    max_false_share: float = 1.0

    def __post_init__(self) -> None:
        if self.verifier not in VERIFIERS:
            raise UnknownName("verifier of r2r", self.verifier, VERIFIERS)
        if self.classes not in (1, 3):
            raise ThriftyError("tuning 'r2r': classes must be 1 or 3")
        if min(self.width, self.top, self.epochs, self.batch_size) < 1 or self.blocks < 0:
            raise ThriftyError("tuning 'r2r': width, top, epochs and batch_size must be at least 1, blocks at least 0")

    def fresh(self, small: TorchModel) -> Router:
        """Return an untrained router for a small model."""
        return Router(small.hidden_size, self.width, self.blocks, self.top, self.classes, self.normalise)


def is_finished(trace: Trace) -> bool:
    """Tell whether a response came to an end that the model chose, nothing in it being forced."""
    return trace.stop_reason == "eos" and trace.usage.injected == 0


def activated_parameters(tokens: int, routed: int, small: float, large: float) -> Mapping[str, float]:
    """Return the mean number of parameters that are active at a token, in both conventions; see `R2R`.

    Args:
        tokens: of the response, at least one.
        routed: of them, written by the large model.
        small: parameters of the small model, in any unit.
        large: of the large model, in the same unit.
    """
    share = routed / tokens
    return {"both": small + share * large, "one": (1 - share) * small + share * large}


def log_u(logits: Tensor, count: int = LOG_U_LOGITS) -> tuple[Tensor, Tensor]:
    """Return the aleatoric and the epistemic uncertainty that the highest logits tell, read as Dirichlet evidence.

    With x_i the K highest logits and S their sum, AU = -sum (x_i/S) (psi(x_i+1) - psi(S+1)) and EU = K/(S+K). Logits 8
    and 2 give 0.4547 and 0.1667. Negative logits are no evidence and count as zero.

    Args:
        logits: raw, ``(..., vocab)``.
        count: K.

    Returns:
        Two tensors ``(...)``.
    """
    evidence = logits.double().topk(count, dim=-1).values.clamp(min=0)
    total = evidence.sum(-1, keepdim=True)
    terms = evidence / total.clamp(min=1e-12) * (torch.digamma(evidence + 1) - torch.digamma(total + 1))
    return -terms.sum(-1), count / (total[..., 0] + count)


@dataclass
class _Path(Turns):
    """What the router remembers of a row: the state that predicts its next token, and its newest scores."""

    state: Tensor | None = None
    scores: deque[float] = field(default_factory=deque)


class TokenRouter(Handover):
    """Give the follower the tokens whose score reaches the threshold.

    Args:
        model: which writes the other tokens.
        follower: the large model.
        strategy: what the score is.
        threshold: from which a token is routed.
        window: scores whose mean must be below the threshold before a routed row is the model's own again.
        router: the network, None where the score takes none.
    """

    def __init__(
        self,
        model: TorchModel,
        follower: TorchModel,
        strategy: str,
        threshold: float,
        window: int = 1,
        router: Router | None = None,
    ) -> None:
        super().__init__(model, follower)
        self.strategy, self.threshold, self.window, self.router = strategy, threshold, window, router
        self.taps = (model.layers,) if router is not None else ()

    def turns(self) -> _Path:
        return _Path(scores=deque(maxlen=self.window))

    def see_hidden(self, rows: Sequence[Row], hidden: Mapping[int, Tensor]) -> None:
        if self.router is not None:
            for row, state in zip(rows, hidden[self.model.layers], strict=True):
                row.state[self].state = state

    def leads(self, rows: Sequence[Row], logits: Tensor) -> list[bool]:
        return [self._routes(row.state[self], s) for row, s in zip(rows, self.scores(rows, logits), strict=True)]

    def scores(self, rows: Sequence[Row], logits: Tensor) -> list[float]:
        """Return a score for each row: what is to be feared of the token that its own model would write."""
        if self.strategy == "router" and self.router is None:
            return [0.5] * len(rows)  # within what a router says; the threshold is not
        if self.strategy == "random":
            draws: list[float] = uniforms(*streams(rows), STREAM).tolist()
            return draws
        if self.router is None:
            found = entropy(logits) if self.strategy == "entropy" else log_u(logits)[0]
        else:
            states = torch.stack([row.state[self].state for row in rows])
            token = self.model.embed(choices(rows, logits)).float()
            top = top_logits(logits, self.router.sizes["top"])
            found = self.router.probabilities(final_states(self.model, states), token, top)
        values: list[float] = found.tolist()
        return values

    def _routes(self, path: _Path, score: float) -> bool:
        path.scores.append(score)
        return score >= self.threshold or (path.led and sum(path.scores) / len(path.scores) >= self.threshold)
