"""No six characters of a secret in any text, however a URL or a DSN is written and whoever quotes
it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from streams import Asyncpg, AsyncPsycopg, Outbox, Psycopg, Streams
from streams.databases.addresses import place_of, secrets_of
from streams.derived_records import error_headers
from streams.errors import ConfigError, LogError
from streams.log.kafka.settings import read_settings as kafka_settings
from streams.log.url import open_log, parse, read_url, redact
from streams.patterns.idempotency import IdempotencyStore
from streams.secrets import HIDDEN, MIN_PIECE, Secrets, is_secret_name
from tests.servers.lifetime import free_port, until

LETTERS = "QXZVJKqxzvjk"
"""No error of ours has six of them beside each other."""

secrets = st.text(LETTERS + "@:/?#&%=\\+,;[]{}'\"<>|^` \tü€\U0001f511\u202e", min_size=MIN_PIECE)
encodings: st.SearchStrategy[Callable[[str], str]] = st.sampled_from(
    [str, quote, lambda text: quote(text, safe="")]
)
"""As it stands; with the slash forgotten; as it should be."""

HOSTS = ("h", "h:1", "a.example:9092,b-1,c_2:3", "[::1]", "[fe80::1%25eth0]:7,h", "höst", "")
SCHEMES = (
    "redis",
    "rediss",
    "redis+sentinel",
    "redis+cluster",
    "kafka",
    "kafka+ssl",
    "sqlite",
    "memory",
    "postgres",
    "http",
)
NAMES = (
    "password",
    "sentinel_password",
    "ssl_password",
    "sasl.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "ssl.key.pem",
    "ssl.keystore.password",
    "api_key",
    "access_token",
    "SASL%2EPASSWORD",
)
FORMS = (
    "{scheme}://shop:{secret}@{hosts}",
    "{scheme}://shop:{secret}@{hosts}/0?client.id=x",
    "{scheme}://:{secret}@{hosts}?lease=5",
    "{scheme}://{secret}@{hosts}",
    "{scheme}://{secret}:@{hosts}",
    "{scheme}://shop:{secret}",
    "{scheme}://{hosts}?{name}={secret}",
    "{scheme}://{hosts}?lease=5&{name}={secret}&client.id=x",
    "{scheme}://shop:x@{hosts}/0?{name}={secret}#top",
    "{scheme}:///?{name}={secret}",
    "{scheme}://{hosts}?{name}=x&timeout={secret}&lease={secret}",
    "{scheme}://{hosts}?{name}=x&socket_keepalive={secret}&ssl_cert_reqs={secret}",
    "{scheme}://{hosts}?{name}=x&replication.factor={secret}&fetch.max.bytes={secret}",
    "{scheme}:shop:{secret}@{hosts}",
    "shop:{secret}@{hosts}",
    " {scheme}://shop:{secret}@{hosts}\n",
)


def shows(text: str, secret: str) -> bool:
    """A piece of the secret stands in the text."""
    written = secret.encode("utf-8", "backslashreplace")
    forms = {secret, quote(written, safe=""), quote(written), repr(secret)[1:-1]}
    return any(
        form[at : at + MIN_PIECE] in text
        for form in forms
        for at in range(len(form) - MIN_PIECE + 1)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it hangs on, also where tracebacks leave it out."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            todo += [each.__cause__, each.__context__]


def texts(error: BaseException) -> Iterator[str]:
    """All that is told of an error."""
    for each in chain(error):
        yield str(each)
        yield repr(each)
        yield repr(each.args)
    for name, value in error_headers(error, 1, "group", ("topic", 0, "1"), "now"):
        yield f"{name}: {value!r}"
    # Lines of the source are left out: a test's own may hold anything.
    yield from (
        line for line in traceback.format_exception(error) if not line.startswith("  File ")
    )


def told(url: str, config: dict[str, Any]) -> Iterator[str]:
    """Every text that comes of a URL without a server."""
    yield redact(url)
    yield repr(Streams(url, config=config))
    for build in (IdempotencyStore, parse):
        try:
            yield repr(build(url))
        except ConfigError as error:
            yield from texts(error)
    try:
        scheme, opened = read_url(url, config, None)
        yield repr(opened)
        if scheme.startswith("kafka"):  # the driver's clients would be made by the thousand
            found: Any = kafka_settings(opened)
            yield repr(found)
        elif scheme != "sqlite":  # it would make a file
            with closing(open_log(url, config)) as log:
                yield repr(log)
                yield repr(getattr(log, "_client", None) and log._client.settings)  # type: ignore[attr-defined]
    except (ConfigError, LogError) as error:
        yield from texts(error)


@given(
    secrets,
    encodings,
    st.sampled_from(FORMS),
    st.sampled_from(SCHEMES),
    st.sampled_from(HOSTS),
    st.sampled_from(NAMES),
)
def test_no_piece_of_a_secret_in_a_url_is_shown(
    secret: str, encode: Callable[[str], str], form: str, scheme: str, hosts: str, name: str
) -> None:
    url = form.format(scheme=scheme, secret=encode(secret), hosts=hosts, name=name)
    for text in told(url, {}):
        assert not shows(text, secret), text


@given(
    secrets | st.text("\udcff\ud800" + LETTERS, min_size=MIN_PIECE),
    st.sampled_from(
        ["memory://", "sqlite:///x.db", "redis://h", "redis+sentinel://h/m", "kafka://h"]
    ),
    st.sampled_from(NAMES),
    st.booleans(),
)
def test_no_piece_of_a_secret_in_the_settings_is_shown(
    secret: str, url: str, name: str, raw: bool
) -> None:
    value = secret.encode("utf-8", "surrogatepass") if raw else secret
    for text in told(url, {name: value}):
        assert not shows(text, secret), text


@given(secrets)
def test_a_password_that_is_encoded_reads_as_it_was_meant(secret: str) -> None:
    written = quote(secret, safe="")
    for scheme in ("redis", "kafka+ssl"):
        found = parse(f"{scheme}://shop:{written}@h:1,[::1]:2?password={written}&x=1")
        assert (found.user, found.password) == ("shop", secret)
        assert found.hosts == (("h", 1), ("[::1]", 2))
        assert found.options == {"password": secret, "x": "1"}


@pytest.mark.parametrize(
    "url",
    [
        "kafka://h?sasl.password=p@Hunter2secret",
        "kafka://shop:Hunter2#secret@h",
        "kafka://h?sasl.password=Hunter2&secret",
        "redis://shop:Hunter2/secret@h",
        "redis://shop:Hunter2?secret@h",
        "redis://shop:Hunter2secret",
        "redis://h?password=Hunter2#secret",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_and_told_how_to_be_written(url: str) -> None:
    with pytest.raises(ConfigError, match=r"%26|%23") as caught:
        open_log(url)
    assert not shows(str(caught.value), "Hunter2secret")
    assert "Hunter" not in str(caught.value)
    assert "secret" not in redact(url).lower()


@pytest.mark.parametrize(
    "url", ["redis://shop:p@ss:w=o&r+d\\,[x]@h", "kafka://shop:p@ss:w=o&r+d\\,[x]@h"]
)
def test_what_can_be_read_in_one_way_only_is_read(url: str) -> None:
    assert parse(url).password == "p@ss:w=o&r+d\\,[x]"


def test_a_plus_in_a_setting_is_a_plus() -> None:
    assert parse("kafka://h?sasl.password=Zm9v+YmFy/==").options["sasl.password"] == "Zm9v+YmFy/=="


@pytest.mark.parametrize(
    "url", ["redis://h\n", "redis://a\x1b[31m:p@h", "kafka://h?x=\u2028", "redis://u:\udcff@h"]
)
def test_a_control_character_in_a_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        open_log(url)


def test_what_is_encoded_is_utf_8() -> None:
    with pytest.raises(ConfigError, match="UTF-8") as caught:
        parse("redis://u:Hunter2%ff@h")
    assert len(list(chain(caught.value))) == 1


@pytest.mark.parametrize("name", [*NAMES, "x_api_key", "sasl.jaas.config", "AWS_SECRET", "pwd"])
def test_names_that_sound_like_secrets(name: str) -> None:
    assert is_secret_name(name.replace("%2E", "."))


@pytest.mark.parametrize("name", ["client.id", "lease", "ssl_keyfile", "sasl.username"])
def test_names_that_do_not(name: str) -> None:
    assert not is_secret_name(name)


@given(st.lists(secrets, max_size=3), st.lists(st.text() | secrets, max_size=4), st.data())
def test_a_driver_s_text_is_shown_without_pieces_of_secrets(
    hidden: list[str], around: list[str], data: st.DataObject
) -> None:
    parts = [*around]
    for secret in hidden:
        at = data.draw(st.integers(0, len(secret)))
        parts.append(data.draw(st.sampled_from([secret, secret[at:], secret[:at], repr(secret)])))
    text = " ".join(data.draw(st.permutations(parts)))
    found = Secrets(hidden).hide(text)
    assert not any(shows(found, secret) for secret in hidden)
    if not hidden:
        assert found == text


# -- what drivers and servers say ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "secret"),
    [
        ("sasl.password=ab&cd", "cd"),
        ("sasl.password=ab&QXZVJK=qxzvjk", "QXZVJK"),
        ("sasl.password=ab&QXZVJK=qxzvjk", "qxzvjk"),
        ("sasl.password=ab&q=qxzvjk", '"q"'),
        ("ssl.key.pem=QXZVJKqxzvjk", "QXZVJK"),
        ("ssl.key.pem=QXZVJKqxzvjk&security.protocol=ssl", "QXZVJK"),
        ("sasl.mechanism=OAUTHBEARER&sasl.oauthbearer.config=QXZVJKqxzvjk", "QXZVJK"),
        (
            "sasl.mechanism=OAUTHBEARER&sasl.oauthbearer.config=QXZVJKqxzvjk&client.id=x",
            "QXZVJK",
        ),
    ],
)
def test_librdkafka_quotes_no_secret(query: str, secret: str) -> None:
    pytest.importorskip("confluent_kafka")
    for scheme in ("kafka", "kafka+ssl"):
        with suppress(LogError):
            try:
                open_log(f"{scheme}://127.0.0.1:1?{query}").close()
            except ConfigError as error:
                for text in texts(error):
                    assert secret not in text


@contextmanager
def repeating() -> Iterator[str]:
    """A server that knows no command, and repeats the arguments of each; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client:
                        words = client.recv(65_536).decode().split("\r\n")[2::2]
                        said = " ".join(f"'{word}'" for word in words[1:])
                        line = (
                            f"-ERR unknown command '{words[0]}', with args beginning with: {said}"
                        )
                        client.sendall(f"{line[:70]}\r\n".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
def test_a_server_that_repeats_the_password_is_not_quoted(scheme: str) -> None:
    secret = "QXZVJKqxzvjk"
    with repeating() as address:
        url = f"{scheme}://shop:{secret}@{address}{'/main' if 'sentinel' in scheme else ''}"
        with closing(
            open_log(url, {"sentinel_password": secret} if "sent" in scheme else {})
        ) as log:
            with pytest.raises(LogError) as caught:
                log.describe_topic("orders")
            for text in texts(caught.value):
                assert not shows(text, secret)


# -- databases -------------------------------------------------------------------------------------

DSN_FORMS = (
    "postgresql://shop:{secret}@{hosts}/db",
    "postgres://shop:{secret}@{hosts}",
    "postgresql://:{secret}@{hosts}/db?sslmode=require",
    "postgresql+psycopg://shop:{secret}@{hosts}/db",
    "postgresql+asyncpg://shop:{secret}@{hosts}/db",
    "postgresql://{hosts}/db?password={secret}",
    "postgresql://{hosts}/db?user=shop&password={secret}&application_name=x",
    "postgresql://{hosts}?sslpassword={secret}&password=x",
    "postgresql://shop:x@{hosts}/db?sslpassword={secret}#top",
    "postgresql://shop:{secret}",
    "postgresql:shop:{secret}@{hosts}/db",
    "shop:{secret}@{hosts}/db",
    "host=h user=shop password={secret} dbname=db",
    "password={secret}",
    "password='{secret}' host=h,i port=1,2",
    "host = h password = '{secret} dbname=db",
    "host=h sslpassword={secret} password=x",
)
DSN_HOSTS = ("h", "h:1", "a.example:9092,b-1,c_2:3", "[::1]", "%2Fvar%2Frun", "", "h:port")


def told_of_database(dsn: str) -> Iterator[str]:
    """Every text that comes of a DSN without a server: ours, and what libpq says of it."""
    for library in (Psycopg, AsyncPsycopg, Asyncpg):
        try:
            database: Any = library(dsn)
            yield repr(database)
            yield from texts_of_libpq(dsn, database.hide_secrets)
            outbox = Outbox(Streams("memory://"), database)
            yield repr(outbox)
            yield outbox.open().place
        except ConfigError as error:
            yield from texts(error)
    try:
        outbox = Outbox(Streams("memory://"), dsn)
        yield repr(outbox)
        yield outbox.open().place
    except ConfigError as error:
        yield from texts(error)
    yield place_of(dsn)
    yield from texts_of_libpq(dsn, secrets_of(dsn).hide_in_error)


def texts_of_libpq(dsn: str, hide: Callable[[BaseException], object]) -> Iterator[str]:
    try:
        conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError) as error:
        hide(error)
        yield from (str(each) for each in chain(error) if not isinstance(each, UnicodeError))


@given(secrets, encodings, st.sampled_from(DSN_FORMS), st.sampled_from(DSN_HOSTS))
def test_no_piece_of_a_secret_in_a_dsn_is_shown(
    secret: str, encode: Callable[[str], str], form: str, hosts: str
) -> None:
    dsn = form.format(secret=encode(secret), hosts=hosts)
    for text in told_of_database(dsn):
        assert not shows(text, secret), (dsn, text)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://shop:p/Hunter2zebra@127.0.0.1:1/db",
        "postgresql://shop:p@Hunter2zebra@127.0.0.1:1/db",
        "postgresql://shop:p%zzHunter2zebra@127.0.0.1:1/db",
        "host=127.0.0.1 port=1 password=my Hunter2zebra",
    ],
)
def test_a_dsn_that_no_driver_can_use_is_refused_and_told_how_to_be_written(dsn: str) -> None:
    for declare in (Psycopg, AsyncPsycopg, lambda dsn: Outbox(Streams("memory://"), dsn)):
        with pytest.raises(ConfigError, match=r"write @ as %40|stands in ''") as caught:
            declare(dsn)
        assert not any(shows(text, "Hunter2zebra") for text in texts(caught.value))


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        ("postgresql://shop:secret@db.example:5433/shop?sslmode=require", "db.example:5433/shop"),
        ("postgresql://shop:sec%2Fret@a:1,b:2/shop", "a:1,b:2/shop"),
        ("postgresql://shop:se?c#ret@a/shop", f"{HIDDEN}"),
        ("postgresql:///shop?host=%2Fvar%2Frun", "/shop"),
        ("postgresql://shop@[::1]:5432/shop", "[::1]:5432/shop"),
        (r"host=db.example port=5433 dbname=shop password='a \' b'", "db.example:5433/shop"),
        ("dbname = shop user=a password = secret", "/shop"),
    ],
)
def test_what_works_is_taken_and_shown_without_who_logs_in(dsn: str, place: str) -> None:
    assert conninfo_to_dict(dsn)
    assert Outbox(Streams("memory://"), Psycopg(dsn)).open().place == f"postgresql://{place}"


async def test_an_outage_of_a_database_is_told_without_its_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the inbox (with asyncpg) and by the relay (with psycopg), whatever a driver quotes."""
    dsn = f"postgresql://shop:Hunter2zebra@127.0.0.1:{free_port()}/db?passfile=Hunter2zebra"
    app = Streams("memory://")
    database = Asyncpg(dsn)
    numbers = app.topic("numbers", int)
    Outbox(app, database)

    @app.processor(numbers, group="g", transaction=database)
    async def handle(value: int) -> None: ...

    caplog.set_level(logging.DEBUG)
    async with app:
        await numbers.publish(1)
        await asyncio.to_thread(until, lambda: "waiting for its database" in caplog.text, 60, "it")
        await asyncio.to_thread(until, lambda: "postgresql://127.0.0.1" in caplog.text, 60, "it")
    assert not shows(caplog.text, "Hunter2zebra")
