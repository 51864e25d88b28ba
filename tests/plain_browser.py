"""A browser without scripts, for the studio's pages: it opens addresses, presses buttons and sends what forms say.

It stands behind a proxy that takes a prefix off, so that every address that a page writes has to be right there too.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import httpx
from bs4 import BeautifulSoup, Tag

ORIGIN = "http://127.0.0.1:7861"
PREFIX = "/behind/a/proxy"


class Plain:
    """One window. address: of the page that it shows, soup: what is on it, sent: how many requests there were."""

    def __init__(self, served: Any, prefix: str = PREFIX):
        self.served, self.prefix = served, prefix
        self.address, self.status, self.cookies = f"{ORIGIN}{prefix}/", 0, httpx.Cookies()

    def open(self, address: str = "") -> Plain:
        """Follow a link, or an address of the studio that begins with a slash."""
        return self._go("GET", self.prefix + address if address.startswith("/") else address)

    @property
    def path(self) -> str:
        """Where the window is, as the studio calls it, with its query."""
        parts = urlsplit(self.address)
        return parts.path.removeprefix(self.prefix) + (f"?{parts.query}" if parts.query else "")

    @property
    def text(self) -> str:
        """What one reads."""
        return " ".join(self.soup.body.get_text(" ").split())

    @property
    def refused(self) -> str:
        """The sentence beside a form that was refused."""
        found = self.soup.select_one("#refused .note-trouble span:last-child")
        return found.get_text() if found else ""

    def field(self, name: str) -> Any:
        """What a field says: a text, or the list of what is ticked."""
        said = [value for control, value in self._said(self.soup.find_all(attrs={"name": name}))]
        boxes = self.soup.select(f'input[type=checkbox][name="{name}"]')
        return said if boxes else said[0]

    def press(self, words: str, at: int = 0, **typed: Any) -> Plain:
        """Type into fields by their names, and press the button with these words, or with this label."""
        found = [
            one
            for one in self.soup.find_all("button")
            if words in (one.get("aria-label"), one.get_text(" ", strip=True))
        ]
        assert len(found) > at, (words, [one.get_text(" ", strip=True) for one in self.soup.find_all("button")])
        button = found[at]
        form = self.soup.find(id=button["form"]) if button.has_attr("form") else button.find_parent("form")
        assert form is not None and not button.has_attr("disabled"), f"{words!r} does nothing"
        fields = [
            (control["name"], value)
            for control, value in self._said(self._controls(form))
            if control["name"] not in typed
        ]
        files = {name: value for name, value in typed.items() if isinstance(value, tuple)}
        for name, value in typed.items():
            known = {one.get("name") for one in self._controls(form)}
            assert name in known, f"there is no field {name} in {known}"
            fields += [] if name in files else [(name, one) for one in (value if isinstance(value, list) else [value])]
        fields += [(button["name"], button.get("value", ""))] if button.has_attr("name") else []
        address = button.get("formaction", form.get("action", ""))
        if button.get("formmethod", form.get("method", "get")) == "get":
            return self._go("GET", urljoin(self.address, address).partition("?")[0] + "?" + urlencode(fields))
        if form.get("enctype") == "multipart/form-data":
            files = {"file": ("", b"")} | files
            return self._go("POST", address, data=dict(fields), files=files)
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return self._go("POST", address, content=urlencode(fields).encode(), headers=headers)

    def _controls(self, form: Tag) -> list[Tag]:
        outside = self.soup.find_all(attrs={"form": form["id"]}) if form.has_attr("id") else []
        inside = form.find_all(["input", "select", "textarea"])
        return [one for one in [*inside, *outside] if one.name != "button" and one.has_attr("name")]

    @staticmethod
    def _said(controls: list[Tag]) -> list[tuple[Tag, str]]:
        """What each control would send."""
        said = []
        for one in controls:
            if one.name == "select":
                chosen = one.select_one("option[selected]") or one.select_one("option")
                said.append((one, chosen["value"]))
            elif one.name == "textarea":
                said.append((one, one.get_text().removeprefix("\n")))
            elif one.get("type") == "checkbox":
                said += [(one, one.get("value", "on"))] if one.has_attr("checked") else []
            elif one.get("type") != "file" and one.name == "input":
                said.append((one, one.get("value", "")))
        return said

    def _go(self, method: str, address: str, **options: Any) -> Plain:
        """One request, and those that it leads to."""
        self.address = urljoin(self.address, address)
        for _ in range(5):
            answer = asyncio.run(self._ask(method, self.address.partition("#")[0], options))
            if answer.status_code != 303:
                break
            self.address = urljoin(self.address, answer.headers["location"])
            method, options = "GET", {}
        self.status, self.answer = answer.status_code, answer
        self.soup = BeautifulSoup(answer.text, "html.parser")
        return self

    async def _ask(self, method: str, address: str, options: dict[str, Any]) -> httpx.Response:
        assert address.startswith(ORIGIN + self.prefix + "/"), f"{address} leads out of the studio's prefix"
        headers = {"sec-fetch-site": "same-origin", **({"origin": ORIGIN} if method == "POST" else {})}
        headers |= options.pop("headers", {})
        transport = httpx.ASGITransport(app=self.served)
        async with httpx.AsyncClient(transport=transport, cookies=self.cookies) as client:
            asked = ORIGIN + address.removeprefix(ORIGIN + self.prefix)
            answer = await client.request(method, asked, headers=headers, **options)
            self.cookies = client.cookies
            return answer
