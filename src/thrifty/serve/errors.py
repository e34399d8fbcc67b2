"""What the gateway refuses, in the shape that clients of OpenAI's API read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thrifty.errors import ContextOverflow, ThriftyError, UnknownName

if TYPE_CHECKING:
    from thrifty.serve.engine import Done

DEADLINE = "deadline"
"""Why a response ended that took too long."""
SHUTTING_DOWN = "shutting_down"
"""Why a response ended with the server."""


class Refusal(ThriftyError):
    """A request that is not answered, or an answer that breaks off.

    Args:
        message: one line that names the fix; it goes to the client as it stands.
        status: the HTTP status.
        code: OpenAI's word for the reason, such as ``model_not_found``; None where there is none.
        param: the field of the body that is wrong, None where it is none of them.
        retry_after: seconds after which another attempt makes sense, None where that is unknown.

    Attributes:
        done: what was taken for the response before it broke off, None for nothing.
    """

    done: Done | None = None

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param, self.retry_after = message, status, code, param, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` of the error."""
        return _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """Return the body of the response, which is also the last event of a stream that breaks off."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def shutting_down() -> Refusal:
    """Return what is told to clients that come too late."""
    return Refusal("the server is shutting down: try again", 503, SHUTTING_DOWN, retry_after=5.0)


def refusal(error: ThriftyError, param: str | None = None) -> Refusal:
    """Return what a client is told of a mistake that the library found.

    Args:
        error: the mistake.
        param: the field of the body that it is about, where the error itself does not say.
    """
    if isinstance(error, Refusal):
        return error
    code = "context_length_exceeded" if isinstance(error, ContextOverflow) else None
    if isinstance(error, UnknownName):
        code = "unknown_name"
    return Refusal(str(error), 400, code, param)
