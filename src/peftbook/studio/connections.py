"""Limits on connections: a stranger who holds many of them, or sends slowly, keeps nobody else out.

Of too many connections the oldest is closed on which no request is being answered. A connection is closed too whose
request head does not arrive in HEAD_SECONDS, or whose body stands still for BODY_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 400  # connections at once
BACKLOG = 100  # that one turn of the event loop accepts
FILES_BESIDE = 200  # that the process has open for other things: databases of its threads, downloads
HEAD_SECONDS, BODY_SECONDS = 10.0, 30.0


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with these limits. connections_open: of the process, oldest first."""

    connections_open: ClassVar[dict[LimitedProtocol, None]] = {}
    most: ClassVar[int] = MOST
    timer: asyncio.TimerHandle | None = None

    @property
    def waits_for(self) -> float:
        """Seconds until the rest of a head, or more of a body, must be here; 0 where nothing is waited for."""
        if self.cycle is None or self.cycle.response_complete:
            return HEAD_SECONDS
        return BODY_SECONDS if self.cycle.more_body else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.waits_for == HEAD_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections_open) >= self.most:
            surplus = next((one for one in self.connections_open if one.is_idle), self)
            surplus.drop()
            if surplus is self:
                return
        self.connections_open[self] = None
        self.timer = self.loop.call_later(HEAD_SECONDS, self.drop)

    def data_received(self, data: bytes) -> None:
        before = self.waits_for
        super().data_received(data)
        seconds = self.waits_for
        if self.timer is not None and (seconds, before) == (HEAD_SECONDS, HEAD_SECONDS):
            return  # more of a head does not give it more time
        self.stop_timer()
        if seconds and self in self.connections_open:
            self.timer = self.loop.call_later(seconds, self.drop)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        self.connections_open.pop(self, None)
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once."""
        self.connections_open.pop(self, None)
        self.transport.abort()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None


def limit_connections() -> None:
    """Fit the limit to the files that this process may open; as many as it may, where that is fewer than are needed."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST + BACKLOG + FILES_BESIDE
        if soft < wanted <= hard or hard == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
            soft = max(soft, wanted)
        LimitedProtocol.most = max(1, min(MOST, soft - BACKLOG - FILES_BESIDE))
