"""The arguments of screens and actions: the visitor's request, and everything to answer it with.

Screens and actions are plain functions that run in a worker thread, so they may call the log, which
blocks. They end by returning what :meth:`Page.render` (or another method of ``Page``) made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from starlette.responses import HTMLResponse, Response

from streams.errors import InvalidValue
from streams.web.access import Access
from streams.web.action_results import ActionDone, BackgroundAction, Confirmation
from streams.web.forms import Fields
from streams.web.jobs import BackgroundJob
from streams.web.problem_board import Problem, UnfinishedCheck
from streams.web.redaction import Payloads
from streams.web.rendering import environment
from streams.web.translations import LANGUAGES, catalogue

if TYPE_CHECKING:
    from starlette.requests import Request

    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.web.dashboard_state import DashboardState
    from streams.web.sampler import Sampler


MAX_BULK = 100_000
"""The most messages that one action may concern; with more the visitor is asked to narrow it
down."""


class NavigationItem(NamedTuple):
    """A screen in the navigation.

    :param current: whether the visitor is there, or at a page below it.
    """

    title: str
    url: str
    current: bool


class Page:
    """One visit.

    :param fields: those of the address's query; for an action, the form's.
    """

    def __init__(
        self,
        dashboard: DashboardState,
        site: DashboardSite,
        request: Request,
        access: Access,
        fields: Fields,
        language: str,
    ) -> None:
        self.dashboard = dashboard
        self.site = site
        self.request = request
        self.access = access
        self.fields = fields
        self.language = language
        self.payloads = Payloads(allowed=access.payloads, redact=dashboard.redact)
        self.watched: list[str] = []
        """The subjects shown on it that change while the visitor watches
        (:mod:`streams.web.sampler`)."""
        texts = catalogue(language)
        self._gettext: Callable[[str], str] = texts.gettext
        self._ngettext: Callable[[str, str, int], str] = texts.ngettext

    # -- the dashboard's parts

    @property
    def app(self) -> Streams:
        """The app; one without any declarations if the dashboard was given an address alone."""
        return self.dashboard.app

    @property
    def log(self) -> Log:
        """The log, open; blocks.

        :raises LogError: it cannot be reached; the visitor gets the error.
        """
        return self.dashboard.source.log()

    @property
    def sampler(self) -> Sampler:
        """The figures of topics and groups that visitors watch."""
        return self.dashboard.sampler

    @property
    def kind(self) -> tuple[str, ...]:
        """The values that texts and addresses depend on: a key for caches of such."""
        return self.language, self.asset(""), self._asked_language or ""

    @property
    def _asked_language(self) -> str | None:
        """The language in the address, if it exists."""
        asked = self.request.query_params.get("lang")
        return asked if asked in LANGUAGES else None

    @property
    def now(self) -> float:
        """The app's time, in seconds since the epoch."""
        return self.app.clock.time()

    # -- texts and addresses

    def _(self, text: str, **values: object) -> str:
        """A text in the visitor's language. The method's name is gettext's, by which scripts find
        it.

        :param values: the values of its ``%(name)s``.
        """
        found = self._gettext(text)
        return found % values if values else found

    def plural(self, one: str, many: str, number: int, **values: object) -> str:
        """A text that counts, with ``%(number)s`` in it."""
        return self._ngettext(one, many, number) % {"number": f"{number:,}", **values}

    def url(self, path: str, query: Mapping[str, object] | Iterable[tuple[str, str]] = ()) -> str:
        """An address within the dashboard, wherever it is mounted.

        :param path: begins with a slash; a visitor's input in it must go through
            :func:`streams.web.rendering.path_part` first.
        :param query: None and empty texts are left out. The language of the address is kept.
        """
        pairs = query.items() if isinstance(query, Mapping) else query
        given: list[tuple[str, str]] = [
            (str(name), str(value)) for name, value in pairs if value not in (None, "")
        ]
        asked = self._asked_language
        if asked and all(name != "lang" for name, _ in given):
            given.append(("lang", asked))
        encoded = urlencode(given, errors="surrogateescape")
        return self.asset(path) + (f"?{encoded}" if encoded else "")

    def asset(self, path: str) -> str:
        """The address of a file that is the same in every language, such as one of ``static/``."""
        root = quote(self.request.scope.get("root_path", ""), safe="/~!$&'()*+,;=:@")
        return f"{root}{path}"

    def here(self, **changes: str) -> str:
        """This page's own address, with other fields: relative, so it leads nowhere else."""
        pairs = self.fields.with_(changes)
        return f"?{urlencode(pairs, errors='surrogateescape')}"

    def watch(self, *subjects: str) -> None:
        """Have figures of these kept up to date while the page is open: ``topic:NAME``,
        ``group:NAME``, ``processor:NAME``."""
        self.watched.extend(subjects)

    def running_jobs(self, subject: str) -> list[BackgroundJob]:
        """The running jobs on a subject whose actions this visitor may do. Their progress is kept
        up to date while the page is open."""
        found = [
            job
            for job in self.dashboard.jobs.all()
            if job.is_running and job.subject == subject and self.access.may(job.action)
        ]
        self.watch(*(f"job:{job.id}" for job in found))
        return found

    def may_publish(self, topic: str) -> bool:
        """Whether the visitor may publish to a topic: never to one of the toolkit's own."""
        if not self.access.may("publish"):
            return False
        return topic not in self.dashboard.groups.look(0.0).internal

    def told_version(self, subject: str) -> str:
        """The version of some long work (:mod:`streams.web.progress`) that was sent last, so that a
        page recognizes a new one. Empty: none was sent yet, or the sampler found the subject gone
        while this page still found it; the page takes the next version that is sent, and is
        reloaded if it is told that the subject is gone."""
        return str(self.sampler.figures(subject).now.get("version", ""))

    # -- answers

    def render(self, template: str, *, status: int = 200, **context: Any) -> Response:
        """A whole page, or a part of one, from ``templates/``."""
        found = environment(self.language).get_template(template)
        text = found.render(self.context(**context))
        return HTMLResponse(text, status, {"cache-control": "no-store", "vary": "accept-language"})

    def context(self, **context: Any) -> dict[str, Any]:
        """The variables of every template."""
        return {
            "page": self,
            "url": self.url,
            "asset": self.asset,
            "access": self.access,
            "dashboard": self.dashboard,
            "languages": LANGUAGES,
            "language": self.language,
            "navigation": self.navigation(),
            "is_fragment": self.is_fragment,
            "watch": self.sampler.token(self.watched),
            **context,
        }

    @property
    def is_fragment(self) -> bool:
        """Whether a script requests a part of a page."""
        return self.request.headers.get("hx-request") == "true"

    def navigation(self) -> list[NavigationItem]:
        """The screens that this visitor may open."""
        here = self.request.scope["path"].removeprefix(self.request.scope.get("root_path", ""))
        here = here or "/"
        found: list[NavigationItem] = []
        for screen in self.site.screens:
            if not screen.title or (screen.payloads and not self.access.payloads):
                continue
            if screen.needs and not self.access.may(screen.needs):
                continue
            if screen.needs_app is not None and not screen.needs_app(self.app):
                continue
            current = here == screen.path or (
                screen.path != "/" and here.startswith(f"{screen.path}/")
            )
            found.append(NavigationItem(self._(screen.title), self.url(screen.path), current))
        return found

    # -- actions

    def typed_count(self) -> int | None:
        """The number by which an action was confirmed; None: no number was typed."""
        typed = self._typed_digits()
        return int(typed) if typed.isascii() and typed.isdigit() and len(typed) < 10 else None

    def _typed_digits(self) -> str:
        return self.fields.text("confirm").replace(",", "").replace("_", "").replace(" ", "")

    def confirmed(self, count: int) -> bool:
        """Whether the visitor has confirmed an action on this many messages: has typed the
        number, or pressed the button if it is one.

        :raises InvalidValue: they are more than an action may concern, or another number was typed.
        """
        if count > MAX_BULK:
            raise InvalidValue(
                self._(
                    "This affects %(count)s messages; at most %(most)s can be processed at once. "
                    "Narrow it down, or use the command line.",
                    count=f"{count:,}",
                    most=f"{MAX_BULK:,}",
                )
            )
        typed = self.fields.text("confirm")
        if not typed:
            return False
        if self._typed_digits() != str(count):
            raise InvalidValue(
                self._(
                    "You typed %(typed)s, but there are %(count)s now: nothing was done. Check "
                    "again.",
                    typed=typed[:40],
                    count=f"{count:,}",
                )
            )
        return True


ScreenFunction = Callable[[Page], Response]
ActionFunction = Callable[[Page], "ActionDone | Confirmation | BackgroundAction | Response"]


@dataclass(frozen=True, slots=True)
class Screen:
    """A page that shows facts (GET).

    :param path: below the dashboard's own, with Starlette's ``{name}`` for parts of it, which are
        in ``page.request.path_params``.
    :param show: makes the page.
    :param title: in the navigation (marked with ``mark``); empty: it is not in the navigation.
    :param payloads: it shows only contents of messages, so it needs that permission.
    :param needs_app: says, called with the app, whether it is in the navigation: some screens are
        only for apps that declare such objects.
    :param needs: the action whose form it is; without that permission there is no such page.
    """

    path: str
    show: ScreenFunction
    title: str = ""
    payloads: bool = False
    needs_app: Callable[[Streams], bool] | None = None
    needs: str = ""


@dataclass(frozen=True, slots=True)
class Action:
    """A form that changes state (POST).

    :param path: the address that the form is sent to.
    :param do: does it, or returns a description to confirm (:class:`Confirmation`), or the work to
        do in the background (:class:`BackgroundAction`).
    :param name: one of :data:`streams.web.access.ACTION_NAMES`: the permission that it needs.
    """

    path: str
    do: ActionFunction
    name: str


ProblemFinder = Callable[[Page], "Iterable[Problem | UnfinishedCheck]"]
"""Finds problems within about a second; blocks. Subjects that it cannot reach are left out."""


class DashboardSite(NamedTuple):
    """All screens and actions of a dashboard.

    :param screens: those of the navigation in its order.
    :param problem_finders: the sources of the overview's problems.
    """

    screens: Sequence[Screen]
    problem_finders: Sequence[ProblemFinder]
