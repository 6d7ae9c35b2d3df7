"""A password on the command line, in the environment or in an app: no command shows a piece of it."""

from __future__ import annotations

import signal

import pytest

from tests.cli.conftest import Run, Shell, eventually

SECRET = "Hunter2secret"
PIECES = ("Hunter", "unter2", "nter2s", "ter2se", "er2sec", "r2secr", "2secre", "secret")

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
    "topics ls --url URL",
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
    "doctor shop:app --url URL",
    "doctor shop:app --url URL --json",
    "publish orders URL",
    "URL",
)


def silent(*texts: str) -> None:
    for text in texts:
        assert not any(piece in text for piece in PIECES), text


@pytest.mark.parametrize("url", URLS)
def test_no_command_shows_a_url_s_secret(
    run: Run, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for debug in ("0", "1"):
        monkeypatch.setenv("STREAMS_DEBUG", debug)
        for place in PLACES:
            if "--url" not in place and "://" not in url:
                continue  # nothing says that it is a URL
            if place.endswith(("URL", "--json")) and "--url URL" in place and ":1" in url:
                if debug == "1" and url.startswith("kafka"):
                    continue  # it waits for a broker each time
            result = run(*(word.replace("URL", url) for word in place.split(" ")))
            silent(result.out, result.err)
            assert result.status


def test_what_an_app_knows_is_not_shown_either(shell: Shell, run: Run) -> None:
    shell.write(
        "secret.py",
        "from streams import Streams\n"
        f"app = Streams('redis://shop:{SECRET}@127.0.0.1:1?lease=5',"
        f" config={{'client_name': 'x', 'username': 'shop', 'password': '{SECRET}'}})\n"
        "topic = app.topic('orders', int)\n\n"
        "@app.processor(topic, group='g')\ndef handle(value: int) -> None: ...\n",
    )
    for more in ([], ["--json"]):
        result = run("doctor", "secret:app", *more)
        silent(result.out, result.err)
        assert "redis://shop:***@127.0.0.1:1?lease=5" in result.out
    with shell.start("run", "secret:app", "-l", "debug") as process:
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
    assert "running secret:app on redis://shop:***@127.0.0.1:1?lease=5" in err
    silent(err)
