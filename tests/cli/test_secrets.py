"""A password on the command line or in an app: no command shows a piece of it."""

from __future__ import annotations

import signal

import pytest

from tests.cli.conftest import Run, Shell, eventually

SECRET = "Hunter2zebra"
PIECES = [SECRET[at : at + 6] for at in range(len(SECRET) - 5)]

URLS = (
    f"kafka://127.0.0.1:1?sasl.password=p@{SECRET}",
    f"kafka://shop:{SECRET[:7]}#{SECRET[7:]}@127.0.0.1:1",
    f"kafka://127.0.0.1:1?sasl.password=ab&{SECRET}",
    f"kafka://127.0.0.1:1?sasl.password=ab&{SECRET}=1",
    f"kafka://shop:{SECRET}@127.0.0.1:port",
    f"redis://shop:{SECRET}@127.0.0.1:1",
    f"redis://shop:x/{SECRET}@127.0.0.1:1",
    f"redis://127.0.0.1:1?password=x&{SECRET}=1",
    f"rediss://127.0.0.1:1?ssl_password={SECRET}",
    f"rediss://:{SECRET}@127.0.0.1:1?ssl_cert_reqs=maybe",
    f"redis://shop:{SECRET}",
    f"postgres://shop:{SECRET}@127.0.0.1",
    f"shop:{SECRET}@127.0.0.1",
)

PLACES = (
    "topics ls URL",
    "topics show URL",
    "tail URL",
    "tail orders --urlURL",
    "tail orders -n URL",
    "replay URL",
    "replay shop:app URL",
    "run URL",
    "run shop:app --http URL",
    "run shop:URL",
    "doctor URL",
    "doctor shop:app --prometheus URL",
    "publish orders URL",
    "URL",
)


def silent(*texts: str) -> None:
    for text in texts:
        assert not any(piece in text for piece in PIECES), text


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("debug", ["", "1"])
def test_no_command_shows_the_secret_of_its_url(
    run: Run, url: str, debug: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMS_DEBUG", debug)
    for words in (["topics", "ls"], ["doctor", "shop:app", "--json"]):
        result = run(*words, "--url", url)
        assert result.status
        silent(result.out, result.err)


@pytest.mark.parametrize("place", PLACES)
def test_a_url_in_the_wrong_place_is_not_quoted(
    run: Run, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (URLS[0], URLS[4], URLS[-2]):
        result = run(*(word.replace("URL", url) for word in place.split(" ")))
        assert result.status
        silent(result.out, result.err)


def test_what_an_app_knows_is_not_shown_either(
    shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAMS_URL")
    del shell.environment["STREAMS_URL"]
    shell.write(
        "vault.py",
        "from streams import Streams\n"
        f"app = Streams('redis://shop:{SECRET}@127.0.0.1:1?lease=5',"
        f" config={{'client_name': 'x', 'username': 'shop', 'password': '{SECRET}'}})\n"
        "topic = app.topic('orders', int)\n\n"
        "@app.processor(topic, group='g')\ndef handle(value: int) -> None: ...\n",
    )
    for more in ([], ["--json"]):
        result = run("doctor", "vault:app", *more)
        silent(result.out, result.err)
        assert "redis://shop:***@127.0.0.1:1?lease=5" in result.out
    with shell.start("run", "vault:app", "-l", "debug") as process:
        assert process.stderr is not None
        lines: list[bytes] = []

        def waiting() -> bool:
            assert process.stderr is not None
            lines.append(process.stderr.readline())
            return b"trying again" in lines[-1]

        eventually(waiting)
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    err = (b"".join(lines) + rest).decode()
    assert "running vault:app on redis://shop:***@127.0.0.1:1?lease=5" in err
    silent(err)
