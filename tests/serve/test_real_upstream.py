"""The gateway before a real server, which somebody else has started.

``THRIFTY_TEST_UPSTREAM`` names it, and after a # the model: ``http://127.0.0.1:8001/v1#pebble``;
``THRIFTY_TEST_UPSTREAM_PREFILL`` how it goes on with an answer that has begun (``vllm``, ``assistant`` or ``none``).
docs/serve.md says how vLLM is started with the embedded model.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from thrifty.tasks import load_task

UPSTREAM = os.environ.get("THRIFTY_TEST_UPSTREAM", "")
PREFILL = os.environ.get("THRIFTY_TEST_UPSTREAM_PREFILL", "none")
QUESTIONS = 4
METHODS = ("vanilla", "cap(budget=40)", "first-try", "no-think", "majority(samples=3)", "majority(samples=3)+first-try")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not UPSTREAM, reason="THRIFTY_TEST_UPSTREAM names no server"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Talk to ``thrifty serve`` before the server, in a process of its own."""
    command = [sys.executable, "-m", "thrifty.cli", "serve", "--upstream", UPSTREAM, "--port", "0", "--no-log"]
    with subprocess.Popen(
        [*command, "--upstream-prefill", PREFILL], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        (address,) = re.findall(r"http://\S+?/v1", server.stderr.readline())
        yield openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        server.terminate()


def model_of(client: openai.OpenAI) -> str:
    return UPSTREAM.partition("#")[2] or next(iter(client.models.list())).id


def asked(client: openai.OpenAI, method: str, messages: Any, **options: Any) -> Any:
    name = f"{model_of(client)}@{method}"
    return client.chat.completions.create(model=name, messages=messages, temperature=0, **options)


def streamed(client: openai.OpenAI, method: str, messages: Any, **options: Any) -> tuple[str, str, Any]:
    reasoning = content = ""
    usage = None
    for chunk in asked(client, method, messages, stream=True, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
    return reasoning, content, usage


@pytest.mark.parametrize("method", METHODS)
def test_streaming_or_not_the_same_comes_back(client: openai.OpenAI, method: str) -> None:
    for problem in load_task("mix(level=easy)").problems(limit=QUESTIONS, seed=3):
        messages: Any = list(problem.messages)
        answer = asked(client, method, messages, seed=1, max_tokens=600)
        message = answer.choices[0].message
        reasoning, content, usage = streamed(client, method, messages, seed=1, max_tokens=600)
        assert message.content
        assert content == message.content
        if not method.startswith("majority"):  # which response is shown while it is written is another question
            assert reasoning == (getattr(message, "reasoning_content", None) or "")
            assert usage.completion_tokens == answer.usage.completion_tokens


@pytest.mark.parametrize("budget", [1, 8, 24, 64])
def test_an_answer_never_comes_back_empty(client: openai.OpenAI, budget: int) -> None:
    (problem,) = load_task("mix").problems(limit=1, seed=5)
    for method in METHODS:
        for options in ({}, {"n": 2}, {"stop": ["\n"]}):
            answer = asked(client, method, list(problem.messages), max_tokens=budget, **options)
            assert all(choice.message.content for choice in answer.choices), (method, options)


def test_usage_is_what_the_server_counts(client: openai.OpenAI) -> None:
    address, _, _ = UPSTREAM.partition("#")
    (problem,) = load_task("mix(level=easy)").problems(limit=1, seed=3)
    body = {"model": model_of(client), "messages": list(problem.messages), "temperature": 0, "max_tokens": 600}
    direct = httpx.post(f"{address}/chat/completions", json=body, timeout=300).json()["usage"]
    ours = asked(client, "vanilla", list(problem.messages), max_tokens=600).usage
    assert (ours.prompt_tokens, ours.completion_tokens) == (direct["prompt_tokens"], direct["completion_tokens"])


def test_stopping_early_saves_tokens(client: openai.OpenAI) -> None:
    task = load_task("mix(level=easy)")
    problems = list(task.problems(limit=8, seed=3))
    spent, right = dict[str, int](), dict[str, float]()
    for method in ("vanilla", "first-try"):
        answers = [asked(client, method, list(problem.messages), max_tokens=900) for problem in problems]
        spent[method] = sum(answer.usage.completion_tokens for answer in answers)
        right[method] = sum(
            task.score(problem, task.extract(problem, answer.choices[0].message.content))
            for problem, answer in zip(problems, answers, strict=True)
        )
    print(spent, right)  # for a documented run: pytest -s
    assert spent["first-try"] <= spent["vanilla"]
