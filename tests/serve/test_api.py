"""The API as the official client and curl see it: streamed or not, the same text and the same counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, Wordy, replay, serving

ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "1 + 1"}],
    "max_tokens": 32,
    "seed": 5,
    "temperature": 2.0,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Wordy.make(), slots=8, offered={"brief": "cap(budget=4)"}) as running:
        yield running


def ask(server: Running, model: str = "wordy", **changes: Any) -> Any:
    return server.client().chat.completions.create(model=model, **{**ASKED, **changes})


def streamed(server: Running, model: str = "wordy", **changes: Any) -> tuple[dict[int, dict[str, str]], Any]:
    """Return what a stream says of each choice, and the usage in its last chunk."""
    told: dict[int, dict[str, str]] = {}
    usage = None
    for chunk in ask(server, model, stream=True, **changes):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            own = told.setdefault(choice.index, {"content": "", "reasoning": "", "finish": ""})
            own["content"] += choice.delta.content or ""
            own["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            assert getattr(choice.delta, "reasoning", None) == getattr(choice.delta, "reasoning_content", None)
            own["finish"] = choice.finish_reason or own["finish"]
    return told, usage


def without_time(usage: Any) -> dict[str, Any]:
    told = usage.model_dump()
    del told["thrifty"]["wall_seconds"], told["thrifty"]["saved"]
    return told  # type: ignore[no-any-return]  # it comes from JSON


@pytest.mark.parametrize("method", ["vanilla", "cap(budget=4)", "cgrs+first-try", "majority(samples=2)"])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_streams_tell_what_whole_answers_tell(server: Running, method: str, options: dict[str, Any]) -> None:
    whole = ask(server, f"wordy@{method}", n=2)
    told, usage = streamed(server, f"wordy@{method}", n=2, **options)
    for choice in whole.choices:
        assert told[choice.index]["content"] == choice.message.content
        assert told[choice.index]["reasoning"] == (getattr(choice.message, "reasoning_content", None) or "")
        assert told[choice.index]["finish"] == choice.finish_reason
    assert without_time(usage) == without_time(whole.usage)
    assert whole.usage.thrifty["method"] == method


def test_samples_differ_and_a_seed_repeats_them(server: Running) -> None:
    first, second = ask(server, n=2).choices
    assert first.message.content != second.message.content
    assert ask(server).choices[0].message.content == first.message.content
    drawn = ask(server, seed=None)
    again = ask(server, seed=drawn.usage.thrifty["seed"])
    assert again.choices[0].message.content == drawn.choices[0].message.content


def test_a_method_is_chosen_by_name_by_field_or_by_the_server(server: Running) -> None:
    by_field = {"thrifty": {"method": "cap", "params": {"budget": 4}}}
    answers = [ask(server, "wordy@cap(budget=4)"), ask(server, extra_body=by_field), ask(server, "wordy@brief")]
    assert [a.usage.thrifty["method"] for a in answers] == ["cap(budget=4)"] * 3
    assert [a.usage.thrifty["exit_reasons"] for a in answers] == [["max_tokens"]] * 3
    assert len({a.choices[0].message.content for a in answers}) == 1
    assert ask(server).usage.thrifty["method"] == "vanilla"


def test_a_budget_bounds_the_thinking(server: Running) -> None:
    bounded = ask(server, extra_body={"thrifty": {"budget": 6}}).usage
    assert bounded.thrifty["tokens"]["thinking"] == 6
    none = ask(server, reasoning_effort="none").usage
    assert none.thrifty["tokens"]["thinking"] == 0


def test_more_effort_never_thinks_less(server: Running) -> None:
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    spent = [
        ask(server, reasoning_effort=effort, max_tokens=64).usage.thrifty["tokens"]["thinking"] for effort in efforts
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


def test_effort_auto_thinks_longer_about_longer_questions(server: Running) -> None:
    def thought(question: str) -> int:
        messages = [{"role": "user", "content": question}]
        usage = ask(server, messages=messages, reasoning_effort="auto", max_tokens=64).usage
        return int(usage.thrifty["tokens"]["thinking"])

    assert thought("one and one") < thought("1 and 2 and 3 and 4 and 5") < thought("1 and 2 " * 10)


def test_logprobs_are_those_of_the_content(server: Running) -> None:
    whole = ask(server, logprobs=True, top_logprobs=3).choices[0]
    tokens = whole.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == whole.message.content
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 3 for t in tokens)
    assert all(t.top_logprobs == sorted(t.top_logprobs, key=lambda o: -o.logprob) for t in tokens)
    pieces = [
        token
        for chunk in ask(server, logprobs=True, top_logprobs=3, stream=True)
        for choice in chunk.choices
        for token in (choice.logprobs.content if choice.logprobs else [])
    ]
    assert pieces == tokens


def test_greedy_tokens_are_the_likeliest(server: Running) -> None:
    for token in ask(server, logprobs=True, top_logprobs=1, temperature=0).choices[0].logprobs.content:
        assert token.top_logprobs[0].bytes == token.bytes


def test_text_completions_continue_prompts(server: Running) -> None:
    options = {"model": "wordy", "max_tokens": 12, "seed": 3, "temperature": 2.0, "logprobs": 1}
    whole = server.client().completions.create(prompt=["one", "two"], n=2, **options)
    assert len({choice.text for choice in whole.choices}) == 4
    texts = dict.fromkeys(range(4), "")
    for chunk in server.client().completions.create(prompt=["one", "two"], n=2, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert whole.choices[0].logprobs.text_offset[0] == 0


def test_responses_stream_the_same_items(server: Running) -> None:
    options = {"model": "wordy@cap(budget=3)", "input": "1 + 1", "instructions": "Be brief.", "max_output_tokens": 24}
    whole = server.client().responses.create(**options)
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    deltas, final = "", None
    for number, event in enumerate(server.client().responses.create(stream=True, **options)):
        assert event.sequence_number == number
        deltas += event.delta if event.type == "response.output_text.delta" else ""
        final = event.response if event.type == "response.incomplete" else final
    assert final is not None
    assert deltas == final.output_text == whole.output_text
    assert final.output[0].content[0].text == whole.output[0].content[0].text
    details = whole.usage.output_tokens_details
    assert 0 < details.reasoning_tokens < whole.usage.output_tokens == 24


def test_models_are_listed_with_what_is_offered(server: Running) -> None:
    assert [model.id for model in server.client().models.list()] == ["wordy", "wordy@brief"]
    assert server.client().models.retrieve("wordy@brief").method == "cap(budget=4)"


def test_curl_gets_whole_answers_and_streams(server: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(body: dict[str, Any]) -> str:
        header = ("-H", "Content-Type: application/json")
        command = ["curl", "-sS", "-N", f"{server.address}/v1/chat/completions", *header, "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout

    whole = json.loads(curl({"model": "wordy", **ASKED}))
    lines = [line for line in curl({"model": "wordy", "stream": True, **ASKED}).split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    # who reads slowly gets several tokens at once, but never the reasoning and the answer together
    told = [set(chunk["choices"][0]["delta"]) - {"role", "reasoning"} for chunk in chunks[1:-1]]
    assert all(len(names) == 1 for names in told)
    assert {"reasoning_content"} in told
    assert {"content"} in told


def test_what_was_saved_is_told_against_the_mean_of_plain_responses() -> None:
    with serving(replay(one="<think>a b c d e</think>\n\nf g", two="<think>a b</think>\n\nf g")) as server:

        def saved(question: str, model: str) -> Any:
            asked = [{"role": "user", "content": question}]
            return server.client().chat.completions.create(model=model, messages=asked).usage.thrifty["saved"]

        assert saved("one", "replay@cap(budget=1000)") is None
        plain = saved("one", "replay")
        assert (plain["tokens"], plain["vanilla_responses"], plain["from"]) == (0, 1, "measured")
        assert saved("two", "replay@cap(budget=1000)")["tokens"] == 3
