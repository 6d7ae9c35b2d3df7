"""What the dashboard refuses, and what it shows without letting it do anything."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from streams import ConfigError, Dashboard, Passwords, Streams
from streams.web import Payload, passwords
from streams.web.access import ACTION_NAMES, Access
from streams.web.guard import SECURITY_HEADERS
from streams.web.screens import actions, screens
from streams.web.server import check_address
from tests.conformance.stage import Stage
from tests.web.visiting import HOME, SAME_ORIGIN, visit

EVIL = "https://evil.example"


def a_log() -> Streams:
    return Streams("memory://security")


@pytest.fixture
async def group(stage: Stage) -> str:
    """A group that could be deleted."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(topic, 1)
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0})
    return stage.group


# -- who may


def test_without_access_there_is_no_dashboard() -> None:
    with pytest.raises(ConfigError, match="access="):
        Dashboard(a_log())


@pytest.mark.parametrize("access", ["everything", {"read", "deleet"}, 7, b"all"])
def test_an_access_that_means_nothing_is_refused(access: Any) -> None:
    with pytest.raises(ConfigError, match="access= answered"):
        Dashboard(a_log(), access=access)


def test_each_action_is_one_that_access_can_name() -> None:
    assert {action.name for action in actions()} == ACTION_NAMES


async def test_none_sees_nothing(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access=lambda request: None)) as visitor:
        for path in ("/", "/topics", "/live", "/series", "/nothing"):
            await visitor.get(path, status=403)


async def test_every_action_needs_its_own_permission(stage: Stage, group: str) -> None:
    for action in actions():
        others = {"read", "payloads", *ACTION_NAMES} - {action.name}
        async with visit(Dashboard(stage.app(), access=others)) as visitor:
            seen = await visitor.post(action.path, {"group": group}, status=403)
            assert "You may not do this here." in seen.text


async def test_read_only_is_read_only_for_forged_forms(stage: Stage, group: str) -> None:
    for dashboard in (
        Dashboard(stage.app(), access="read"),
        Dashboard(stage.app(), access="all", read_only=True),
    ):
        async with visit(dashboard) as visitor:
            for action in actions():
                fields = {"group": group, "confirm": group}
                await visitor.post(action.path, fields, status=403)
            seen = await visitor.get(f"/groups/show?group={group}")
            assert not [form for form in seen.forms if form.method == "post"]
            assert "read-only" in seen.text
    assert group in stage.anchor.list_groups()


async def test_access_is_asked_about_each_request(stage: Stage) -> None:
    async def who(request: Request) -> Access | None:
        name = request.headers.get("x-user")
        return Access(read=True, who=name) if name else None

    async with visit(Dashboard(stage.app(), access=who)) as visitor:
        await visitor.get("/", status=403)
        seen = await visitor.get("/", headers={"x-user": "ada"})
        assert "ada" in seen.text


async def test_access_may_ask_for_a_login_its_own_way(stage: Stage) -> None:
    def who(request: Request) -> str:
        raise HTTPException(401, "who are you?", {"www-authenticate": "Bearer"})

    async with visit(Dashboard(stage.app(), access=who)) as visitor:
        for path in ("/", "/live", "/nothing"):
            seen = await visitor.get(path, status=401)
            assert seen.response.headers["www-authenticate"] == "Bearer"
        await visitor.post("/groups/delete", {"group": "g"}, status=401)


async def test_an_action_is_logged_with_who_what_and_how_many(
    stage: Stage, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    def who(request: Request) -> Access:
        return Access(read=True, actions=ACTION_NAMES, who="ada\x1b[31m")

    async with visit(Dashboard(stage.app(), access=who)) as visitor:
        with caplog.at_level(logging.INFO, "streams.web"):
            await visitor.post("/groups/delete", {"group": group, "confirm": group})
    [line] = [each.getMessage() for each in caplog.records if "delete-group" in each.getMessage()]
    assert f"delete-group by ada\\x1b[31m (127.0.0.1) done: group {group}, 1 concerned" in line


# -- where from


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": "http://localhost:81"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "file://localhost"},
        {"origin": "http://[localhost"},
        {"sec-fetch-site": "cross-site", "origin": HOME},
        {"sec-fetch-site": "same-site", "origin": HOME},
        {"sec-fetch-site": "none"},
    ],
)
async def test_a_form_from_elsewhere_is_refused(
    stage: Stage, group: str, headers: Mapping[str, str]
) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        fields = {"group": group, "confirm": group}
        await visitor.post("/groups/delete", fields, status=403, headers=headers)
        assert group in stage.anchor.list_groups()
        only_origin = {"origin": HOME}  # as browsers do over plain HTTP
        await visitor.post("/groups/delete", fields, headers=only_origin)
    assert group not in stage.anchor.list_groups()


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.2", "", "a/b"])
async def test_a_name_that_was_led_here_is_refused(stage: Stage, host: str) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        for path in ("/", "/live", "/static/style.css"):
            await visitor.get(path, headers={"host": host}, status=421)
        rebound = {**SAME_ORIGIN, "host": host, "origin": f"http://{host}"}
        await visitor.post("/groups/delete", {"group": "g"}, headers=rebound, status=421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST:1"])
async def test_the_machines_own_names_are_allowed(stage: Stage, host: str) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        await visitor.get("/", headers={"host": host})


async def test_names_can_be_allowed(stage: Stage) -> None:
    dashboard = Dashboard(stage.app(), access="read", hosts=["ops.example"])
    async with visit(dashboard) as visitor:
        await visitor.get("/", headers={"host": "ops.example:443"})
        await visitor.get("/", headers={"host": "localhost"}, status=421)
    with pytest.raises(ConfigError, match="no port"):
        Dashboard(stage.app(), access="read", hosts=["ops.example:443"])


async def test_other_methods_are_refused(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = await visitor.client.request(method, "/groups/delete")
            assert answer.status_code == 405


# -- passwords


async def test_a_password_is_asked_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(passwords, "WRONG_DELAY", 0.0)
    dashboard = Dashboard(stage.app(), access=Passwords({"ada": "correct horse"}))
    async with visit(dashboard, base_url="https://ops.example") as visitor:
        refused = await visitor.get("/", status=401)
        assert refused.response.headers["www-authenticate"].startswith("Basic ")
        for given in (("ada", "wrong"), ("bob", "correct horse"), ("", ""), ("ada", "")):
            await visitor.get("/", status=401, auth=given)
        for header in ("Basic", "Basic !", "Basic YWRh", "Bearer x", "Basic " + "A" * 5_000):
            await visitor.get("/", status=401, headers={"authorization": header})
        assert caplog.text.count("a wrong password came from 127.0.0.1") == 9
        assert "horse" not in caplog.text
        await visitor.get("/", auth=("ada", "correct horse"))
        await visitor.get("/live", status=401)


async def test_passwords_are_not_guessed_quickly(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is right is told to nobody who guesses, and keeps nobody out who was in."""
    monkeypatch.setattr(passwords, "WRONG_DELAY", 0.0)
    monkeypatch.setattr(passwords, "WRONG_WITHIN", float("inf"))
    known = Passwords({"ada": "correct horse", "bob": "battery staple"})
    async with visit(Dashboard(stage.app(), access=known)) as visitor:
        await visitor.get("/", auth=("ada", "correct horse"))
        for number in range(passwords.MOST_WRONG):
            await visitor.get("/", status=401, auth=("bob", f"battery {number}"))
        for word in ("battery 11", "battery staple"):
            answer = await visitor.get("/", status=429, auth=("bob", word))
            assert answer.response.headers["retry-after"] == "1"
        await visitor.get("/", status=429, auth=("ada", "wrong horse"))
        await visitor.get("/", auth=("ada", "correct horse"))
        await visitor.get("/", status=401)  # who says nothing guesses nothing
        monkeypatch.setattr(passwords, "WRONG_WITHIN", 0.0)
        await visitor.get("/", auth=("bob", "battery staple"))


async def test_a_password_is_not_taken_in_the_clear(stage: Stage) -> None:
    dashboard = Dashboard(stage.app(), access=Passwords({"ada": "correct horse"}))
    async with visit(dashboard, base_url="http://ops.example") as visitor:
        seen = await visitor.get("/", status=403, auth=("ada", "correct horse"))
        assert "TLS" in seen.text
        assert "www-authenticate" not in seen.response.headers
    async with visit(Dashboard(stage.app(), access=Passwords({"ada": "correct horse"}))) as visitor:
        await visitor.get("/", auth=("ada", "correct horse"))  # this machine to itself


def test_a_file_of_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "passwords"
    file.write_text("# who may\nada:correct horse\n\nbob:battery: staple\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Passwords.from_file(file)
    file.chmod(0o600)
    Passwords.from_file(file)
    for text, problem in (
        ("ada", "line 1: write NAME:PASSWORD"),
        ("ada:short", "at least 8"),
        ("ada:correct horse\nada:correct horse", "is listed twice"),
        ("", "no names"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=problem) as refused:
            Passwords.from_file(file)
        assert "horse" not in str(refused.value)
        assert "short" not in str(refused.value)
    with pytest.raises(ConfigError, match="No such file"):
        Passwords.from_file(tmp_path / "missing")
    monkeypatch.delenv("STREAMS_WEB_PASSWORDS", raising=False)
    assert Passwords.from_environment() is None
    monkeypatch.setenv("STREAMS_WEB_PASSWORDS", "ada:correct horse")
    assert Passwords.from_environment() is not None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.4", "::", "ops.example"])
def test_another_address_needs_a_password_and_tls(host: str) -> None:
    with pytest.raises(ConfigError, match="password"):
        check_address(host, has_passwords=False, has_tls=True)
    with pytest.raises(ConfigError, match="in the clear"):
        check_address(host, has_passwords=True, has_tls=False)
    check_address(host, has_passwords=True, has_tls=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_neither(host: str) -> None:
    check_address(host, has_passwords=False, has_tls=False)


async def test_who_asks_for_no_body_gets_no_stream(stage: Stage) -> None:
    stage.anchor.create_topic(stage.topic_name, 1)
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        for path in ("/live", f"/live?arriving=topic%3D{stage.topic_name}", "/"):
            assert (await visitor.client.head(path)).status_code == 200


# -- what a browser is told


async def test_every_response_keeps_the_browser_in_bounds(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        for path, status in (
            ("/", 200),
            ("/static/style.css", 200),
            ("/static/nothing", 404),
            ("/nothing", 404),
            ("/topics/none", 404),
        ):
            headers = (await visitor.get(path, status=status)).response.headers
            for name, value in SECURITY_HEADERS.items():
                assert headers.get_list(name) == [value], path
            assert "set-cookie" not in headers
    policy = SECURITY_HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;script&gt;&#x3c;b&#x3e;",
    "javascript:alert(1)",
    "{{ 7*7 }}{% raw %}",
    "\x1b]0;title\x07\x1b[2J\x9b31m",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "%(key)s %s %",
    "x" * 5_000,
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_a_hostile_query_is_shown_as_text(stage: Stage, text: str) -> None:
    async with visit(Dashboard(stage.app(), access="all", environment=text)) as visitor:
        for screen in screens():
            if "{" in screen.path:
                continue
            params = dict.fromkeys(("q", "group", "topic", "page", "sort", "lang", "all"), text)
            params["page"] = ""
            answer = await visitor.client.get(screen.path, params=params)
            assert answer.status_code in (200, 400, 404), (screen.path, answer.text)
            if "html" in answer.headers["content-type"]:
                assert_inert(answer.text)


def assert_inert(html: str) -> None:
    """Nothing on a page is executed, steers a terminal, or hides."""
    from tests.web.visiting import _Reader

    reader = _Reader()
    reader.feed(html)
    assert not reader.dangerous
    assert not {char for char in html if ord(char) < 32 and char not in "\n\t"}
    assert not {char for char in html if char in "\x7f\x9b\u202e\u2066\u200b\ufeff"}


@pytest.mark.parametrize(
    "path", ["//evil.example/", "/topics//evil.example", "/\\evil.example", "/%2F%2Fevil.example/x"]
)
async def test_no_address_leads_elsewhere(stage: Stage, path: str) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        answer = await visitor.client.get(HOME + path, follow_redirects=False)
        assert "location" not in answer.headers
        assert_inert(answer.text)
        answer = await visitor.client.get(HOME + "/topics/", headers={"host": "localhost"})
        assert "location" not in answer.headers


async def test_mounted_below_a_path_all_addresses_stay_there(stage: Stage, group: str) -> None:
    dashboard = Dashboard(stage.app(), access="all")
    service = Starlette(routes=[Mount("/ops/a b/streams", dashboard)])
    async with visit(dashboard, asgi=service, root="/ops/a b/streams") as visitor:
        root = "/ops/a%20b/streams"
        seen = await visitor.get("/")
        for _, href in seen.links:
            assert href.startswith((root, "?", "#")), href
        asked = [part.split('"')[0] for part in seen.html.split('src="')[1:]]
        asked += [part.split('"')[0] for part in seen.html.split('rel="stylesheet" href="')[1:]]
        for address in asked:
            assert address.startswith(root)
            answer = await visitor.client.get(address)
            assert answer.status_code == 200, address
        shown = await visitor.get(f"/groups/show?group={group}")
        question = await visitor.submit(shown, "Delete the group")
        await visitor.submit(question, "Delete it")
    assert group not in stage.anchor.list_groups()


# -- what is sent


async def test_a_form_has_bounds(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="all")) as visitor:
        await visitor.post("/groups/delete", {"group": "x" * (5 << 20)}, status=413)
        many = {f"field-{number}": "x" for number in range(3_000)}
        await visitor.post("/groups/delete", many, status=400)
        answer = await visitor.client.post(
            "/groups/delete", content=b"{}", headers={**SAME_ORIGIN, "content-type": "text/plain"}
        )
        assert answer.status_code == 400
        for path in ("/topics?" + "a&" * 3_000, "/groups/show?group=%FF"):
            await visitor.get(path, status=400)


async def test_a_crash_says_nothing_of_itself(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dashboard = Dashboard(stage.app(), access="all")

    def fail(seconds: float) -> None:
        raise RuntimeError("the password is horse")

    monkeypatch.setattr(dashboard.groups, "look", fail)
    transport = httpx.ASGITransport(dashboard, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=HOME) as client:
        answer = await client.get("/topics")
    dashboard.close()
    assert answer.status_code == 500
    assert "horse" not in answer.text


# -- what of messages is shown


async def test_redact_stands_between_a_message_and_every_visitor(stage: Stage) -> None:
    asked: list[Payload] = []

    def redact(payload: Payload) -> str | None:
        asked.append(payload)
        if payload.data == b"broken":
            raise ValueError("horse")
        return "***"

    app = stage.app()
    topic = stage.topic(app, partitions=2)
    async with app.connected():
        await stage.publish(topic, 1, key="secret")
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0, 1: 0})
        async with visit(Dashboard(app, access="all", redact=redact)) as visitor:
            seen = await visitor.get(f"/groups/show?group={stage.group}")
            assert "secret" not in seen.html
            assert "***" in seen.text
            await stage.publish(topic, 1, key="broken")
    assert Payload("key", stage.topic_name, "", b"secret") in asked
