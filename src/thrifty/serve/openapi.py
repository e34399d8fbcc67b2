"""The description of the API, made from the very models that read its bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from thrifty import __version__
from thrifty.serve.bodies import ChatBody, CompletionBody, ResponsesBody

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "method"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "context_length": {"type": ["integer", "null"]},
        "max_tokens": {"type": "integer"},
        "method": {"type": "string"},
    },
}
_USAGE = {"type": "object", "required": ["total_tokens", "thrifty"]}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {"choices": {"type": "array", "items": {"type": "object"}}, "usage": _USAGE},
}
_RESPONSE = {
    "type": "object",
    "required": ["id", "object", "created_at", "model", "status", "output", "usage"],
    "properties": {"output": {"type": "array", "items": {"type": "object"}}, "usage": _USAGE},
}
_REASONS = {
    "400": "The request is wrong; the message names the field and the fix.",
    "401": "The key is missing or unknown.",
    "403": "Without keys, only this machine is served.",
    "404": "There is no such model.",
    "408": "The body took too long to arrive.",
    "409": "Another request with this X-Request-ID is running.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests are waiting, or the key has used up what it may have for now.",
    "500": "The server failed.",
    "503": "The server is shutting down, or the request waited too long.",
    "504": "The time for an answer was over before one began.",
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refused(*statuses: str) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {status: {"description": _REASONS[status], "content": _json(error)} for status in statuses}


def _generating(summary: str, body: str, answer: str) -> dict[str, Any]:
    """Return the description of a route that generates."""
    content = {**_json({"$ref": f"#/components/schemas/{answer}"}), "text/event-stream": {"schema": {"type": "string"}}}
    request_id = {
        "name": "X-Request-ID",
        "in": "header",
        "required": False,
        "description": "A name by which the request can be finished.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{8,64}$"},
    }
    return {
        "post": {
            "summary": summary,
            "parameters": [request_id],
            "requestBody": {"required": True, "content": _json({"$ref": f"#/components/schemas/{body}"})},
            "responses": {
                "200": {"description": "The answer, whole or as server-sent events.", "content": content},
                **_refused("400", "401", "403", "404", "408", "409", "413", "415", "429", "500", "503", "504"),
            },
        }
    }


def _showing(summary: str, kind: str) -> dict[str, Any]:
    """Return the description of a route that shows something that is not JSON."""
    found = {"200": {"description": "Found.", "content": {kind: {"schema": {"type": "string"}}}}}
    return {"get": {"summary": summary, "responses": {**found, **_refused("401", "403")}}}


def _getting(summary: str, schema: dict[str, Any], *statuses: str, **more: Any) -> dict[str, Any]:
    found = {"200": {"description": "Found.", "content": _json(schema)}, **_refused(*statuses)}
    return {"summary": summary, "responses": found, **more}


@cache
def describe() -> dict[str, Any]:
    """Return the OpenAPI document."""
    kinds = (ChatBody, CompletionBody, ResponsesBody)
    _, found = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}")
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    models = {"type": "object", "properties": {"data": {"type": "array", "items": _MODEL}}, "required": ["data"]}
    finishing = {"type": "object", "required": ["id", "object", "finishing"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "thrifty", "version": __version__, "license": {"name": "Apache-2.0"}},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": _generating("Answer a conversation.", "ChatBody", "Completion"),
            "/v1/completions": _generating("Continue texts.", "CompletionBody", "Completion"),
            "/v1/responses": _generating(
                "Answer in the Responses API, as far as text goes.", "ResponsesBody", "Response"
            ),
            "/v1/models": {"get": _getting("List the models.", models, "401", "403")},
            "/v1/models/{model}": {"get": _getting("Show a model.", _MODEL, "401", "403", "404", parameters=[name])},
            "/v1/requests/{id}/finish": {
                "post": _getting(
                    "Close the thinking of a running request, so that it answers now.",
                    finishing,
                    *("401", "403", "404", "408", "413", "415"),
                    parameters=[id],
                )
            },
            "/metrics": _showing("What was counted, for Prometheus.", "text/plain"),
            "/status": _showing("A page that shows what is spent and saved.", "text/html"),
            "/status.json": {"get": _getting("What that page shows.", {"type": "object"}, "401", "403")},
            "/openapi.json": {"get": _getting("This description.", {"type": "object"}, "401", "403")},
            "/healthz": {"get": {**_getting("Tell that the server lives.", {"type": "object"}), "security": []}},
        },
        "components": {
            "schemas": {**found["$defs"], "Error": _ERROR, "Completion": _COMPLETION, "Response": _RESPONSE},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
