"""A model server for callers that are no coroutines: asked from an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, TypeVar

from thrifty.errors import ThriftyError
from thrifty.models.client import Client, Patience
from thrifty.models.payload import model_names

_EVENTS_AHEAD = 1000
_LISTED = 20

T = TypeVar("T")


class Server:
    """One OpenAI-compatible server, asked from an event loop in a thread of its own.

    Its thread lets requests go on while the caller works, and lets a caller that runs inside another event
    loop use it.

    Args:
        url: where its API begins, as ``http://localhost:8000/v1``; credentials in it become basic authentication.
        key_variable: the environment variable with the key; THRIFTY_API_KEY falls back on OPENAI_API_KEY.
        patience: how long and how often to ask.

    Raises:
        ThriftyError: the URL or the key cannot be used.
    """

    def __init__(self, url: str, key_variable: str, patience: Patience) -> None:
        self.client = Client(url, key_variable, patience)
        self.url, self.patience, self.clean = self.client.url, patience, self.client.clean
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="thrifty-http", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _stop, self._loop, thread, self.client)

    def models(self) -> list[str]:
        """Return the names of the models that it lists, asking once.

        Raises:
            Unreachable: no server answers, or not with a list; `Rejected` if it refuses.
        """
        names, _ = self.run(self.client.fetch("GET", "/models", None, model_names, retries=0))
        return names

    def only_model(self) -> str:
        """Return the name of its only model.

        Raises:
            ThriftyError: it has several or none; the message lists them.
            Unreachable: as in `models`.
        """
        names = self.models()
        if len(names) == 1:
            return names[0]
        if not names:
            raise ThriftyError(f"{self.url} lists no model: name one as {self.url}#model-name")
        shown = self.clean(", ".join(names[:_LISTED]))
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        raise ThriftyError(
            f"{self.url} has several models: {shown}{more}; name one, as {self.url}#{self.clean(names[0])}"
        )

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start some work; cancelling what is returned cancels it, its connection included.

        Args:
            work: built from the coroutines of this object.

        Raises:
            ThriftyError: the server was closed.
        """
        if not self.close.alive:
            work.close()
            raise self._closed()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work and wait for it."""
        future = self.submit(work)
        try:
            return self.result(future)
        finally:
            future.cancel()

    def result(self, future: Future[T]) -> T:
        """Wait for what `submit` started.

        Raises:
            ThriftyError: the server was closed meanwhile.
        """
        try:
            return future.result()
        except CancelledError:
            raise self._closed() from None

    def events(self, path: str, body: Any) -> Generator[Any, None, None]:
        """Send a request and yield the events of the answer as they come.

        Args:
            path: below the server's URL.
            body: sent as JSON.

        Yields:
            The parsed JSON of each ``data:`` line, and `DONE` itself.

        Raises:
            Unreachable: as in `fetch`; once the answer has begun, nothing is retried.
            ContextOverflow: the server says that the prompt is too long.
        """
        inbox: SimpleQueue[list[Any]] = SimpleQueue()
        future = self.submit(self._pump(path, body, inbox))
        future.add_done_callback(lambda _: inbox.put([]))
        try:
            while event := inbox.get():
                yield event[0]
            self.result(future)
        finally:
            future.cancel()

    def _closed(self) -> ThriftyError:
        return ThriftyError(f"the connection to {self.url} was closed: connect anew")

    async def _pump(self, path: str, body: Any, inbox: SimpleQueue[list[Any]]) -> None:
        with self.client.deadline():
            async with asyncio.timeout(self.patience.deadline):
                response = await self.client.open(path, body)
                try:
                    async for event in self.client.events(response):
                        inbox.put([event])
                        while inbox.qsize() > _EVENTS_AHEAD:  # a slow reader must not fill the memory
                            await asyncio.sleep(0.01)
                finally:
                    await response.aclose()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, client: Client) -> None:
    async def finish() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()

    closing = asyncio.run_coroutine_threadsafe(finish(), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is not thread:  # the garbage collector may call from there, where waiting never ends
        thread.join(2.0)
        if not thread.is_alive():
            loop.close()
