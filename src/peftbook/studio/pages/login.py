"""Login: the page for whoever comes without a session, which says where a token is and takes one."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from peftbook.core.errors import InputError
from peftbook.studio.access import PAGE
from peftbook.studio.pages.site import View, Visit


def show(visit: Visit) -> dict[str, Any]:
    """A form that goes to the page that was asked for, whose address takes a token."""
    path, _, query = visit.query.get("to", "/").partition("?")
    asked = dict(parse_qsl(query, keep_blank_values=True))
    wrong = InputError("That is not the token: copy it from the address that the studio printed.")
    return {
        "action": visit.to(path if PAGE.fullmatch(path) else "/"),
        "fields": [(name, value) for name, value in asked.items() if name != "token"],
        "trouble": wrong if "token" in asked else None,
    }


LOGIN_PAGE = View("login.html", show)
