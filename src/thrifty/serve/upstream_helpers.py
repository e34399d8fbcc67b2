"""The models of other servers that methods ask beside the main one: only the operator names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from thrifty.errors import ThriftyError
from thrifty.models.client import Patience
from thrifty.serve.upstream_client import Upstreams

HELPER_SECONDS = 20.0
"""Of silence after which a helper is given up."""


@dataclass(frozen=True)
class Helper:
    """One such model.

    Attributes:
        upstreams: its server.
        model: its name there.
    """

    upstreams: Upstreams
    model: str


class Helpers:
    """All that methods name, each connected once.

    Args:
        known: the key variables of the main servers by their URLs, for helpers that are served there, too.
        key_variable: the environment variable with the key of a helper's server elsewhere, empty for none.
        timeout: seconds of silence after which a helper is given up.
    """

    def __init__(
        self, known: Mapping[str, str] | None = None, key_variable: str = "", timeout: float = HELPER_SECONDS
    ) -> None:
        self._known = {_plain(url): variable for url, variable in (known or {}).items()}
        self._key_variable, self._patience = key_variable, Patience(timeout=timeout, retries=1)
        self._found: dict[str, Helper] = {}
        self._elsewhere: set[str] = set()

    def of(self, name: str) -> Helper:
        """Return a helper; its server need not be there yet.

        Args:
            name: as ``http://HOST:PORT/v1#MODEL``.

        Raises:
            ThriftyError: it is no such address, or the one key would go to a second server.
        """
        if name in self._found:
            return self._found[name]
        if not name.startswith(("http://", "https://")):
            raise ThriftyError(
                f"{name!r} would have to run here, where there is only a server in front: the operator can offer the "
                "method with a model of a server, as in --offer \"NAME=METHOD(OPTION='http://HOST:PORT/v1#MODEL')\""
            )
        url, _, model = name.partition("#")
        known = self._known.get(_plain(url))
        upstreams = Upstreams([url], [self._key_variable if known is None else known], self._patience)
        if not model.strip():
            raise ThriftyError("the address of a helper names no model: write http://HOST:PORT/v1#MODEL")
        if known is None:
            self._elsewhere.add(_plain(url))
        if self._key_variable and len(self._elsewhere) > 1:
            raise ThriftyError(
                f"the key in {self._key_variable} would go to two servers: name helpers on one server, or leave out "
                "--helper-key-env"
            )
        self._found[name] = Helper(upstreams, model)
        return self._found[name]

    async def close(self) -> None:
        """Close the connections."""
        for helper in self._found.values():
            await helper.upstreams.close()


def _plain(url: str) -> str:
    return url.partition("#")[0].strip().rstrip("/")
