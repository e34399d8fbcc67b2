"""What is counted is what the clients were told, and the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families
from serving import Running, replay, serving, until

from thrifty.cli import app
from thrifty.serve.engine import Done
from thrifty.serve.guard import Door, digest
from thrifty.serve.metrics import MOST_METHODS, OTHER, Metrics
from thrifty.serve.saved import VanillaMean
from thrifty.serve.visits import Visit
from thrifty.traces.trace import Usage

ROOT = Path(__file__).resolve().parents[2]
MINE = {"Authorization": "Bearer mine"}
ASKED: dict[str, Any] = {"model": "replay", "messages": [{"role": "user", "content": "question"}]}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(
        replay(question="<think>a b c d e f</think>g"),
        Door({digest("mine"): "mine"}),
        VanillaMean(1000.0),
    ) as running:
        yield running


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def total(found: Samples, name: str, **labels: str) -> float:
    return sum(value for (of, has), value in found.items() if of == name and labels.items() <= dict(has).items())


def test_everything_that_was_told_is_counted(server: Running) -> None:
    def read() -> Samples:
        return samples(server.get("/metrics", headers=MINE).text)

    told = [
        server.post("/v1/chat/completions", {**ASKED, "model": model}, headers=MINE).json()["usage"]["thrifty"]
        for model in ("replay@cap(budget=3)", "replay@cap(budget=4)", "replay@first-try")
    ]
    streamed = server.post("/v1/chat/completions", {**ASKED, "stream": True}, headers=MINE)
    told.append(json.loads(streamed.text.split("data: ")[-2])["usage"]["thrifty"])
    assert server.post("/v1/chat/completions", {**ASKED, "n": 1000}, headers=MINE).status_code == 400
    assert server.post("/v1/chat/completions", ASKED).status_code == 401
    assert server.get("/no/such/<place>", headers=MINE).status_code == 404
    until(lambda: total(read(), "thrifty_requests_total", route="/v1/chat/completions") == 6)
    found = read()
    assert total(found, "thrifty_tokens_total") == sum(usage["total_tokens"] for usage in told)
    for kind in ("prompt", "thinking", "answer", "injected", "probe"):
        assert total(found, "thrifty_tokens_total", kind=kind) == sum(usage["tokens"][kind] for usage in told), kind
    assert total(found, "thrifty_responses_total", method="cap") == 2
    assert total(found, "thrifty_requests_total", status="200", method="cap") == 2
    assert total(found, "thrifty_requests_total", status="400") == 1
    assert total(found, "thrifty_requests_total", status="401") == 1
    assert total(found, "thrifty_requests_total", route="other", status="404") == 1
    steered = [usage for usage in told if usage["method"] != "vanilla"]
    assert total(found, "thrifty_expected_tokens_total") == 1000 * 3
    assert total(found, "thrifty_saved_tokens") == sum(usage["saved"]["tokens"] for usage in steered)
    assert total(found, "thrifty_request_seconds_count") == total(found, "thrifty_first_token_seconds_count") == 4
    assert total(found, "thrifty_running") == total(found, "thrifty_queue_length") == 0
    figures = server.get("/status.json", headers=MINE).json()
    assert figures["total_tokens"] == total(found, "thrifty_tokens_total")
    assert figures["saved"]["tokens"] == total(found, "thrifty_saved_tokens")
    assert sum(figures["methods"]["cap"]["exit_reasons"].values()) == 2


def test_clients_cannot_make_up_labels_without_end() -> None:
    metrics = Metrics(lambda: 0, lambda: 0, ["mild(delta=0.9)"])
    for number in range(2 * MOST_METHODS):
        metrics.visit(Visit("/v1/completions", 200, model="m", method=f"method-{number}(budget={number})"))
    methods = {dict(labels).get("method") for _, labels in samples(metrics.text().decode())}
    assert len(methods - {None}) == MOST_METHODS - 2 + 1
    assert OTHER in methods
    for own in ("vanilla", "mild(delta=0.7)"):
        metrics.visit(Visit("/v1/completions", 200, model="m", method=own))
    found = {dict(labels).get("method") for _, labels in samples(metrics.text().decode())}
    assert found - methods == {"vanilla", "mild"}, "those of the operator are told apart however many others there are"


def test_plain_responses_that_nobody_asked_for_are_spent_as_well() -> None:
    metrics = Metrics(lambda: 0, lambda: 0)
    usage = Usage(prompt=3, thinking=4, answer=5)
    metrics.measure("m", Done("stop", usage, 3, 4, "vanilla", "model", 0))
    figures = metrics.totals()
    assert (figures["tokens"]["measured"], figures["total_tokens"], figures["methods"]) == (12, 12, {})


def test_the_dashboard_asks_for_what_is_counted_and_for_nothing_else() -> None:
    families = Metrics(lambda: 0, lambda: 0).registry.collect()
    known = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    dashboard = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"thrifty_\w+", query)}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} == known
    documented = set(re.findall(r"`(thrifty_\w+)`", (ROOT / "docs" / "serve.md").read_text()))
    assert documented == known
    assert all(panel["title"] for panel in panels)


def test_the_scrape_example_asks_where_the_counts_are(server: Running) -> None:
    example = (ROOT / "deploy" / "prometheus.yml").read_text()
    (path,) = re.findall(r"metrics_path: (\S+)", example)
    assert server.get(path, headers=MINE).headers["content-type"].startswith("text/plain")
    assert server.get(path).status_code == 401


def test_the_container_starts_what_there_is() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)
    program, verb, *arguments = json.loads(entry)
    assert program == "thrifty"
    parameters = typer.main.get_command(app).commands[verb].make_context(verb, arguments).params
    assert parameters["key_env"] == "THRIFTY_KEYS"
    assert f"EXPOSE {parameters['port']}\n" in dockerfile
    assert f"127.0.0.1:{parameters['port']}/healthz" in dockerfile
    users = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    assert users == ["thrifty"]
