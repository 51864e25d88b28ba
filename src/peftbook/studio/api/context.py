"""Dependencies of the routes (the studio and its uploads), and their response classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from peftbook.studio.store import Studio
from peftbook.studio.uploads import UploadStore

RANGE = re.compile(rb"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


@dataclass(frozen=True)
class Context:
    """What routes and pages show."""

    studio: Studio
    uploads: UploadStore


async def context(request: Request) -> Context:  # which needs no thread
    return request.app.state.context


Here = Annotated[Context, Depends(context)]


class FiniteJsonResponse(JSONResponse):
    """JSON, which has no word for infinity: null stands for what is no finite number."""

    def render(self, content: Any) -> bytes:
        return to_json(content, inf_nan_mode="null")


class Download(FileResponse):
    """A file, or the one range of it that is asked for. Any other `Range` is passed over: RFC 9110, section 14.2."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (asked := dict(scope["headers"]).get(b"range")) is not None:
            size = Path(self.path).stat().st_size
            if (first := first_byte(asked, size)) is None:
                scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"range"]}
            elif first >= size:
                words = f"The file has {size:,} bytes, and none of those: ask for bytes=0-{max(size - 1, 0)} or less"
                raise HTTPException(416, words, {"content-range": f"bytes */{size}"})
        await super().__call__(scope, receive, send)


def first_byte(asked: bytes, size: int) -> int | None:
    """Where a range begins in a file of so many bytes; None for what is no range, and for several."""
    found = RANGE.fullmatch(asked)
    if found is None:
        return None
    first, last, length = found.groups()
    if length is not None:
        return max(size - int(length), 0)
    return None if last and int(last) < int(first) else int(first)
