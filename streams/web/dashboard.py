"""The dashboard as an ASGI application: checks the visitor and the origin, and routes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from streams.app import Streams
from streams.errors import (
    ConfigError,
    EventTopicError,
    Fatal,
    GroupNotEmpty,
    InvalidValue,
    NotFound,
    StreamsError,
    Unavailable,
)
from streams.text import describe_error, escape, get_logger, one_line

try:
    import_module("jinja2")
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles
except ImportError as error:
    raise ConfigError(
        "the dashboard needs the packages of the extra web: pip install jinja2 starlette uvicorn"
    ) from error

from streams.web import passwords
from streams.web.access import Access, AccessRule
from streams.web.action_results import ActionDone, BackgroundAction, Confirmation, ReportProgress
from streams.web.dashboard_state import DashboardState
from streams.web.forms import Fields, FormTooLarge, parse_fields, read_form
from streams.web.guard import (
    SAFE_METHODS,
    SECURITY_HEADERS,
    check_hosts,
    loopback_hosts,
    refuse_host,
    refuse_origin,
)
from streams.web.jobs import BackgroundJob
from streams.web.live import live_response
from streams.web.log_source import NoAnswer
from streams.web.page import Action, DashboardSite, Page, Screen
from streams.web.passwords import PasswordInTheClear, PasswordNeeded, TooManyWrong
from streams.web.redaction import Redact
from streams.web.rendering import compile_templates
from streams.web.screens import actions, problem_finders, screens
from streams.web.translations import choose_language

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


logger = get_logger("streams.web")

# The first streamed response makes Starlette import it, in the loop, for 20 ms.
with suppress(ImportError):
    import_module("anyio._backends._asyncio")

REALM = 'Basic realm="streams", charset="UTF-8"'


class Dashboard(DashboardState):
    """A dashboard of an app and its log, as an ASGI application::

        api.mount("/ops", Dashboard(events, access=who_may))

    It may be mounted in any framework below any path, or be served alone (``streams web`` does so),
    and needs no lifespan of its own. It reads the app's log through the app while that is
    entered, else opens the log itself on the first visit.

    :param app: whose topics, processors, sagas, aggregates and views are shown; with nothing
        declared, topics and groups of its log.
    :param access: the visitors' permissions, see :mod:`streams.web.access`: a function of
        Starlette's request, which may be a coroutine function, a :class:`~streams.web.Passwords`,
        or the same answer for all visitors: ``"all"``, ``"read"``, a collection of names.
    :param redact: replaces parts of messages before they are shown (:data:`streams.web.Redact`).
    :param hosts: the host names under which it may be requested; all others are refused. If not
        given,
        all names are allowed where ``access`` is a function, and only this machine's own
        (``localhost``, ``127.0.0.1``, ``::1``) where it is the same for everybody, as any web page
        could lead a name of its own to this address.
    :param environment: what kind of system it is, shown on every page: ``"production"``.
    :param read_only: no visitor may change anything, whatever ``access`` says.
    :raises ConfigError: ``access`` is missing or invalid.
    """

    def __init__(
        self,
        app: Streams,
        *,
        access: Any = None,
        redact: Redact | None = None,
        hosts: Collection[str] | None = None,
        environment: str = "",
        read_only: bool = False,
    ) -> None:
        if not isinstance(app, Streams):
            raise ConfigError(f"Dashboard({app!r}): a Streams app is needed")
        if access is None:
            raise ConfigError(
                "Dashboard(app): say who may do what with access=, as a function of the request; "
                "it cannot know who reaches the address that it is mounted at"
            )
        if redact is not None and not callable(redact):
            raise ConfigError(f"Dashboard(redact={redact!r}): a function is needed")
        super().__init__(app, redact, environment, read_only=read_only)
        self._rule = AccessRule(access)
        if hosts is not None:
            self._hosts: frozenset[str] | None = check_hosts(hosts)
        else:
            self._hosts = None if self._rule.asks else loopback_hosts()
        self.site = DashboardSite(tuple(screens()), tuple(problem_finders()))
        self._asgi = self._make_asgi()
        compile_templates()

    def __repr__(self) -> str:
        return f"<Dashboard of {self.app!r}>"

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or take part in a server's lifespan."""
        if scope["type"] == "http":
            await self._asgi(scope, receive, send)
        elif scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    self.close()
                    return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    def _make_asgi(self) -> ASGIApp:
        routes: list[Route | Mount] = [
            Route(screen.path, self._screen_endpoint(screen), methods=["GET"])
            for screen in self.site.screens
        ]
        routes += [
            Route(action.path, self._action_endpoint(action), methods=["POST"])
            for action in actions()
        ]
        routes.append(Route("/live", self._live, methods=["GET"]))
        static = StaticFiles(directory=str(files("streams.web") / "static"))
        routes.append(Mount("/static", static))
        starlette = Starlette(
            routes=routes,
            exception_handlers={HTTPException: self._http_error, Exception: self._crash_response},
        )
        starlette.router.redirect_slashes = False  # it would trust the Host header
        return _GuardMiddleware(starlette, self)

    def refuse(self, request: Request) -> Response | None:
        """A response that refuses a request for any sender; None: it is allowed."""
        reason = refuse_host(request.headers, self._hosts)
        if reason is not None:
            return PlainTextResponse(
                "Unknown host name: this dashboard does not answer to it. Allow it with hosts= "
                "(streams web: --allow-host).\n",
                421,
            )
        if request.method in SAFE_METHODS:
            return None
        if request.method != "POST":
            return PlainTextResponse("only GET, HEAD and POST\n", 405, {"allow": "GET, HEAD, POST"})
        if refuse_origin(request.headers) is not None:
            logger.warning(
                "web: POST %s was refused: it does not come from the dashboard's own pages",
                request.url.path,
            )
            return PlainTextResponse(
                "This form does not come from the dashboard's own pages.\n", 403
            )
        return None

    async def access_of(self, request: Request) -> Access | Response:
        """The permissions of a request's sender; or a response to send instead."""
        try:
            found = await self._rule.of(request)
        except PasswordNeeded as error:
            if error.is_wrong:
                client = request.client.host if request.client is not None else "?"
                logger.warning("web: a wrong password came from %s", client)
                await asyncio.sleep(passwords.WRONG_DELAY)
            return PlainTextResponse(
                "A name and a password are required.\n", 401, {"www-authenticate": REALM}
            )
        except TooManyWrong:
            return PlainTextResponse(
                "Too many wrong passwords: try again in a moment.\n", 429, {"retry-after": "1"}
            )
        except HTTPException as error:  # the user's access= asks for a login in its own way
            return PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
        except PasswordInTheClear:
            return PlainTextResponse("Passwords are accepted over TLS only: use https.\n", 403)
        if not found.read:
            return PlainTextResponse("You may not see this.\n", 403)
        return found.without_actions() if self.read_only else found

    # -- screens

    def _page(self, request: Request, access: Access, fields: Fields) -> Page:
        language = choose_language(
            request.query_params.get("lang"), request.headers.get("accept-language", "")
        )
        return Page(self, self.site, request, access, fields, language)

    def _screen_endpoint(self, screen: Screen) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            access = await self.access_of(request)
            if isinstance(access, Response):
                return access
            try:
                fields = parse_fields(request.scope.get("query_string", b""))
            except InvalidValue as error:
                return self._error(self._page(request, access, Fields(())), 400, str(error))
            page = self._page(request, access, fields)
            if screen.needs and not access.may(screen.needs):
                return self._refused(page, page._("You may not do this here."))
            if screen.payloads and not access.payloads:
                return self._refused(page, page._("You may not see what is in messages."))
            return await self._answer(page, lambda: screen.show(page))

        return show

    def _action_endpoint(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        async def do(request: Request) -> Response:
            access = await self.access_of(request)
            if isinstance(access, Response):
                return access
            page = self._page(request, access, Fields(()))
            if not access.may(action.name):
                self._log_action(page, action, "was refused: not allowed", 0, "")
                return self._refused(page, page._("You may not do this here."))
            try:
                page.fields = await read_form(request)
            except FormTooLarge:
                return self._error(page, 413, page._("This form is too large."))
            except InvalidValue as error:
                return self._error(page, 400, str(error))
            return await self._answer(page, lambda: self._run_action(page, action))

        return do

    def _run_action(self, page: Page, action: Action) -> Response:
        try:
            found = action.do(page)
        except StreamsError as error:
            self.expire()  # a part of the action may be done
            self._log_action(page, action, f"failed: {one_line(str(error))}", 0, "")
            raise
        if isinstance(found, ActionDone):
            self.expire(found.changed)
            self._log_action(page, action, "done", found.count, found.subject)
            return page.render("done.html", done=found, title=found.text)
        if isinstance(found, BackgroundAction):
            job = self.jobs.start(
                self._using_log(found.work),
                action=action.name,
                who=page.access.who,
                title=found.title,
                back=found.back,
                subject=found.subject,
                is_alone=found.is_alone,
                on_end=partial(self._log_job, page, action),
            )
            self._log_action(page, action, "began", 0, found.title)
            return RedirectResponse(page.url(f"/jobs/{job.id}"), 303)
        if isinstance(found, Confirmation):
            fields = [pair for pair in page.fields.pairs if pair[0] != "confirm"]
            return page.render("confirm.html", confirm=found, fields=fields, title=found.title)
        if found.status_code >= 500:  # it is unknown what the action did
            self.expire()
        return found

    def _using_log(
        self, work: Callable[[ReportProgress], ActionDone]
    ) -> Callable[[ReportProgress], ActionDone]:
        """The same work, with the log that the action has used, however long it takes."""
        lease = self.source.keep()

        def do(report: ReportProgress) -> ActionDone:
            with self.source.using(lease):
                return work(report)

        return do

    def _log_job(self, page: Page, action: Action, job: BackgroundJob) -> None:
        result = job.result
        self.expire(() if result is None else result.changed)
        self.sampler.renew()
        what = f"failed: {job.error}" if result is None else "done"
        count = job.done if result is None else result.count
        self._log_action(page, action, what, count, "" if result is None else result.subject)

    def _log_action(self, page: Page, action: Action, what: str, count: int, subject: str) -> None:
        who = page.access.who or "somebody"
        client = page.request.client
        logger.info(
            "web: %s by %s (%s) %s: %s%s",
            action.name,
            escape(who),
            client.host if client is not None else "?",
            what,
            f"{subject}, " if subject else "",
            f"{count:,} concerned",
        )

    async def _answer(self, page: Page, make: Callable[[], Response]) -> Response:
        """The response of a screen or an action; its error as a page."""
        try:
            return await self.source.run(make)
        except (Unavailable, Fatal) as error:
            return await asyncio.to_thread(self._out_of_reach, page, error)
        except NotFound as error:
            if not await asyncio.to_thread(self.source.can_open):  # the log's file is missing
                return await asyncio.to_thread(self._out_of_reach, page, error)
            return self._error(page, 404, str(error))
        except (GroupNotEmpty, EventTopicError) as error:
            return self._error(page, 409, str(error))
        except NoAnswer as error:
            return self._error(page, 503, str(error))
        except StreamsError as error:
            return self._error(page, 400, str(error))

    def _out_of_reach(self, page: Page, error: Exception) -> Response:
        where = self.source.description
        return page.render(
            "out_of_reach.html", status=503, error=describe_error(error), where=where, title=""
        )

    def _refused(self, page: Page, text: str) -> Response:
        return self._error(page, 403, text)

    def _error(self, page: Page, status: int, text: str) -> Response:
        return page.render("error.html", status=status, error=text, title=page._("Not done"))

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = cast(HTTPException, error).status_code
        access = await self.access_of(request)
        if isinstance(access, Response):
            return access
        page = self._page(request, access, Fields(()))
        text = page._("There is no such page.") if status == 404 else page._("Invalid request.")
        return self._error(page, status, text)

    async def _crash_response(self, request: Request, error: Exception) -> Response:
        # Starlette raises it once more, so that the server logs it.
        return HTMLResponse("<!doctype html><title>Error</title><p>See the log.</p>", 500)

    async def _live(self, request: Request) -> Response:
        access = await self.access_of(request)
        if isinstance(access, Response):
            return access
        return live_response(self, self._page, request, access)


class _GuardMiddleware:
    """Wraps everything, the files of ``static/`` too: the checks, and the headers.

    An ASGI application by itself, and no middleware of Starlette's, so that streams pass through.
    """

    def __init__(self, inner: ASGIApp, dashboard: Dashboard) -> None:
        self._inner = inner
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _RAW_HEADERS if pair[0] not in names),
                ]
            await send(message)

        refused = self._dashboard.refuse(Request(scope))
        await (self._inner if refused is None else refused)(scope, receive, send_guarded)


_RAW_HEADERS = [
    (name.encode("ascii"), value.encode("ascii")) for name, value in SECURITY_HEADERS.items()
]
