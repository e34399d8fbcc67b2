"""What the gateway counts, for Prometheus and for the status page. Labels come from fixed or bounded lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from thrifty.errors import ThriftyError
from thrifty.serve.engine import Done
from thrifty.serve.saved import spent
from thrifty.serve.visits import KINDS, Visit
from thrifty.spec import parse_spec, split_specs

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_METHODS = 64
"""Compositions of methods that are told apart; clients may think of any number."""
OTHER = "other"
MEASURED = "measured"
"""The kind of all tokens of plain responses that nobody asked for, which are there to measure what is saved."""
_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOTAL = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counts of a server.

    Args:
        waiting: returns how many responses wait for their turn now.
        running: returns how many are being written.
        own: the operator's methods, which are told apart whatever clients think of.
    """

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int], own: Iterable[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self._methods = {_label(spec) for spec in ("vanilla", *own)}
        self._requests = Counter(
            "thrifty_requests", "Requests, by what they were told.", ["route", "method", "status"], registry=registry
        )
        self._responses = Counter(
            "thrifty_responses", "Responses, by why they ended.", ["model", "method", "exit_reason"], registry=registry
        )
        self._tokens = Counter(
            "thrifty_tokens", "Tokens that any model read or wrote.", ["model", "kind"], registry=registry
        )
        compared = ["model", "method"]
        self._expected = Counter(
            "thrifty_expected_tokens",
            "Tokens that plain responses take on average, for each response that was steered or bounded.",
            compared,
            registry=registry,
        )
        self._spent = Counter(
            "thrifty_spent_tokens", "Tokens that these responses took, prompts apart.", compared, registry=registry
        )
        self._saved = Gauge(
            "thrifty_saved_tokens", "Expected less spent tokens since the start.", compared, registry=registry
        )
        self._first = Histogram(
            "thrifty_first_token_seconds",
            "From a request to the first text of its response.",
            ["method"],
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self._total = Histogram(
            "thrifty_request_seconds",
            "From a request to the end of its response.",
            ["method"],
            buckets=_TOTAL,
            registry=registry,
        )
        Gauge("thrifty_queue_length", "Responses that wait for their turn.", registry=registry).set_function(waiting)
        Gauge("thrifty_running", "Responses that are being written.", registry=registry).set_function(running)

    def respond(self, model: str, done: Done, saved: dict[str, Any] | None) -> None:
        """Count the end of a response.

        Args:
            model: which wrote it.
            done: its end.
            saved: against plain responses, as `VanillaMean.saved` tells it; None where that is unknown, or where it is
                one of them.
        """
        method = self._method(done.method)
        self._responses.labels(model, method, done.exit_reason).inc()
        for kind in KINDS:
            self._tokens.labels(model, kind).inc(getattr(done.usage, kind))
        if saved is not None:
            self._expected.labels(model, method).inc(saved["mean_vanilla_tokens"])
            self._spent.labels(model, method).inc(spent(done))
            self._saved.labels(model, method).inc(saved["mean_vanilla_tokens"] - spent(done))

    def measure(self, model: str, done: Done) -> None:
        """Count a plain response that nobody asked for."""
        self._tokens.labels(model, MEASURED).inc(done.usage.total)

    def visit(self, visit: Visit) -> None:
        """Count a request that is over."""
        method = self._method(visit.method) if visit.method else ""
        self._requests.labels(visit.route, method, str(visit.status)).inc()
        if visit.model:
            self._total.labels(method).observe(visit.seconds)
        if visit.first_token is not None:
            self._first.labels(method).observe(visit.first_token)

    def text(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def totals(self) -> dict[str, Any]:
        """Return what the status page shows."""
        tokens = dict.fromkeys((*KINDS, MEASURED), 0)
        for labels, value in self._read(self._tokens):
            tokens[labels["kind"]] += int(value)
        methods: dict[str, dict[str, Any]] = {}

        def of(labels: dict[str, str]) -> dict[str, Any]:
            new: dict[str, Any] = {"responses": 0, "exit_reasons": {}, "expected": 0, "spent": 0}
            return methods.setdefault(labels["method"], new)

        for labels, value in self._read(self._responses):
            found = of(labels)
            found["responses"] += int(value)
            reasons = found["exit_reasons"]
            reasons[labels["exit_reason"]] = reasons.get(labels["exit_reason"], 0) + int(value)
        for name, counter in (("expected", self._expected), ("spent", self._spent)):
            for labels, value in self._read(counter):
                of(labels)[name] += round(value)
        statuses: dict[str, int] = {}
        for labels, value in self._read(self._requests):
            statuses[labels["status"]] = statuses.get(labels["status"], 0) + int(value)
        expected, used = (sum(found[name] for found in methods.values()) for name in ("expected", "spent"))
        return {
            "tokens": tokens,
            "total_tokens": sum(tokens.values()),
            "saved": {"expected": expected, "spent": used, "tokens": expected - used} if expected else None,
            "methods": methods,
            "requests": statuses,
            "first_token_seconds": self._mean(self._first),
            "request_seconds": self._mean(self._total),
        }

    def _read(self, counter: Counter) -> list[tuple[dict[str, str], float]]:
        (metric,) = counter.collect()
        return [(sample.labels, sample.value) for sample in metric.samples if sample.name.endswith("_total")]

    def _mean(self, histogram: Histogram) -> float | None:
        (metric,) = histogram.collect()
        sums = {end: sum(s.value for s in metric.samples if s.name.endswith(end)) for end in ("_sum", "_count")}
        return round(sums["_sum"] / sums["_count"], 4) if sums["_count"] else None

    def _method(self, spec: str) -> str:
        """Return the label of a specification: names only, and `OTHER` once there are too many."""
        label = _label(spec)
        if label not in self._methods and len(self._methods) >= MOST_METHODS:
            return OTHER
        self._methods.add(label)
        return label


@lru_cache(maxsize=256)
def _label(spec: str) -> str:
    try:
        return "+".join(parse_spec(part)[0] for part in split_specs(spec, "+"))
    except ThriftyError:  # a server may name a method in a way of its own
        return OTHER
