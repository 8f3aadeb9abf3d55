"""A door before a server: it lets calls through, lets them hang, or refuses them."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

_STEP_BYTES = 1 << 16


class Door:
    """Passes TCP connections on to a port of this machine.

    Attributes:
        port: Where the door itself stands.
        passed: How many bytes have come from callers.
    """

    def __init__(self, behind: int) -> None:
        self._behind = behind
        self._opened = threading.Event()
        self._opened.set()
        self.passed = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._do(self._listen)

    def hang(self, for_s: float) -> None:
        """Answers nothing for a while: connections stay open and no byte passes."""
        self._opened.clear()
        time.sleep(for_s)
        self._opened.set()

    def refuse(self, for_s: float) -> None:
        """Breaks every connection and takes no new one for a while."""
        self._do(self._close)
        time.sleep(for_s)
        self._do(self._listen)

    def _do(self, what: Callable) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._call, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in asyncio.all_tasks(self._loop) - {asyncio.current_task()}:
            task.cancel()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                server, to_server = await asyncio.open_connection("127.0.0.1", self._behind)
                try:
                    await asyncio.gather(self._pass(reader, to_server, True), self._pass(server, writer))
                finally:
                    to_server.transport.abort()
            finally:
                writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted=False) -> None:
        while part := await reader.read(_STEP_BYTES):
            while not self._opened.is_set():
                await asyncio.sleep(0.2)
            if counted:
                self.passed += len(part)
            writer.write(part)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
