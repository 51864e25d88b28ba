"""What every route has at hand: the studio, its uploads, who asks; and how an answer is written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import JSONResponse

from peftbook.studio.drafts import Drafts
from peftbook.studio.store import Studio
from peftbook.studio.tokens import OWNER, Keys

__all__ = ["Asks", "Context", "Here", "Json"]


@dataclass(frozen=True)
class Context:
    """What the API serves."""

    studio: Studio
    drafts: Drafts
    keys: Keys | None


def context(request: Request) -> Context:
    return request.app.state.context


def asks(request: Request) -> str | None:
    """Who the door found to ask; where everybody may, it is the owner."""
    if request.app.state.context.keys is None:
        return OWNER
    return request.scope.get("peftbook.user")


Here = Annotated[Context, Depends(context)]
Asks = Annotated[str | None, Depends(asks)]


class Json(JSONResponse):
    """JSON, which has no word for infinity: null stands for what is no finite number."""

    def render(self, content: Any) -> bytes:
        return json.dumps(finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def finite(value: Any) -> Any:
    """A tree without NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value
