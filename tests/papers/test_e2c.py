"""E²C: plans are sampled from one reading of the prompt, chosen as documented, and executed from exactly the plan."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from thrifty.decoding.flow import Flow, conclude, run_flows
from thrifty.decoding.session import Session
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.base import Stage
from thrifty.methods.control.e2c import E2C, EXECUTION_PROMPT, JUDGE_PROMPT, SELECTORS, Plan, asking, without_thinking
from thrifty.models import embedded_folder
from thrifty.models.base import Job, Settings, jobs_for
from thrifty.models.formats import in_format
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.plans import similarity
from thrifty.traces.selection import vote
from thrifty.traces.trace import Trace

LINE = "e2c(end='\\n',plans=5,plan_tokens=40)"
"""Any pebble ends a first line soon, whether or not it was trained on plans."""
WORD = "e2c(end=' ',plans=6"
"""The toy babbles: a plan is what comes before its first blank."""


PROBLEMS = {problem.id: problem for problem in load_task("mix").problems(limit=6, seed=5)}


def solve(model: TorchModel, spec: str, count: int = 4, **values: float) -> dict[str, Trace]:
    settings = Settings(**{"max_tokens": 60, "loop_stop": False, **values})  # type: ignore[arg-type]  # plain numbers
    return {
        t.problem_id: t for t in get_method(spec).solve(model, jobs_for(list(PROBLEMS.values())[:count], 1), settings)
    }


def response(trace: Trace) -> tuple[int, ...]:
    return tuple(i for s in trace.segments if s.kind not in ("probe", "helper") for i in s.ids)


def test_the_vote_of_the_card() -> None:
    assert vote(["A", "B", "B"], [3, 2, 2]) == 1


def test_without_plans_it_is_vanilla(toy: TorchModel) -> None:
    for temperature in (0.0, 0.8):
        plain, none = (solve(toy, spec, temperature=temperature) for spec in ("vanilla", "e2c(plans=0)"))
        assert {k: t.segments for k, t in plain.items()} == {k: t.segments for k, t in none.items()}


def test_without_a_usable_plan_it_answers_plainly_and_charges_what_it_tried(toy: TorchModel) -> None:
    plain = solve(toy, "vanilla", temperature=0.8)
    for key, trace in solve(toy, "e2c(plan_tokens=1,end='never written')", temperature=0.8).items():
        assert response(trace) == response(plain[key])
        assert trace.events["e2c"] == {"style": "format", "plans": [], "unfinished": 4}
        prompt = len(toy.encode_prompt(toy.render(in_format(PROBLEMS[key].messages, "plan"))))
        assert trace.usage.probe == prompt + 4  # the prompt is read once for all four
        assert trace.usage.generated == plain[key].usage.generated


@pytest.mark.parametrize("style", ["format", "tags"])
def test_an_execution_is_greedy_and_goes_on_from_exactly_the_plan(pebble64: TorchModel, style: str) -> None:
    executed = 0
    for key, trace in solve(pebble64, f"{LINE[:-1]},style={style})", 3, max_tokens=90).items():
        if "chosen" not in trace.events["e2c"]:
            continue
        ((plan, _, _),) = trace.events["e2c"]["chosen"]
        messages = in_format(PROBLEMS[key].messages, "plan") if style == "format" else PROBLEMS[key].messages
        opening = "<EXPLORATION>\n" if style == "tags" else ""
        ids = response(trace)
        written = next(n for n in range(len(ids)) if f"{plan}\n" in pebble64.texts.text(ids[:n]))
        assert pebble64.texts.text(ids[:written]).strip() == opening + plan
        session = Session(pebble64)
        session.add([[*pebble64.encode_prompt(pebble64.render(messages)), *ids[:written]]])
        for token in ids[written : first_forced(trace, written)]:
            assert int(session.logits[0].argmax()) == token
            session.append(torch.tensor([token]))
            executed += 1
    assert executed > 20, "too little was executed for this to mean something"


def first_forced(trace: Trace, start: int) -> int:
    """Return the index of the first token from `start` on that a limit wrote."""
    at = 0
    for segment in trace.segments:
        if segment.kind == "injected" and at >= start:
            break
        at += len(segment.ids)
    return at


def test_the_account_holds_the_prompt_once_and_every_plan(toy: TorchModel) -> None:
    for key, trace in solve(toy, f"{WORD})").items():
        events, usage = trace.events["e2c"], trace.usage
        prompt = len(toy.encode_prompt(toy.render(in_format(PROBLEMS[key].messages, "plan"))))
        refused = sum(count for reason, count in events.items() if reason in ("empty", "unfinished", "leaking"))
        assert sum(count for _, count in events["plans"]) + refused == 6
        assert usage.prompt == prompt
        assert usage.generated == len(response(trace)) <= 60
        sides = [s.text for s in trace.segments if s.kind == "probe"]
        assert len(sides) == 5
        assert usage.probe >= len(sides)


def run_explore(method: E2C, model: TorchModel, count: int) -> list[list[Plan]]:
    """Return the sampled plans of some problems."""
    settings = Settings(max_tokens=60, batch_size=7, loop_stop=False)
    stage = Stage(model, settings, method.spec)
    sampled: list[list[Plan]] = []

    def flow(job: Job) -> Flow:
        root, plans = yield from method.explore(stage, job, "format")
        sampled.append(plans)
        return conclude(root, "test", [(plan.row, "probe") for plan in plans])

    list(run_flows(model, jobs_for(list(PROBLEMS.values())[:count], 1), settings, flow))
    return sampled


def test_the_likelihood_of_a_plan_is_the_mean_of_its_raw_log_probabilities(toy: TorchModel) -> None:
    method = E2C(plans=3, end=" ", plan_temperature=0.7)
    for plans in run_explore(method, toy, 3):
        for plan in plans:
            session = Session(toy)
            session.add([plan.row.prompt_ids])
            log_probabilities = []
            for token in plan.row.ids:
                log_probabilities.append(float(torch.log_softmax(session.logits[0], -1)[token]))
                session.append(torch.tensor([token]))
            assert plan.likelihood == pytest.approx(sum(log_probabilities) / len(log_probabilities))


def test_plans_are_refused_by_what_is_wrong_with_them(toy: TorchModel) -> None:
    method = E2C(plans=6, end=" ")
    (plans,) = run_explore(method, toy, 1)
    root = plans[0].row
    good = [plan for plan in plans if plan.row.stopped == "plan"]
    assert len(good) >= 2
    texts = ["1. Add.", "1.  add.", "", "The answer is 4.", "1. Halve."]
    changed = [Plan(good[i % len(good)].row, text, -1.0 - i) for i, text in enumerate(texts)]
    (unfinished,) = run_explore(E2C(plans=1, plan_tokens=1, end="never"), toy, 1)
    usable, refused = method.usable(root, [*changed, *unfinished], "format")
    assert [(plan.text, plan.count, plan.likelihood) for plan in usable] == [
        ("1. Add.", 2, -1.0),
        ("1. Halve.", 1, -5.0),
    ]
    assert refused == {"empty": 1, "leaking": 1, "unfinished": 1}


def chosen(trace: Trace) -> list[tuple[str, int]]:
    return [(text, weight) for text, weight, _ in trace.events["e2c"]["chosen"]]


@pytest.mark.parametrize("select", SELECTORS)
def test_every_selector_chooses_among_the_plans(toy: TorchModel, select: str) -> None:
    for trace in solve(toy, f"{WORD},select={select})").values():
        plans = dict(trace.events["e2c"]["plans"])
        picked = chosen(trace)
        assert {text for text, _ in picked} <= plans.keys()
        if select == "all":
            assert picked == list(plans.items())
        elif select == "cluster":
            assert [weight for _, weight in picked] == [sum(plans.values())]  # a quarter of 6 plans is one cluster
        else:
            assert len(picked) == 1


def test_clusters_weigh_what_they_hold(toy: TorchModel) -> None:
    for trace in solve(toy, f"{WORD},clusters=3)").values():
        plans = dict(trace.events["e2c"]["plans"])
        assert len(chosen(trace)) == min(3, len(plans))
        assert sum(weight for _, weight in chosen(trace)) == sum(plans.values())


def test_a_sentence_model_is_charged_as_a_helper(toy: TorchModel) -> None:
    folder = str(embedded_folder("pebble"))
    for trace in solve(toy, f"{WORD},embedder={folder!r})", 2).values():
        samples = [text for text, count in trace.events["e2c"]["plans"] for _ in range(count)]
        assert trace.usage.helper == sum(len(toy.encode(text)) for text in samples)  # they share their tokenizer


def test_the_judge_sees_all_plans_and_the_nearest_to_its_copy_is_executed(toy: TorchModel) -> None:
    for key, trace in solve(toy, f"{WORD},select=judge)").items():
        texts = [text for text, _ in trace.events["e2c"]["plans"]]
        copy = trace.segments[-1].text.replace("<|end|>", "").strip()
        assert chosen(trace)[0][0] == max(texts, key=lambda text: similarity(text, copy))
        assert trace.usage.probe > solve(toy, f"{WORD},select=likelihood)")[key].usage.probe


def test_plans_beyond_the_context_go_unseen_by_the_judge(toy: TorchModel) -> None:
    small = TorchModel(toy.network, toy.tokenizer, "small")
    longest = max(len(toy.encode_prompt(toy.render(asking(Job(p), JUDGE_PROMPT, plans="")))) for p in PROBLEMS.values())
    small.context_length = longest + 80  # room for the answer of a judge and a plan or two
    spec = "e2c(end=' ',plans=24,select=judge)"
    for trace in solve(small, spec).values():
        assert chosen(trace)
        assert sum(len(small.encode(text)) for text, _ in trace.events["e2c"]["plans"]) > 24


def test_a_random_choice_belongs_to_the_seed(toy: TorchModel) -> None:
    spec = f"{WORD},select=random)"
    runs = [[chosen(trace) for trace in solve(toy, spec, 3, seed=seed).values()] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def with_template(model: TorchModel, template: str) -> TorchModel:
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    return TorchModel(model.network, tokenizer, "other")


def test_a_planner_by_prompt_hands_over_the_plan_alone(toy: TorchModel) -> None:
    for key, trace in solve(toy, f"{WORD},style=prompt,select=likelihood)", 2).items():
        ((plan, _),) = chosen(trace)
        prompt = toy.render(asking(Job(PROBLEMS[key]), EXECUTION_PROMPT, plan=plan))
        assert plan in prompt
        assert trace.usage.prompt == len(toy.encode_prompt(prompt))
        assert trace.usage.generated == len(response(trace))
        assert sum(s.kind == "probe" for s in trace.segments) == 6


def test_a_planner_by_prompt_does_not_think(toy: TorchModel) -> None:
    messages = [{"role": "user", "content": "2 + 2?"}]
    prompt, prefix = without_thinking(toy, messages)
    assert prompt.endswith("</think>\n\n")
    assert not prefix
    stubborn = with_template(toy, "{{ messages[0].content }}<think>")
    assert without_thinking(stubborn, messages) == ("2 + 2?<think>", "\n</think>\n\n")


def test_a_style_follows_from_the_template(toy: TorchModel) -> None:
    assert E2C.style_for(toy) == "format"
    assert E2C.style_for(with_template(toy, "{{ messages[0].content }}<think>")) == "prompt"


@pytest.mark.parametrize("select", ["cluster", "likelihood", "all"])
def test_it_does_not_depend_on_the_batch(toy: TorchModel, select: str) -> None:
    spec = f"{WORD},select={select},temperature=0.5)"
    runs = [solve(toy, spec, 6, batch_size=size, temperature=0.7) for size in (1, 7)]
    for key, trace in runs[0].items():
        assert trace.segments == runs[1][key].segments
        assert trace.events == runs[1][key].events


def test_end_to_end_other_methods_steer_the_execution_and_not_the_plans(pebble: TorchModel) -> None:
    for trace in solve(pebble, f"{LINE}+cap(budget=0)", 6, max_tokens=120).values():
        assert trace.answer_text.strip()
        assert trace.closed_by == "cap"
        if "chosen" in trace.events["e2c"]:
            assert trace.thinking_text.startswith(trace.events["e2c"]["chosen"][0][0])


def test_options_out_of_range_are_refused(toy: TorchModel) -> None:
    wrong: Sequence[tuple[str, str]] = [
        ("e2c(select=best)", "select is one of"),
        ("e2c(style=xml)", "style one of"),
        ("e2c(plans=-1)", "at least 0"),
        ("e2c(plan_tokens=0)", "plan_tokens"),
        ("e2c(select=all,embedder=here)", "embedder is for"),
    ]
    for spec, message in wrong:
        with pytest.raises(ThriftyError, match=message):
            get_method(spec)
    with pytest.raises(ThriftyError, match="no sentence model"):
        solve(toy, "e2c(embedder='nowhere/at-all')")
