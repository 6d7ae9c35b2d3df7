"""Names and passwords for HTTP basic authentication, from a file or the environment.

A password is sent in clear with every request, so it is requested, and accepted, only over TLS or
on the machine's own loopback addresses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import ConfigError
from streams.web.access import Access

if TYPE_CHECKING:
    from starlette.requests import Request

VARIABLE = "STREAMS_WEB_PASSWORDS"
"""The environment variable: ``NAME:PASSWORD``, with line breaks between several."""

SHORTEST = 8
"""The least length of a password, in characters."""

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

WRONG_DELAY = 1.0
"""Seconds of real time for which the answer to a wrong password is delayed."""

MOST_WRONG = 10
"""Wrong passwords within :data:`WRONG_WITHIN`, from any address; beyond that only visitors are let
in whose password was right before, from the same address."""

WRONG_WITHIN = 1.0
"""The window of :data:`MOST_WRONG`, in seconds of real time."""

MAX_CAME_IN = 1_000
"""How many successful visitors are remembered."""


class PasswordNeeded(Exception):
    """The request has no password, or a wrong one.

    :param is_wrong: whether it has one.
    """

    def __init__(self, *, is_wrong: bool) -> None:
        super().__init__("a password is needed")
        self.is_wrong = is_wrong


class TooManyWrong(Exception):
    """Passwords are being guessed, so this one is not checked."""


class PasswordInTheClear(Exception):
    """A password would be sent over a connection that others can read."""


class Passwords:
    """Asks for a name and a password: pass it as ``access=``.

    :param users: names and passwords.
    :param access: the permissions of visitors with a right password; an answer as of ``access=``.
    :raises ConfigError: a name or a password cannot be one.
    """

    def __init__(self, users: Mapping[str, str], access: object = "all") -> None:
        self._access = Access.of(access)
        if not users:
            raise ConfigError("no names and passwords: give at least one")
        # Digests have the same length for every password, and no password is kept in clear.
        self._salt = secrets.token_bytes(16)
        self._digests = {
            _check_name(name): self._digest(name, word) for name, word in users.items()
        }
        self._lock = threading.Lock()
        self._wrong: deque[float] = deque(maxlen=MOST_WRONG)
        """The times of the last wrong passwords (monotonic)."""
        self._came_in: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Names and addresses of the last :data:`MAX_CAME_IN` visitors whose password was right."""

    @classmethod
    def from_file(cls, path: str | Path, access: object = "all") -> Passwords:
        """Names and passwords of a file: ``NAME:PASSWORD``, one a line; ``#`` begins a comment.

        :raises ConfigError: it cannot be read, users other than its owner may read it, or a line is
            no name and password. No password is quoted.
        """
        try:
            with open(path, encoding="utf-8") as lines:
                mode = os.fstat(lines.fileno()).st_mode
                text = lines.read()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise ConfigError(f"the passwords of {path}: {why}") from None
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"the passwords of {path}: users other than its owner can read it; chmod 600 {path}"
            )
        return cls(_parse(text, str(path)), access)

    @classmethod
    def from_environment(cls, access: object = "all") -> Passwords | None:
        """Names and passwords of :data:`VARIABLE`; None if it is not set.

        :raises ConfigError: a line is no name and password.
        """
        text = os.environ.get(VARIABLE)
        return None if text is None else cls(_parse(text, VARIABLE), access)

    def __call__(self, request: Request) -> Access:
        """The permissions of this request's sender.

        :raises PasswordInTheClear: it came neither over TLS nor from this machine.
        :raises PasswordNeeded: it has no right password.
        :raises TooManyWrong: there were too many wrong ones just now.
        """
        if request.scope.get("scheme") != "https" and not _on_loopback(request):
            raise PasswordInTheClear
        given = request.headers.get("authorization", "")
        name = self._name_in(given)
        if given:
            address = request.client.host if request.client is not None else ""
            with self._lock:
                self._check_guesses(name, address)
        if name is None:
            raise PasswordNeeded(is_wrong=bool(given))
        return Access.of(
            Access(self._access.read, self._access.payloads, self._access.actions, name)
        )

    def _check_guesses(self, name: str | None, address: str) -> None:
        """:param name: the name whose password was right; None: it was wrong."""
        if name is not None and (name, address) in self._came_in:
            return
        now = time.monotonic()
        if len(self._wrong) == MOST_WRONG and now - self._wrong[0] < WRONG_WITHIN:
            raise TooManyWrong  # also for a right password, so that a guesser learns nothing
        if name is not None:
            self._came_in[name, address] = None
            if len(self._came_in) > MAX_CAME_IN:
                self._came_in.popitem(last=False)
        else:
            self._wrong.append(now)

    def _name_in(self, header: str) -> str | None:
        scheme, _, given = header.partition(" ")
        if scheme.lower() != "basic" or len(given) > 1_024:
            return None
        try:
            name, colon, word = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        expected = self._digests.get(name)
        # An unknown name costs as much time as a known one.
        found = self._digest(name, word)
        right = hmac.compare_digest(found, expected or secrets.token_bytes(len(found)))
        return name if colon and right and expected is not None else None

    def _digest(self, name: str, word: str) -> bytes:
        data = f"{name}\0{word}".encode("utf-8", "surrogatepass")
        return hmac.new(self._salt, data, hashlib.sha256).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _on_loopback(request: Request) -> bool:
    server = request.scope.get("server")
    client = request.scope.get("client")
    return (
        server is not None
        and client is not None
        and is_loopback(server[0])
        and is_loopback(client[0])
    )


def _parse(text: str, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, word = line.partition(":")
        if not colon:
            raise ConfigError(f"{where}, line {number}: write NAME:PASSWORD")
        if len(word) < SHORTEST:
            raise ConfigError(
                f"{where}, line {number}: a password has at least {SHORTEST} characters"
            )
        if name in found:
            raise ConfigError(f"{where}, line {number}: {name!r} is listed twice")
        found[_check_name(name)] = word
    if not found:
        raise ConfigError(f"{where} has no names and passwords; write NAME:PASSWORD, one per line")
    return found


def _check_name(name: str) -> str:
    if not name or len(name) > 100 or ":" in name or not name.isprintable():
        raise ConfigError(f"{name!r} cannot be a name: printable characters and no colon")
    return name
