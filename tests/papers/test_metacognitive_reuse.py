"""Metacognitive Reuse: handbooks made and used, self-improvement and critique, with recorded strategists."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from thrifty.catalogue import Need
from thrifty.decoding.artefact import Artefact, identity
from thrifty.errors import ThriftyError
from thrifty.methods import get_method
from thrifty.methods.control.metacognitive_reuse import BCI_PROMPT, CRITIQUE_PROMPT, MetacognitiveReuse, bci_prompt
from thrifty.methods.shared.handbook import Behavior, Handbook, plan_notes, source_of
from thrifty.methods.shared.strategist import BEHAVIOR_PROMPT, REFLECTION_PROMPT, Curation, shortened
from thrifty.methods.tuning import Tuning
from thrifty.models.base import Job, Settings, TextModel, jobs_for
from thrifty.models.formats import in_format
from thrifty.models.torch import TorchModel
from thrifty.tasks import load_task
from thrifty.traces.trace import Problem, Segment, Trace, Usage

SLUG = "metacognitive-reuse"
TASK = "rg:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)"
TRAIN = list(load_task(TASK).problems(limit=10, seed=0, split="train"))
PROBLEMS = [replace(p, metadata={**p.metadata, "family": "sums"}) for p in load_task(TASK).problems(limit=7, seed=5)]
BOOK = Handbook(
    [
        Behavior(
            "behavior_columns", "Add column by column from the right.", ("sums",), (source_of(TRAIN[0].question),)
        ),
        Behavior("behavior_source", "Write the larger term first.", ("sums",), (source_of(PROBLEMS[0].question),)),
        Behavior("behavior_euclid", "Replace the larger number by the remainder.", ("gcd",), ("another question",)),
    ]
)
SETTINGS = Settings(max_tokens=60)


def solve(
    model: TorchModel, spec: str, problems: Sequence[Problem] = PROBLEMS, settings: Settings = SETTINGS
) -> dict[str, Trace]:
    return {t.problem_id: t for t in get_method(spec).solve(model, jobs_for(problems, 1), settings)}


def ids(traces: dict[str, Trace]) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    return {k: [(s.kind, s.ids) for s in t.segments] for k, t in traces.items()}


def saved(book: Handbook, path: Path, model: TorchModel) -> str:
    Artefact(SLUG, identity(model), values={"behaviors": book.values()}).save(path)
    return f"handbook='{path}'"


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory, pebble: TorchModel) -> str:
    return saved(BOOK, tmp_path_factory.mktemp("handbook") / "book.json", pebble)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_empty_handbook_is_vanilla(temperature: float, tmp_path: Path, pebble: TorchModel) -> None:
    option = saved(Handbook(), tmp_path / "empty.json", pebble)
    settings = SETTINGS.with_(temperature=temperature)
    found = solve(pebble, f"{SLUG}({option})", settings=settings)
    assert ids(found) == ids(solve(pebble, "vanilla", settings=settings))
    assert {t.events[SLUG]["retrieval"] for t in found.values()} == {"none"}


def test_behaviors_of_the_topic_are_in_the_prompt_but_those_of_the_question_itself(
    handbook: str, pebble: TorchModel
) -> None:
    found = solve(pebble, f"{SLUG}({handbook})")
    for problem in PROBLEMS:
        told = found[problem.id].events[SLUG]
        own = problem is PROBLEMS[0]
        assert (told["mode"], told["retrieval"], told["cut"]) == ("bci", "topic", 0)
        assert sorted(told["behaviors"]) == ["behavior_columns"] + ["behavior_source"] * (not own)
        given = [b for name in told["behaviors"] for b in BOOK.behaviors if b.name == name]
        prompt = pebble.render([{"role": "user", "content": bci_prompt(given, problem.question)}])
        assert found[problem.id].usage.prompt == len(pebble.encode_prompt(prompt))
        assert all(b.instruction in prompt for b in given)


def test_behaviors_can_be_appended_to_the_question(handbook: str, pebble: TorchModel) -> None:
    found = solve(pebble, f"{SLUG}({handbook},layout=appended)", PROBLEMS[:1])[PROBLEMS[0].id]
    asked = f"{PROBLEMS[0].question}\n\nBehaviors:\n- {BOOK.behaviors[0].line}"
    assert found.events[SLUG]["behaviors"] == [BOOK.behaviors[0].name]
    assert found.usage.prompt == len(pebble.encode_prompt(pebble.render([{"role": "user", "content": asked}])))
    assert bci_prompt([], "1 + 1?", "appended") == "1 + 1?"


def test_without_a_topic_the_embedding_decides(handbook: str, pebble: TorchModel) -> None:
    problem = replace(PROBLEMS[1], metadata={})
    (trace,) = solve(pebble, f"{SLUG}({handbook},k=2)", [problem]).values()
    assert (trace.events[SLUG]["retrieval"], len(trace.events[SLUG]["behaviors"])) == ("embedding", 2)


def test_behaviors_are_cut_by_rank_to_the_budget_and_to_the_window(tmp_path: Path, pebble: TorchModel) -> None:
    many = [Behavior(f"behavior_{i}", f"Add column by column, {'and carry, ' * i}from the right.") for i in range(60)]
    option = saved(Handbook(many), tmp_path / "many.json", pebble)
    plain = solve(pebble, "vanilla", PROBLEMS[:1])[PROBLEMS[0].id].usage.prompt
    everything = solve(pebble, f"{SLUG}({option},k=60)", PROBLEMS[:1])[PROBLEMS[0].id]
    half = solve(pebble, f"{SLUG}({option},k=60,budget=200)", PROBLEMS[:1])[PROBLEMS[0].id]
    ranked, kept = everything.events[SLUG]["behaviors"], half.events[SLUG]["behaviors"]
    assert 1024 < everything.usage.prompt <= pebble.context_length - SETTINGS.max_tokens
    assert everything.events[SLUG]["cut"] == 60 - len(ranked) > 0
    assert half.usage.prompt - plain <= 200
    assert 0 < len(kept) < len(ranked)
    assert kept == ranked[: len(kept)]


@pytest.mark.parametrize("options", ["{handbook}", "mode=critique", "rounds=1"])
def test_the_batch_does_not_matter(options: str, handbook: str, pebble64: TorchModel) -> None:
    spec = f"{SLUG}({options.format(handbook=handbook)},strategist_tokens=8)"
    runs = [ids(solve(pebble64, spec, settings=SETTINGS.with_(temperature=0.7, batch_size=size))) for size in (1, 7)]
    assert runs[0] == runs[1]


REPLY = json.dumps({"columns": "Add column by column from the right.", "told": "The sum is always {answer}."})


def recorded(traces: dict[str, Trace], problems: Sequence[Problem], path: Path, reply: str = REPLY) -> str:
    """Record a strategist on traces; on the last problem it writes no JSON."""
    lines = []
    for problem in problems:
        trace = traces[problem.id]
        solution = trace.text.replace("</think>", "").strip()
        known = {"question": problem.question, "solution": solution, "answer": trace.answer}
        json_reply = "I know of none." if problem is problems[-1] else reply.replace("{answer}", str(trace.answer))
        asked = {
            REFLECTION_PROMPT.format(**known): "It is sound. Columns would help.",
            BEHAVIOR_PROMPT.format(**known, reflection="It is sound. Columns would help."): json_reply,
        }
        lines += [json.dumps({"question": question, "response": text}) for question, text in asked.items()]
    path.write_text("\n".join(lines))
    return f"strategist='replay:{path}'"


def test_self_improvement_solves_again_with_what_its_own_trace_taught(
    tmp_path: Path, handbook: str, pebble64: TorchModel
) -> None:
    problems = PROBLEMS[:4]
    first = solve(pebble64, "vanilla", problems)
    strategist = recorded(first, problems, tmp_path / "replies.jsonl")
    found = solve(pebble64, f"{SLUG}({strategist})", problems)
    pooled = solve(pebble64, f"{SLUG}({strategist},{handbook},pool=true)", problems)
    given = [BOOK.behaviors[0]]
    revised = [
        replace(p, messages=({"role": "user", "content": bci_prompt(given, p.question)},)) for p in problems[:-1]
    ]
    second = solve(pebble64, "vanilla", revised)
    for problem in problems[:-1]:
        one, two, trace = first[problem.id], second[problem.id], found[problem.id]
        told = trace.events[SLUG]
        assert (told["behaviors"], told["leaking"]) == (["behavior_columns"], 1)
        assert told["answers"] == [one.answer, two.answer]
        assert trace.text == two.text
        assert trace.usage.generated == one.usage.generated + two.usage.generated
        assert trace.usage.prompt == one.usage.prompt + two.usage.prompt
        assert trace.usage.helper > 0
        expected = ["behavior_columns"] + ["behavior_source"] * (problem is not PROBLEMS[0])
        assert pooled[problem.id].events[SLUG]["behaviors"] == expected
    last = found[problems[-1].id]
    assert last.text == first[problems[-1].id].text
    assert (last.events[SLUG]["malformed"], last.events[SLUG]["behaviors"]) == (1, [])
    assert pooled[problems[-1].id].events[SLUG]["behaviors"]


def test_critique_revises_the_first_solution(pebble64: TorchModel) -> None:
    first, found = solve(pebble64, "vanilla", PROBLEMS[:3]), solve(pebble64, f"{SLUG}(mode=critique)", PROBLEMS[:3])
    for problem in PROBLEMS[:3]:
        one, trace = first[problem.id], found[problem.id]
        solution = one.text.replace("</think>", "").strip()
        prompt = CRITIQUE_PROMPT.format(question=problem.question, solution=solution)
        read = len(pebble64.encode_prompt(pebble64.render([{"role": "user", "content": prompt}])))
        assert trace.usage.prompt == one.usage.prompt + read
        assert trace.events[SLUG]["answers"] == [one.answer, trace.answer]


def test_the_template_strategist_asks_for_a_plan_and_takes_its_lines(pebble: TorchModel) -> None:
    for trace in Curation(strategist="template").solve(pebble, jobs_for(PROBLEMS[:2], 1), SETTINGS):
        (problem,) = (p for p in PROBLEMS if p.id == trace.problem_id)
        prompt = pebble.render(in_format(problem.messages, "plan"))
        assert trace.usage.prompt == len(pebble.encode_prompt(prompt))
        assert trace.usage.probe == 0
        notes = plan_notes(trace.text)
        assert notes
        assert trace.events[Curation.slug]["behaviors"] == [("behavior_sums", note) for note in notes]


def test_of_plans_stays_what_recurs_in_right_ones() -> None:
    solved = []
    for i, problem in enumerate(TRAIN):
        plan = f"Plan:\n1. Start with {i}00.\n2. Add column by column.\n3. Think of number{'x' * i} at last.\n\nDone."
        told = {Curation.slug: {"behaviors": [("behavior_sums", note) for note in plan_notes(plan)], "counts": {}}}
        solved.append((problem, Trace(problem.id, "", 0, 0, [], "eos", "model", correct=i < 6, events=told)))
    book, counts = Curation(strategist="template").collect(solved)
    assert [b.line for b in book.behaviors] == [
        "behavior_sums_1: Start with N.",
        "behavior_sums_2: Add column by column.",
    ]
    assert all(len(b.sources) == 6 for b in book.behaviors)
    assert (counts["traces"], counts["traces_not_right"], counts["not_recurring"]) == (10, 4, 6)
    assert len(Curation(strategist="template", recurring=7).collect(solved)[0]) == 0


def test_tuning_makes_a_handbook_that_the_method_reads(tmp_path: Path, pebble64: TorchModel) -> None:
    first = solve(pebble64, "vanilla", TRAIN)
    path = tmp_path / "replies.jsonl"
    recorded(first, TRAIN, path)
    options = {"strategist": f"replay:{path}", "merge": 0.95}
    artefact = MetacognitiveReuse.tune(Tuning(SLUG, pebble64, load_task(TASK), SETTINGS, 10, options))
    (behavior,) = artefact.values["behaviors"]
    assert behavior["sources"] == [source_of(p.question) for p in TRAIN[:-1]]
    report = artefact.report
    assert (report["behaviors"], report["malformed"], report["leaking"], report["duplicates"]) == (1, 1, 9, 8)
    assert report["tokens_for_solutions"] == sum(t.usage.total for t in first.values())
    assert report["tokens_for_extraction"] > 0
    artefact.save(tmp_path / "book")
    found = solve(pebble64, f"{SLUG}(handbook='{tmp_path / 'book'}')", [PROBLEMS[0], TRAIN[0]])
    assert found[PROBLEMS[0].id].events[SLUG]["behaviors"] == ["behavior_columns"]
    assert found[TRAIN[0].id].events[SLUG]["behaviors"] == []


def test_a_strategist_that_writes_no_json_makes_no_handbook(pebble: TorchModel) -> None:
    options = {"strategist_tokens": 8}
    with pytest.raises(ThriftyError, match=r"no behavior came of 10 problems .*malformed.*strategist=MODEL"):
        MetacognitiveReuse.tune(Tuning(SLUG, pebble, load_task(TASK), SETTINGS, 10, options))


def test_only_right_traces_teach_where_that_is_asked() -> None:
    told = {Curation.slug: {"behaviors": [("behavior_a", "Do the first thing.")], "counts": {}}}
    solved = []
    for i, correct in enumerate([True, False]):
        problem = Problem.ask(f"Question {i}?", id=str(i))
        solved.append((problem, Trace(problem.id, "", 0, 0, [], "eos", "model", correct=correct, events=told)))
    assert len(Curation().collect(solved)[0].behaviors[0].sources) == 2
    assert Curation(correct=True).collect(solved)[0].behaviors[0].sources == (source_of("Question 0?"),)


def test_a_solution_longer_than_the_window_loses_its_middle(pebble: TorchModel) -> None:
    def asking(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Look: {text}"}]

    long = "".join(f"{i} " for i in range(3000))
    cut = shortened(pebble, asking, long, 500)  # type: ignore[arg-type]  # messages are mappings
    assert cut is not None
    assert 400 < len(pebble.encode_prompt(pebble.render(cut))) <= 500
    assert cut[0]["content"].startswith("Look: 0 1 2 ")
    assert cut[0]["content"].endswith(" 2999 ")
    assert shortened(pebble, asking, long, 20) is None  # type: ignore[arg-type]  # messages are mappings
    assert shortened(pebble, asking, "short", 500) == asking("short")  # type: ignore[arg-type]  # as above


class Server(TextModel):
    """Text without an inside: it answers what it is asked for."""

    gives: ClassVar[Need] = Need.TEXT
    name = "server"

    def respond(self, jobs: Iterable[Job], settings: Settings, method: str = "vanilla") -> Iterator[Trace]:
        for job in jobs:
            question = job.problem.question
            text = "The answer is 5."
            if question.startswith(BCI_PROMPT[:20]):
                text = "By behavior_columns and behavior_other the answer is 6."
            elif "Reflection on the solution:" in question:
                text = REPLY
            usage = Usage(prompt=len(question) // 4, answer=len(text) // 4)
            segments = [Segment("answer", "answer", text)]
            yield Trace(job.problem.id, method, job.sample, 0, segments, "eos", "prompt", text[-2], usage=usage)


def test_a_model_that_gives_only_text_is_enough(handbook: str) -> None:
    (trace,) = get_method(f"{SLUG}({handbook})").solve(Server(), jobs_for(PROBLEMS[:1], 1), SETTINGS)
    told = trace.events[SLUG]
    assert (told["behaviors"], told["precision"]) == (["behavior_columns"], 0.5)
    assert told["cited"] == ["behavior_columns", "behavior_other"]
    (trace,) = get_method(SLUG).solve(Server(), jobs_for(PROBLEMS[:1], 1), SETTINGS)
    assert (trace.answer, trace.events[SLUG]["answers"]) == ("6", ["5", "6"])
    assert trace.usage.probe > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("mode=bci", "handbook"),
        ("pool=true", "handbook"),
        ("mode=bci,pool=true,handbook=x", "self-improve"),
        ("mode=guess", "self-improve"),
        ("retrieval=guess", "embedding"),
        ("layout=guess", "appended"),
        ("k=0", "at least 1"),
        ("rounds=-1", "at least 0"),
        ("strategist=template", "thrifty tune"),
    ],
)
def test_mistakes_are_told(options: str, message: str) -> None:
    with pytest.raises(ThriftyError, match=message):
        get_method(f"{SLUG}({options})")


def test_a_missing_handbook_is_told_before_any_work(pebble: TorchModel) -> None:
    with pytest.raises(ThriftyError, match=f"thrifty tune {SLUG}"):
        get_method(f"{SLUG}(handbook=nowhere)").check(pebble)
