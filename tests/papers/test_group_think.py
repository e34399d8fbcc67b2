"""Group Think: the card's counts and coverage by the real mask, equality with the plain model, accounts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from conftest import make_toy
from thrifty.catalogue import Need
from thrifty.errors import MissingAccess, ThriftyError
from thrifty.methods import get_method
from thrifty.methods.collaborate.group_think import BETWEEN, CUE, HEADER, completion_coverage, duplicate_rate
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.cache import RowCache
from thrifty.models.torch import Layout, TorchModel, _lay_out
from thrifty.tasks import load_task
from thrifty.traces.think import THINK_FORMATS
from thrifty.traces.trace import Problem, Trace


def solve(model: TorchModel, spec: str, count: int = 3, **values: Any) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 120, **values})
    jobs = jobs_for(load_task("mix").problems(limit=count, seed=9), 1)
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs, settings)}


def segments(traces: dict[str, Trace]) -> dict[str, Any]:
    return {k: [(s.kind, s.phase, s.ids) for s in t.segments] for k, t in traces.items()}


# -- measures ---------------------------------------------------------------------------------------------------


def test_coverage_and_duplicates_of_the_card() -> None:
    split = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"], ["j", "k", "l"]]
    same = [["a", "b", "c"]] * 4
    assert (completion_coverage(split, 12), duplicate_rate(split)) == (1.0, 0.0)
    assert (completion_coverage(same, 12), duplicate_rate(same)) == (0.25, 0.75)
    assert completion_coverage(split, 6) == 1.0
    assert completion_coverage([["a", "x"], ["x"]], 4, valid={"a", "b"}) == 0.25
    assert duplicate_rate([["a", "a"], []]) == duplicate_rate([]) == 0.0


class Lister(TorchModel):
    """Lists the first item that it does not see used; who sees others' headers breaks ties by thread number.

    Its cache holds the tokens and their positions, so that it sees exactly what the masks of the real passes show.
    """

    def __init__(self, items: int) -> None:
        toy = make_toy()
        super().__init__(toy.network, toy.tokenizer, "lister")
        self.layers = 1
        self.items = [self.encode(letter)[0] for letter in "ABCDEFGHIJKL"[:items]]
        self.rest = [*self.encode("</think>"), *self.eos_ids]
        self.numbers = [*map(self.encode, "1234")]

    def forward(
        self,
        cache: RowCache,
        inputs: Tensor,
        lengths: Tensor,
        longest: int,
        equal: bool,
        keep: Tensor | None,
        layout: Layout | None = None,
    ) -> Tensor:
        if layout is None:
            places = lengths[:, None] + torch.arange(inputs.shape[1])
            layout = Layout(places, torch.ones(1, *[inputs.shape[1]] * 2).tril().bool().expand(len(inputs), -1, -1))
        states = [t.double()[:, None, :, None] for t in (inputs, layout.positions)]
        tokens, positions = (found[:, 0, :, 0].long() for found in cache.layers[0].update(*states))
        mask = _lay_out(layout, lengths, torch.arange(longest + inputs.shape[1]))[0][:, 0]
        logits = torch.full((*inputs.shape, self.vocabulary_size), -1e9, dtype=torch.float64)
        for row, time in torch.cartesian_prod(*map(torch.arange, inputs.shape)).tolist():
            seen = mask[row, time]
            place = int(layout.positions[row, time])
            chosen = self.next(tokens[row, seen].tolist(), positions[row, seen].tolist(), int(inputs[row, time]), place)
            logits[row, time, chosen] = 0.0
        return logits if keep is None else logits[:, keep]

    def next(self, tokens: list[int], positions: list[int], newest: int, place: int) -> int:
        close, end = self.rest
        if close in tokens:
            return end
        headers = sorted((p, t) for p, t in zip(positions, tokens, strict=True) if [t] in self.numbers)
        rank = max(sum(p <= place for p, _ in headers) - 1, 0)
        used = set(tokens) - ({newest} if newest in self.items else set())
        free = [item for item in self.items if item not in used]
        # beside its newest item it expects those that the others, if it sees any, have just written
        choice = free[rank + (max(len(headers), 1) if newest in self.items else 0) :]
        return choice[0] if choice else close


def listed(model: Lister, options: str, max_tokens: int = 400) -> tuple[list[list[int]], dict[str, Any]]:
    """Return the items by thinker and the events."""
    spec = f"group-think(instruct=false,header='{{number}}:',{options})"
    (trace,) = get_method(spec).solve(model, [Job(Problem.ask("What else?"))], Settings(max_tokens=max_tokens))
    own = [[t for t in s.ids if t in model.items] for s in trace.segments if s.kind == "thinking"]
    return [items for items in own if items], trace.events["group-think"]


def test_threads_that_see_each_other_cover_twelve_items_in_three_steps() -> None:
    model = Lister(12)

    def covered(options: str) -> tuple[float, float, int]:
        threads, events = listed(model, options)
        return (
            completion_coverage([map(str, items) for items in threads], 12),
            duplicate_rate([map(str, items) for items in threads]),
            events["steps"],
        )

    assert covered("thinkers=1,steps=12") == (1.0, 0.0, 12)
    assert covered("thinkers=4,steps=3") == (1.0, 0.0, 3)
    assert covered("thinkers=4,steps=3,visibility=independent") == (0.25, 0.75, 3)


def test_when_the_thinking_ends() -> None:
    model = Lister(5)
    threads, events = listed(model, "thinkers=2")
    assert [len(items) for items in threads] == [3, 2]
    assert (events["ended"], events["tokens"], events["steps"]) == (["closed", "closed"], [4, 3], 4)
    threads, events = listed(model, "thinkers=2,until=any")
    assert [len(items) for items in threads] == [3, 2]
    assert (events["ended"], events["tokens"], events["steps"]) == (["done", "closed"], [3, 3], 3)
    assert listed(model, "thinkers=2,steps=2")[1]["ended"] == ["limit", "limit"]


def test_what_ended_a_thread_is_paid_but_not_part_of_the_response() -> None:
    model = Lister(5)
    spec = "group-think(instruct=false,header='{number}:',thinkers=2)"
    (trace,) = get_method(spec).solve(model, [Job(Problem.ask("What else?"))], Settings(max_tokens=400))
    assert trace.thinking_text.count("</think>") == 1
    assert trace.closed_by == "group-think"
    prompt = len(model.encode_prompt(model.render([{"role": "user", "content": "What else?"}])))
    closing = len(model.encode("\n</think>\n\n"))
    assert trace.usage.prompt == 2 * prompt
    assert trace.usage.thinking == 5
    assert trace.usage.injected == 2 * 2 + len(model.encode(BETWEEN)) + closing
    assert trace.usage.reread == (2 + 3 + 1) + (2 + 2 + 1), "headers and items read again, and closers dropped"
    assert trace.usage.answer == 1
    assert trace.events["group-think"]["latency"] == 4 + closing + 1


# -- the real engine --------------------------------------------------------------------------------------------


def test_four_thinkers_of_25_steps_write_a_hundred_tokens(toy: TorchModel) -> None:
    endless = TorchModel(toy.network, toy.tokenizer, "endless", THINK_FORMATS["none"])
    endless.eos_ids = frozenset()
    spec = "group-think(thinkers=4,steps=25,header='')"
    for trace in solve(endless, spec, 2, max_tokens=150, loop_stop=False).values():
        told = trace.events["group-think"]
        assert (sum(told["tokens"]), told["steps"]) == (100, 25)
        assert told["tokens"] == [25] * 4
        assert told["latency"] == 25 + len(endless.encode(CUE)) + trace.usage.answer - 100
        # the prompt, 24 of the 25 steps (the last is read with the rest), prompt and threads, then one by one
        assert trace.usage.forward_passes == 1 + 24 + 1 + told["latency"] - 25 - 1


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("limits", [{}, {"thinking_budget": 20}, {"thinking_budget": 0}, {"answer_reserve": 0}])
def test_one_thinker_is_vanilla(toy: TorchModel, temperature: float, limits: dict[str, int]) -> None:
    plain, one = (
        solve(toy, s, max_tokens=60, temperature=temperature, **limits) for s in ("vanilla", "group-think(thinkers=1)")
    )
    assert segments(plain) == segments(one)
    for key, trace in one.items():
        assert (trace.stop_reason, trace.closed_by) == (plain[key].stop_reason, plain[key].closed_by)
        spent, usage = plain[key].usage, trace.usage
        assert (usage.total, usage.generated, usage.reread) == (spent.total, spent.generated, 0)
        # its last token is read even where the response ends with it
        assert usage.forward_passes - spent.forward_passes == (trace.closed_by is None)
        assert usage.flops == pytest.approx(spent.flops, rel=0.02)


def test_one_thinker_is_vanilla_where_the_thinking_ends_by_itself(pebble64: TorchModel) -> None:
    plain, one = (solve(pebble64, s, 2, max_tokens=500) for s in ("vanilla", "group-think(thinkers=1)"))
    assert segments(plain) == segments(one)


@pytest.mark.parametrize("layout", ["batch", "interleaved"])
def test_results_do_not_depend_on_the_batch(layout: str, pebble64: TorchModel) -> None:
    spec = f"group-think(layout={layout})"
    one, other = (solve(pebble64, spec, batch_size=size, temperature=0.8) for size in (1, 3))
    assert segments(one) == segments(other)
    assert {k: (t.events, t.usage.total) for k, t in one.items()} == {
        k: (t.events, t.usage.total) for k, t in other.items()
    }
    assert any(t.segments for t in one.values())


def test_thinkers_draw_from_streams_of_their_own(toy: TorchModel) -> None:
    """Without headers, offsets and sight of each other, only randomness tells two thinkers apart."""
    spec = "group-think(header='',slot=0,visibility=independent,instruct=false,steps=12)"
    plain = solve(toy, "vanilla", temperature=0.7)
    for key, trace in solve(toy, spec).items():  # a greedy run is sampled at the method's temperature
        first, second, *_ = (s.ids for s in trace.segments if s.kind == "thinking")
        assert first != second
        assert plain[key].segments[0].ids[: len(first)] == first, "the first thinker draws what the plain model draws"


def test_a_response_of_the_embedded_model(pebble: TorchModel) -> None:
    for trace in solve(pebble, "group-think(thinkers=3)", max_tokens=200).values():
        told, usage = trace.events["group-think"], trace.usage
        for number in (1, 2, 3):
            assert HEADER.format(number=number) in trace.thinking_text
        assert trace.answer_text.strip()
        assert usage.generated <= 200
        assert usage.thinking <= sum(told["tokens"])
        assert told["steps"] == max(told["tokens"])
        # a pass more for the prompt and one for the headers, and the last token is not read
        assert usage.forward_passes == told["latency"] + 1
        assert usage.total == usage.prompt + usage.generated + usage.reread
        assert 0 <= told["duplicates"] <= 1
        for kind in ("thinking", "answer", "injected"):
            assert sum(len(s.ids) for s in trace.segments if s.kind == kind) == getattr(usage, kind)
        assert Trace.from_json(trace.to_json()) == trace


def test_a_model_without_think_blocks_is_led_to_the_answer_by_a_cue(pebble: TorchModel) -> None:
    plain = TorchModel(pebble.network, pebble.tokenizer, "plain", THINK_FORMATS["none"])
    for trace in solve(plain, "group-think", 2).values():
        assert CUE in trace.answer_text
        assert trace.usage.injected == len(plain.encode(CUE)) + len(plain.encode(BETWEEN)) + 2 * len(
            plain.encode(HEADER.format(number=1))
        )
    assert segments(solve(plain, "group-think(thinkers=1)", 2)) == segments(solve(plain, "vanilla", 2))


def test_a_block_that_the_prompt_does_not_open_is_opened() -> None:
    model = make_toy()
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace(
        "{% else %}<think>\n{% endif %}", "{% endif %}"
    )
    assert model.render([{"role": "user", "content": "?"}]).endswith("<|assistant|>")
    for trace in solve(model, "group-think", 2).values():
        assert trace.segments[0].phase == "thinking"
        assert trace.closed_by == "group-think"
    assert segments(solve(model, "group-think(thinkers=1)", 2)) == segments(solve(model, "vanilla", 2))


def test_slots_and_limits(toy: TorchModel) -> None:
    default, wide, touching = (
        solve(toy, f"group-think(slot={slot},steps=10)", 2, temperature=0.0) for slot in (-1, 100, 0)
    )
    assert segments(default) != segments(wide)
    assert segments(default) != segments(touching)
    tight = len(toy.encode(HEADER.format(number=1))) + 4
    for trace in solve(toy, f"group-think(slot={tight})", 2).values():
        assert trace.events["group-think"]["tokens"] == [4, 4]
    for trace in solve(toy, "group-think(thinkers=4,slot=100000)", 2).values():  # kept within a context of 512
        assert trace.usage.prompt // 2 + trace.usage.generated < 512
    assert not any("group-think" in t.events for t in solve(toy, "group-think(thinkers=30)", 2).values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("group-think(thinkers=0)", "at least 1"),
        ("group-think(steps=-1)", "steps at least 0"),
        ("group-think(temperature=0.0)", "temperature above 0"),
        ("group-think(visibility=some)", "unknown visibility"),
        ("group-think(layout=tree)", "unknown layout"),
        ("group-think(until=one)", "unknown until"),
        ("group-think(header='Thinker {name}')", "{number}"),
        ("group-think+cgrs", "cannot be composed"),
    ],
)
def test_mistakes_get_one_line(spec: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message) as mistake:
        get_method(spec)
    assert "\n" not in str(mistake.value)


def test_a_slot_without_room_is_a_mistake(toy: TorchModel) -> None:
    with pytest.raises(ThriftyError, match="no room behind a header"):
        solve(toy, "group-think(slot=2)", 1)


def test_models_that_cannot_see_that_far_are_refused(toy: TorchModel) -> None:
    config = MistralConfig(
        vocab_size=toy.vocabulary_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1, sliding_window=5,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    windowed = TorchModel(MistralForCausalLM(config).eval(), toy.tokenizer, "windowed")
    with pytest.raises(ThriftyError, match="5 positions back"):
        get_method("group-think").solve(windowed, [], Settings())
    get_method("group-think").check(toy)


def test_a_model_of_text_is_refused(toy: TorchModel) -> None:
    class Narrow(TorchModel):
        gives = Need.TEXT | Need.SAMPLING

    with pytest.raises(MissingAccess, match="logits, kv"):
        get_method("group-think").check(Narrow(toy.network, toy.tokenizer, "narrow"))
