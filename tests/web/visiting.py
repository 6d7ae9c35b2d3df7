"""A visitor of the dashboard without a browser: asks for pages, reads them, and sends the forms
that are on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx

from streams.web import Dashboard
from tests.conformance.stage import PATIENCE

HOME = "http://localhost"

SAME_ORIGIN = {"sec-fetch-site": "same-origin", "origin": HOME}
"""What a browser says of a form of this site."""

_SILENT = {"script", "style", "head", "template"}
_VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}


@dataclass
class Form:
    """A form on a page."""

    method: str
    action: str
    fields: dict[str, str] = field(default_factory=dict)
    text: str = ""


class _Reader(HTMLParser):
    """Reads what a person sees, the forms, the links, and whatever of the markup is executed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self.forms: list[Form] = []
        self.links: list[tuple[str, str]] = []
        self.dangerous: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self._form: Form | None = None
        self._select: str | None = None
        self._textarea: str | None = None
        self._link: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag not in _VOID:
            self._open.append(tag)
        self._look_for_danger(tag, found)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self._link = found.get("href")
        elif tag == "form":
            self._form = Form(found.get("method", "get").lower(), found.get("action", ""))
            self.forms.append(self._form)
        elif self._form is not None:
            self._field(tag, found)

    def _field(self, tag: str, found: dict[str, str]) -> None:
        assert self._form is not None
        name = found.get("name")
        if tag == "input" and name:
            ticked = found.get("type") not in ("checkbox", "radio") or "checked" in found
            if ticked and found.get("type") != "submit":
                self._form.fields[name] = found.get("value", "")
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select:
            if self._select not in self._form.fields or "selected" in found:
                self._form.fields[self._select] = found.get("value", "\0")
        elif tag == "textarea":
            self._textarea = name
            self._form.fields[name or ""] = ""

    def _look_for_danger(self, tag: str, found: dict[str, str]) -> None:
        if tag == "script" and not found.get("src"):
            self.dangerous.append("inline script")
        if tag == "style" or "style" in found:
            self.dangerous.append("inline style")
        self.dangerous += [f"{tag} {name}" for name in found if name.startswith("on")]
        for name in ("href", "src", "action", "formaction"):
            value = found.get(name, "").strip().lower()
            if value.startswith(("javascript:", "data:", "//", "http:", "https:")):
                self.dangerous.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open and self._open.pop() != tag:
                pass
        if tag == "select":
            self._select = None
        elif tag == "textarea":
            if self._form is not None and self._textarea:  # as browsers do
                fields = self._form.fields
                fields[self._textarea] = fields[self._textarea].removeprefix("\n")
            self._textarea = None
        elif tag == "a":
            self._link = None
        elif tag == "form":
            self._form = None

    def handle_data(self, data: str) -> None:
        if _SILENT & set(self._open):
            return
        if self._textarea is not None and self._form is not None:
            self._form.fields[self._textarea] += data
        if self._select and self._form is not None and self._form.fields.get(self._select) == "\0":
            self._form.fields[self._select] = data.strip()
        if text := " ".join(data.split()):
            self.words.append(text)
            if self._form is not None:
                self._form.text += f" {text}"
            if self._link is not None:
                self.links.append((text, self._link))


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Wait for a condition that a page shows."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < PATIENCE, f"after {PATIENCE:g} s not so"
        await asyncio.sleep(0.05)


class Seen:
    """A page that was asked for."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.html = response.text
        reader = _Reader()
        if "html" in response.headers.get("content-type", ""):
            reader.feed(self.html)
        self.text = " ".join(reader.words) if reader.words else self.html
        self.forms = reader.forms
        self.links = reader.links
        self.dangerous = reader.dangerous
        self.ids = reader.ids

    def link(self, text: str) -> str:
        """The address of a link."""
        found = [href for shown, href in self.links if shown == text]
        assert found, f"no link {text!r}; there are {[shown for shown, _ in self.links]}"
        return found[0]

    def form(self, text: str) -> Form:
        """The form with this text (a button's, a label's) in it."""
        found = [form for form in self.forms if text in form.text]
        assert found, f"no form with {text!r} on: {self.text}"
        return found[0]


class Visitor:
    """Somebody who looks at a dashboard.

    :param client: asks for pages.
    :param root: where it is mounted.
    """

    def __init__(self, client: httpx.AsyncClient, root: str = "") -> None:
        self.client = client
        self.root = root

    async def get(self, path: str, *, status: int = 200, **options: Any) -> Seen:
        """Ask for a page."""
        seen = Seen(await self.client.get(self.root + path, **options))
        assert seen.status == status, f"{seen.status}: {seen.text}"
        assert not seen.dangerous, seen.dangerous
        assert len(seen.ids) == len(set(seen.ids)), seen.ids
        return seen

    async def post(
        self,
        path: str,
        fields: Mapping[str, Any] | None = None,
        *,
        status: int = 200,
        headers: Mapping[str, str] = SAME_ORIGIN,
        **options: Any,
    ) -> Seen:
        """Send a form, as a browser does."""
        answer = await self.client.post(
            self.root + path, data=dict(fields or {}), headers=dict(headers), **options
        )
        seen = Seen(answer)
        assert seen.status == status, f"{seen.status}: {seen.text}"
        assert not seen.dangerous, seen.dangerous
        return seen

    async def submit(
        self,
        seen: Seen,
        text: str,
        *,
        status: int = 200,
        fields: Mapping[str, str] | None = None,
        **more: str,
    ) -> Seen:
        """Fill in and send the form with this text in it.

        :param fields: those whose names are no words of Python's.
        """
        form = seen.form(text)
        assert form.method == "post", form
        address = urljoin(str(seen.response.url), form.action)
        answer = await self.client.post(
            address, data={**form.fields, **(fields or {}), **more}, headers=SAME_ORIGIN
        )
        found = Seen(answer)
        assert found.status == status, f"{found.status}: {found.text}"
        assert not found.dangerous, found.dangerous
        return found


@asynccontextmanager
async def visit(
    dashboard: Dashboard, *, asgi: Any = None, root: str = "", **options: Any
) -> AsyncIterator[Visitor]:
    """Look at a dashboard; it is closed afterwards.

    :param asgi: the application that it is mounted in, at ``root``.
    """
    transport = httpx.ASGITransport(asgi or dashboard)
    dashboard.problem_patience = PATIENCE
    try:
        options.setdefault("base_url", HOME)
        async with httpx.AsyncClient(transport=transport, **options) as client:
            yield Visitor(client, root)
    finally:
        dashboard.close()


async def seen_with(visitor: Visitor, path: str, *texts: str, times: int = 1) -> Seen:
    """A page once it shows each of these texts so often: what takes longer than a moment to find
    out is filled in later."""
    found: list[Seen] = []

    async def shows() -> bool:
        found[:] = [await visitor.get(path)]
        return all(found[0].text.count(text) >= times for text in texts)

    await eventually(shows)
    return found[0]
