"""The invariant: an answer never comes back empty because the thinking ate the budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, Wordy, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server of a model that thinks for ever if nobody ends it."""
    with serving(Wordy.make(), slots=8) as running:
        yield running


def contents(server: Running, model: str, stream: bool, **options: Any) -> tuple[list[str], Any]:
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "1 + 1"}], "seed": 3, **options}
    if not stream:
        answer = server.client().chat.completions.create(**asked)
        return [choice.message.content for choice in answer.choices], answer.usage
    told = [""] * options.get("n", 1)
    usage = None
    for chunk in server.client().chat.completions.create(stream=True, **asked):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            told[choice.index] += choice.delta.content or ""
    return told, usage


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7, 8, 13, 40])
def test_whatever_the_limit(server: Running, limit: int, stream: bool) -> None:
    told, usage = contents(server, "wordy", stream, max_tokens=limit)
    assert all(told)
    assert usage.completion_tokens == limit


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "method",
    ["cap(budget=100000)", "s1(minimum=100)", "cgrs+first-try", "stand", "prompt-lookup", "no-think", "concisehint",
     "majority(samples=2)", "diffadapt(strategy=hard)", "soft-thinking", "tldr", "h2o"],
)  # fmt: skip
def test_whatever_the_method(server: Running, method: str, stream: bool) -> None:
    options = {"n": 2, "stop": ["\n\n", "###"], "temperature": 0.8, "max_tokens": 24}
    told, usage = contents(server, f"wordy@{method}", stream, **options)
    assert all(told)
    assert usage.completion_tokens >= 2


@pytest.mark.parametrize("left", [1, 2, 3, 4, 5, 9])
def test_whatever_the_context_leaves(server: Running, left: int) -> None:
    model = server.engine.model
    words = "one " * model.context_length
    while len(model.encode_prompt(model.render([_user(words)]))) > model.context_length - left:
        words = words[:-4]
    answer = server.post("/v1/chat/completions", {"model": "wordy", "messages": [_user(words)]})
    if answer.status_code == 400:
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert left <= model.close_length, "there was room to close the thinking and answer"
        return
    assert answer.json()["choices"][0]["message"]["content"]
    assert answer.json()["usage"]["total_tokens"] <= model.context_length


@pytest.mark.parametrize("stream", [False, True])
def test_whatever_a_method_makes_of_the_limit(server: Running, stream: bool) -> None:
    told, usage = contents(server, "wordy@diffadapt(strategy=easy,easy_budget=0.1)", stream, max_tokens=20)
    assert all(told)
    assert usage.thrifty["exit_reasons"] == ["max_tokens"]
    assert usage.completion_tokens <= 20


def _user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_what_would_open_another_block_is_text_in_the_room_kept_for_the_answer() -> None:
    model = Wordy.make()
    opener = model.encode("<think>")
    assert len(opener) == 1
    model.silent[opener[0]] = False
    model.network.lm_head.weight.data[opener[0]] = 0.0  # among random logits the best of them all, now and then
    with serving(model, slots=4) as server:
        for seed in range(4):
            told, _ = contents(server, "wordy", False, max_tokens=40, temperature=2.0, seed=seed, n=2)
            assert all(told)
            assert not any("<think>" in text for text in told)
