"""What a method is, and how methods compose."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from thrifty.catalogue import CATALOGUE, Entry, Need
from thrifty.errors import ThriftyError, UnknownName
from thrifty.models.base import Job, Model, Settings, TextModel
from thrifty.spec import checked_options
from thrifty.traces.trace import Message, Trace

if TYPE_CHECKING:
    from thrifty.decoding.artefact import Artefact
    from thrifty.decoding.controller import Controller, Drafter
    from thrifty.decoding.flow import Call, Flow
    from thrifty.methods.tuning import Tuning
    from thrifty.models.attention import AttentionPolicy
    from thrifty.models.torch import TorchModel


@dataclasses.dataclass(frozen=True)
class TextSteering:
    """What a steering method does to a response that a server streams as text.

    Attributes:
        budget: tokens at which the thinking is closed, as far as the server counts them; None for no limit.
        watch: makes what is shown each line of the thinking as it ends, and tells whether to close it there.
    """

    budget: int | None = None
    watch: Callable[[], Callable[[str], bool]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A published inference-time system; its hyperparameters are its fields.

    A method that steers one stream overrides `controllers` (and perhaps `prompt`) and composes with
    others of its kind. A method of several calls is a `FlowMethod`, whose calls the others may steer. Any
    other method overrides `solve` and stands alone.
    """

    slug: ClassVar[str]
    needs: ClassVar[Need] = Need.SAMPLING
    thinks: ClassVar[bool] = True
    """Whether it works on think blocks, so that a model without them is refused."""
    streams: ClassVar[bool] = True
    """Whether its response may be shown while it is written: what the main model writes first is what comes out."""

    @classmethod
    def entry(cls) -> Entry:
        """The catalogue's entry, which names the paper.

        Raises:
            UnknownName: the method comes from a package that does not list it.
        """
        if cls.slug not in CATALOGUE:
            raise UnknownName("catalogue entry", cls.slug, CATALOGUE)
        return CATALOGUE[cls.slug]

    @classmethod
    def tune(cls, tuning: Tuning) -> Artefact:  # noqa: ARG003  # for those that override it
        """Train or calibrate what the method needs to know of one model, on problems of a task's train split.

        Args:
            tuning: model, task, settings and options.

        Returns:
            What an option of the method takes by its path, once it is saved.

        Raises:
            ThriftyError: there is nothing to tune, or the problems do not tell enough.
        """
        raise ThriftyError(f"method {cls.slug!r} has nothing to tune")

    @property
    def spec(self) -> str:
        """How to name this very method: its slug and the fields that differ from their defaults."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.slug}({','.join(changed)})" if changed else self.slug

    def prompt(self, model: TorchModel, job: Job, prompt: str) -> str:
        """Return the rendered prompt to use instead of ``prompt``."""
        return prompt

    def controllers(self, model: TorchModel) -> list[Controller]:
        """Return the controllers that steer the decoding; fresh ones, for they remember rows."""
        return []

    def drafter(self, model: TorchModel) -> Drafter | None:
        """Return what guesses the tokens of the model's responses, None for nothing; a fresh one, for it remembers."""
        return None

    def attention(self, model: TorchModel) -> AttentionPolicy | None:
        """Return what decides what the model's rows attend to and keep, None for everything."""
        return None

    def over_text(self) -> TextSteering | None:
        """Return what it does where a response is only text that comes in pieces, None if that is not enough for it."""
        return None

    def settings(self, settings: Settings) -> Settings:
        """Return the settings to use instead of those of the run."""
        return settings

    @property
    def alone(self) -> bool:
        """Whether it runs a decoding of its own, beside which nothing else can."""
        return type(self).solve is not Method.solve

    def check(self, model: Model) -> None:
        """Refuse a model that this method cannot run on, before any work starts.

        Raises:
            MissingAccess: the model does not give what the method needs.
            ThriftyError: the model has no think blocks, and the method works on them.
        """
        model.require(self.needs, self.spec)
        think = getattr(model, "think", None)
        if self.thinks and think is not None and not think.thinks:
            raise ThriftyError(
                f"method {self.spec!r} steers think blocks, but {model.name!r} has none. "
                "If it has, name its markers: --think think, or --think '<open>,</close>'."
            )

    def solve(
        self, model: Model, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller] = ()
    ) -> Iterator[Trace]:
        """Answer problems with this method.

        Args:
            model: which answers; it must give what the method `needs`.
            jobs: what to answer; read lazily.
            settings: how to generate.
            watch: further controllers, which see every token after the method's own.

        Yields:
            A trace for each job, as they finish.
        """
        return solve([self], model, jobs, settings, watch)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a flow plays: the model, the settings, and the methods that steer every response of the main model.

    Attributes:
        model: the main model.
        settings: of the run, as the steering methods change them.
        method: the specification of the whole composition, which traces carry.
        parts: the steering methods.
        watch: further controllers, which see every token of the main model's responses.
        flow: the method whose flows play here.
        made: controllers of the steering methods that steer other rows already, None to make them.
    """

    model: TorchModel
    settings: Settings
    method: str
    parts: Sequence[Method] = ()
    watch: Sequence[Controller] = ()
    flow: FlowMethod | None = None
    made: Sequence[Controller] | None = None

    @functools.cached_property
    def controllers(self) -> list[Controller]:
        """The controllers of the steering methods, the same for all rows, and `watch`."""
        made = steering_controllers(self.parts, self.model) if self.made is None else self.made
        return [*made, *self.watch]

    @functools.cached_property
    def drafter(self) -> Drafter | None:
        """The one drafter of the steering methods, the same for all rows."""
        return next((d for part in self.parts if (d := part.drafter(self.model)) is not None), None)

    @functools.cached_property
    def own(self) -> list[Controller]:
        """The controllers of the flow method itself, the same for all jobs; it names them in the calls they are for."""
        return self.flow.controllers(self.model) if self.flow else []

    def render(self, job: Job, messages: Sequence[Message] | None = None) -> str:
        """Return the prompt of a job as the steering methods want it, empty for a model that takes messages.

        Args:
            job: what is answered.
            messages: to use instead of the job's own.
        """
        if isinstance(self.model, TextModel):
            return ""
        prompt = self.model.render(messages or job.problem.messages)
        for part in self.parts:
            prompt = part.prompt(self.model, job, prompt)
        return prompt

    def call(self, prompt: str = "", **options: Any) -> Call:
        """Return a call of the main model that the steering methods steer.

        Args:
            prompt: the rendered prompt.
            **options: fields of `Call`; controllers given here come before the steering methods' own.
        """
        from thrifty.decoding.flow import Call

        own = options.pop("controllers", ())
        settings = options.pop("settings", None) or self.settings
        return Call(prompt, [*own, *self.controllers], settings, drafter=self.drafter, **options)


class FlowMethod(Method):
    """A method of several calls for each problem; at most one in a composition, the others steer its calls."""

    streams: ClassVar[bool] = False

    def flow(self, stage: Stage, job: Job) -> Flow:
        """Return the flow that answers a job; see `thrifty.decoding.flow`."""
        raise NotImplementedError


def solve(
    parts: Sequence[Method], model: Model, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller] = ()
) -> Iterator[Trace]:
    """Decode with several methods at once; see `Method.solve`."""
    name = "+".join(part.spec for part in parts)
    for part in parts:
        part.check(model)
    flow = next((part for part in parts if isinstance(part, FlowMethod)), None)
    if isinstance(model, TextModel):
        for part in parts:
            settings = part.settings(settings)
        if flow is None:
            return model.respond(jobs, settings, name)
        from thrifty.decoding.text_flow import run_text_flows

        texts = Stage(model, settings, name)  # type: ignore[arg-type]  # such a flow doesn't look inside the model
        return run_text_flows(model, jobs, settings, functools.partial(flow.flow, texts))
    from thrifty.decoding.flow import run_flows
    from thrifty.decoding.loop import Plan, decode
    from thrifty.models.torch import TorchModel

    assert isinstance(model, TorchModel)
    stage = stage_of(parts, model, settings, watch)
    policy = attention_of(parts, model)
    if flow is not None:
        return run_flows(model, jobs, stage.settings, functools.partial(flow.flow, stage), policy)

    def plan(job: Job) -> Plan:
        return Plan(stage.render(job), stage.controllers, drafter=stage.drafter)

    return decode(model, jobs, stage.settings, plan, name, policy)


def stage_of(
    parts: Sequence[Method],
    model: TorchModel,
    settings: Settings,
    watch: Sequence[Controller] = (),
    made: Sequence[Controller] | None = None,
) -> Stage:
    """Return the stage on which methods play together; see `Stage`."""
    for part in parts:
        settings = part.settings(settings)
    flow = next((part for part in parts if isinstance(part, FlowMethod)), None)
    steering = [part for part in parts if not isinstance(part, FlowMethod)]
    return Stage(model, settings, "+".join(part.spec for part in parts), steering, watch, flow, made)


def steering_controllers(parts: Sequence[Method], model: TorchModel) -> list[Controller]:
    """Return the controllers of those methods that steer every response; fresh ones."""
    return [c for part in parts if not isinstance(part, FlowMethod) for c in part.controllers(model)]


def attention_of(parts: Sequence[Method], model: TorchModel) -> AttentionPolicy | None:
    """Return what decides what the rows of some methods attend to and keep, None for everything."""
    return next((policy for part in parts if (policy := part.attention(model)) is not None), None)


class Composition:
    """Several steering methods at work on the same stream, in the order given.

    Args:
        parts: the methods.

    Raises:
        ThriftyError: a part does more than steer one stream, or stands twice.
    """

    def __init__(self, parts: Sequence[Method]) -> None:
        alone = [p.slug for p in parts if p.alone]
        if alone and len(parts) > 1:
            raise ThriftyError(f"{alone[0]!r} runs a decoding of its own and cannot be composed with +")
        twice = {p.slug for p in parts if sum(q.slug == p.slug for q in parts) > 1}
        if twice:
            raise ThriftyError(f"{twice.pop()!r} stands twice in one composition")
        drafting = [p.slug for p in parts if type(p).drafter is not Method.drafter]
        if len(drafting) > 1:
            raise ThriftyError(f"{drafting[0]!r} and {drafting[1]!r} both draft: one of them is enough")
        attending = [p.slug for p in parts if type(p).attention is not Method.attention]
        if len(attending) > 1:
            raise ThriftyError(
                f"{attending[0]!r} and {attending[1]!r} both decide what the model attends to: take one of them"
            )
        flows = [p.slug for p in parts if isinstance(p, FlowMethod)]
        if len(flows) > 1:
            raise ThriftyError(
                f"{flows[0]!r} and {flows[1]!r} each make several calls for a problem: compose one of them with "
                "methods that steer a single response"
            )
        self.parts = list(parts)

    @property
    def spec(self) -> str:
        """The specification that makes it again."""
        return "+".join(p.spec for p in self.parts)

    @property
    def streams(self) -> bool:
        """Whether its response may be shown while it is written; see `Method.streams`."""
        return all(p.streams for p in self.parts)

    @property
    def calls(self) -> str:
        """The slug of the part that makes several calls, empty where there is none."""
        return next((p.slug for p in self.parts if isinstance(p, FlowMethod)), "")

    @property
    def thinned(self) -> str:
        """The specification of the part that decides what rows attend to, empty where they attend to everything."""
        return next((p.spec for p in self.parts if type(p).attention is not Method.attention), "")

    @property
    def needs(self) -> Need:
        """Everything that any part needs."""
        needs = Need.NONE
        for part in self.parts:
            needs |= part.needs
        return needs

    def check(self, model: Model) -> None:
        """Refuse a model that any part cannot run on; see `Method.check`."""
        for part in self.parts:
            part.check(model)

    def solve(
        self, model: Model, jobs: Iterable[Job], settings: Settings, watch: Sequence[Controller] = ()
    ) -> Iterator[Trace]:
        """Answer problems; see `Method.solve`."""
        if len(self.parts) == 1:
            return self.parts[0].solve(model, jobs, settings, watch)
        return solve(self.parts, model, jobs, settings, watch)


def build(cls: type[Method], options: dict[str, Any]) -> Method:
    """Make a method from options as a user writes them.

    Raises:
        ThriftyError: an option that the method does not have, or a value of the wrong type.
    """
    return cls(**checked_options(cls, options, f"method {cls.slug!r}"))
