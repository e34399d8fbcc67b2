"""A*-Decoding: A* search over reasoning steps, led by a process verifier."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from thrifty.decoding.flow import Flow
from thrifty.errors import ThriftyError
from thrifty.methods.base import Stage
from thrifty.methods.shared.steps import Growth, Node, StepwiseMethod
from thrifty.models.base import Job

COSTS = ("consistent", "greedy", "neglog", "length")
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "product": math.prod,
}
ROOT_VALUE = 0.5
"""v of the prompt, a constant that cancels in comparisons."""

T = TypeVar("T")


@dataclass(eq=False)
class State(Generic[T]):
    """A partial solution in the search.

    Attributes:
        item: what it stands for.
        value: v, how good it looks, from 0 to 1.
        g: cost of its path.
        f: by which it is chosen, the lowest first.
        scores: of the steps on its path.
        tokens: generated on its path.
        depth: steps on its path.
        order: of its birth.
        goal: whether it is a complete solution.
    """

    item: T
    value: float = ROOT_VALUE
    g: float = 0.0
    f: float = 1 - ROOT_VALUE
    scores: tuple[float, ...] = ()
    tokens: int = 0
    depth: int = 0
    order: int = 0
    goal: bool = False

    @property
    def rank(self) -> tuple[float, float, int, int]:
        """Lowest f first; of equal ones, to nine decimals, the larger v, then the deeper, then the older."""
        return round(self.f, 9), -round(self.value, 9), -self.depth, self.order

    def __lt__(self, other: State[T]) -> bool:
        return self.rank < other.rank


@dataclass(frozen=True)
class Budget:
    """What a search may spend; it ends when any of these is reached.

    Attributes:
        tokens: generated in all branches.
        scores: passes of the verifier.
        expansions: states expanded.
    """

    tokens: float = math.inf
    scores: float = math.inf
    expansions: float = math.inf


@dataclass(kw_only=True)
class Search(Generic[T]):
    """The search itself: which partial solution is expanded next. It knows neither models nor verifiers.

    With h = 1 - v, the costs are

    - ``consistent``: g grows by max(0, v' - v), f = g + max(h, h'). On a path f is h of the root plus all drops of v,
      so that it never falls, and h <= c + h' holds for each edge.
    - ``greedy``: f = h.
    - ``neglog``: f = -sum ln v.
    - ``length``: f = weight * generated tokens / budget + h.

    From a root of .5, children of .7 and .4 get f = .5 and .6; those of .6 and .9 behind the first get .6 and .5.

    Attributes:
        root: the prompt.
        cost: one of `COSTS`.
        aggregate: v of a path from the scores of its steps: a key of `AGGREGATES`.
        smooth: whether a step counts with the mean of its score and that of the step before it.
        goals: solutions to find.
        depth: steps after which a path is dead.
        frontier: open states to keep.
        budget: when to end.
        length_weight: of the ``length`` cost, whose budget is that of tokens.
        forget: called with the item of each state that will never be expanded nor completed.
        expanded, scored, tokens: spent so far.
    """

    root: T
    cost: str = "consistent"
    aggregate: str = "last"
    smooth: bool = False
    goals: int = 1
    depth: int = 40
    frontier: int = 64
    budget: Budget = field(default_factory=Budget)
    length_weight: float = 1.0
    forget: Callable[[T], object] = id
    expanded: int = 0
    scored: int = 0
    tokens: int = 0
    _open: list[State[T]] = field(default_factory=list)
    _done: list[State[T]] = field(default_factory=list)
    _dead: State[T] | None = None
    _born: int = 0

    def __post_init__(self) -> None:
        self._open.append(State(self.root))

    def pop(self) -> State[T] | None:
        """Return the next state to expand, None once the search is over."""
        while self._open and len(self._done) < self.goals:
            # a goal costs nothing, however little of the budget is left
            if not self._open[0].goal and self._spent():
                return None
            state = heapq.heappop(self._open)
            if state.goal:
                self._done.append(state)
                continue
            self.expanded += 1
            return state
        return None

    def _spent(self) -> bool:
        budget = self.budget
        spent = (self.tokens >= budget.tokens, self.scored >= budget.scores, self.expanded >= budget.expansions)
        return any(spent)

    def pay(self, tokens: int, scored: int) -> None:
        """Note what an expansion has cost.

        Args:
            tokens: generated.
            scored: passes of the verifier.
        """
        self.tokens += tokens
        self.scored += scored

    def add(
        self, parent: State[T], item: T, score: float, tokens: int = 0, goal: bool = False, dead: bool = False
    ) -> State[T]:
        """Add a child of an expanded state and return it.

        Args:
            parent: the state.
            item: what the child stands for.
            score: the verifier's, of its newest step.
            tokens: of its newest step.
            goal: whether it is a complete solution.
            dead: whether a limit has cut it off, so that it can be no part of one.

        Raises:
            ThriftyError: the score is not a number from 0 to 1.
        """
        if not 0 <= score <= 1:  # NaN is not, either
            raise ThriftyError(
                f"the verifier gave the score {score}: scores must be from 0 to 1; name another verifier or mend it"
            )
        scores = (*parent.scores, score)
        value = AGGREGATES[self.aggregate](smoothed(scores) if self.smooth else scores)
        self._born += 1
        child = State(item, value, 0.0, 0.0, scores, parent.tokens + tokens, parent.depth + 1, self._born, goal)
        child.g, child.f = self._costs(parent, child)
        if goal or (not dead and child.depth < self.depth):
            heapq.heappush(self._open, child)
            while len(self._open) > self.frontier:
                last = max(self._open)
                self._open.remove(last)
                heapq.heapify(self._open)
                self.forget(last.item)
        elif self._dead is None or child < self._dead:
            if self._dead is not None:
                self.forget(self._dead.item)
            self._dead = child
        else:
            self.forget(item)
        return child

    def _costs(self, parent: State[T], child: State[T]) -> tuple[float, float]:
        """Return g and f of a child."""
        distance = 1 - child.value
        if self.cost == "greedy":
            return 0.0, distance
        if self.cost == "neglog":
            g = parent.g - (math.log(child.value) if child.value else -math.inf)
            return g, g
        if self.cost == "length":
            g = self.length_weight * child.tokens / self.budget.tokens
            return g, g + distance
        return parent.g + max(0.0, child.value - parent.value), parent.g + max(1 - parent.value, distance)

    def result(self) -> tuple[State[T], bool]:
        """Return the best solution; without any, the best partial one, which is then to be completed.

        Solutions that were found but not yet chosen when the budget ended count too.

        Returns:
            The state, and whether it is a solution.
        """
        solutions = self._done or [state for state in self._open if state.goal]
        if solutions:
            return min(solutions), True
        # the prompt alone is left where nothing was expanded
        partial = [*self._open, *([self._dead] if self._dead else [])]
        return min(partial), False


def smoothed(scores: Sequence[float]) -> tuple[float, ...]:
    """Return each score's mean with the one before it; .8 .2 .6 gives .8 .5 .4."""
    return tuple((a + b) / 2 for a, b in zip((scores[0], *scores), scores, strict=False))


def distinct(nodes: Sequence[Node]) -> list[Node]:
    """Return the first of each group of nodes whose newest steps read the same."""
    return list({node.text: node for node in reversed(nodes)}.values())[::-1]


@dataclass(frozen=True, kw_only=True)
class AStarDecoding(StepwiseMethod):
    """Expand the most promising partial solution first: several samples of its next step, scored by a verifier.

    Source: A*-Decoding: Token-Efficient Inference Scaling, arXiv 2505.13672; card ``astar-decoding``. The states, the
    sampled steps, the choice by f = g + h and h from a process verifier are the paper's. Reconstruction, for the paper
    prints neither: the formulas of g and h (see `Search`), the ties, all numbers. A solution found before the budget
    ended is taken even if it was not chosen yet.

    The response is the chosen path; steps off it count as ``probe`` and follow as side streams. Caches of all open
    states are kept, so that nothing is read twice: memory grows with ``frontier``.

    Attributes:
        k: steps sampled from a state.
        step: where a step ends: at a blank line (``paragraph``), at a ``line``, or with the ``response``.
        step_tokens: limit on a step.
        temperature: of the steps; -1 for that of the run, with which k = 1 and ``step=response`` are the plain model.
        depth: steps after which a path is dead.
        goals: solutions to find; the best is returned.
        frontier: open states to keep.
        cost: ``consistent``, ``greedy``, ``neglog`` or ``length``.
        length_weight: of the tokens in the ``length`` cost.
        aggregate: v of a path from the scores of its steps: ``last``, ``min`` or ``product``.
        smooth: let a step count with the mean of its score and that of the step before it.
        tokens: budget of generated tokens in all branches; 0 for k times the limit on a response.
        scores: budget of partial solutions scored; 0 for none.
        expansions: budget of states expanded; 0 for none.
        verifier: which scores: ``pebble-verifier`` or a folder.
    """

    slug: ClassVar[str] = "astar-decoding"
    k: int = 4
    goals: int = 1
    frontier: int = 64
    cost: str = "consistent"
    length_weight: float = 1.0
    aggregate: str = "last"
    smooth: bool = False
    tokens: int = 0
    scores: int = 0
    expansions: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "goals", "frontier"):
            if getattr(self, name) < 1:
                raise ThriftyError(f"{self.slug}: {name} must be at least 1")
        for name in ("tokens", "scores", "expansions"):
            if getattr(self, name) < 0:
                raise ThriftyError(f"{self.slug}: {name} must be at least 0, which stands for no budget of its own")
        for name, known in (("cost", COSTS), ("aggregate", tuple(AGGREGATES))):
            if getattr(self, name) not in known:
                raise ThriftyError(f"{self.slug}: {name} is one of {', '.join(known)}, not {getattr(self, name)!r}")

    @property
    def width(self) -> int:
        return self.k

    def flow(self, stage: Stage, job: Job) -> Flow:
        growth = Growth(stage, job, self.judge)
        budget = Budget(
            self.tokens or self.k * stage.settings.max_tokens, self.scores or math.inf, self.expansions or math.inf
        )
        (root,) = yield from growth.root()
        search = Search(
            root=root,
            cost=self.cost,
            aggregate=self.aggregate,
            smooth=self.smooth,
            goals=self.goals,
            depth=self.depth,
            frontier=self.frontier,
            budget=budget,
            length_weight=self.length_weight,
            forget=growth.forget,
        )
        while (state := search.pop()) is not None:
            grown = yield from growth.grow([state.item] * self.k)
            children = distinct(grown)
            for twin in set(grown) - set(children):
                growth.forget(twin)
            search.pay(sum(node.tokens for node in grown), len(children))
            for node, score in zip(children, growth.score(children), strict=True):
                search.add(state, node, score, node.tokens, node.ended, dead=not node.open)
        best, found = search.result()
        chosen = best.item
        if chosen.open:
            (chosen,) = yield from growth.complete(chosen)
        noted = {
            "f": round(best.f, 6),
            "v": round(best.value, 6),
            "scores": [round(score, 4) for score in best.scores],
            "tokens": growth.tokens,
            "prm_calls": growth.scored,
            "expanded": search.expanded,
            "incomplete": not found,
        }
        return growth.conclude(chosen, {self.slug: noted})
