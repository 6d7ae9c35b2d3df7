"""``streams web``: serves the dashboard on loopback, and refuses what would not be safe."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request

import pytest

from tests.cli.conftest import Run, Shell, fill, order


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return str(answer.read().decode())


def test_it_prints_its_address_and_ends_in_order(shell: Shell) -> None:
    from streams.log.url import open_log

    log = open_log(f"sqlite:///{shell.folder / 'shop.db'}")
    fill(log, "orders", [order(1)])
    log.close()
    with shell.start("web", "shop:app", "--port", "0", "--environment", "test <1>") as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        address = line.split()[0]
        assert address.startswith("http://127.0.0.1:")
        assert "read-only" in line
        topics = read(f"{address}topics")
        assert "orders" in topics
        assert "test &lt;1&gt;" in topics
        assert "Type" in read(f"{address}topics/orders")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(  # a form that is not there when nobody may act
                urllib.request.Request(
                    f"{address}groups/delete", b"group=x", {"Origin": address.rstrip("/")}
                ),
                timeout=60,
            )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_any_loopback_address_is_asked_for_as_it_was_given(shell: Shell) -> None:
    with shell.log():
        pass
    with shell.start("web", "--port", "0", "--host", "127.0.0.2") as process:
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[0]
        assert address.startswith("http://127.0.0.2:")
        assert "Topics" in read(f"{address}topics")


@pytest.mark.parametrize("more", [(), ("shop:app",), ("--write",)])
def test_a_log_whose_file_is_not_there_is_not_made(
    shell: Shell, run: Run, more: tuple[str, ...]
) -> None:
    with shell.log():
        pass
    refused = run("web", "--port", "0", "--url", "sqlite:///shpo.db", *more)
    assert (refused.status, refused.out) == (1, "")
    assert "there is no file" in refused.err
    assert "shop.db" in refused.err
    assert not list(shell.folder.glob("shpo*"))


def test_a_file_that_goes_away_is_not_made_anew(shell: Shell) -> None:
    with shell.log():
        pass
    with shell.start("web", "--port", "0", "--write") as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert "(from STREAMS_URL); visitors may act" in line
        for each in shell.folder.glob("shop.db*"):
            each.rename(each.with_name(f"moved-{each.name}"))
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            read(f"{line.split()[0]}topics")
        assert "there is no file" in refused.value.read().decode()
    assert not list(shell.folder.glob("shop.db*"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--host", "0.0.0.0"), "no password is required"),
        (("--password-file", "missing"), "missing"),
        (("--tls-cert", "a.pem"), "give both"),
        (("--allow-host", "a:1"), "no port"),
        (("nothing:app",), "nothing"),
    ],
)
def test_what_would_not_work_is_refused(run: Run, arguments: tuple[str, ...], problem: str) -> None:
    refused = run("web", "--port", "0", *arguments)
    assert refused.status != 0
    assert problem in refused.err


def test_a_password_alone_is_not_enough_elsewhere(run: Run, shell: Shell) -> None:
    file = shell.folder / "passwords"
    file.write_text("ada:correct horse\n")
    file.chmod(0o600)
    refused = run("web", "--host", "0.0.0.0", "--password-file", str(file))
    assert refused.status != 0
    assert "in the clear" in refused.err
    assert "horse" not in refused.err
