"""Every command that lists, over topics full of hostile records: what can be listed is, what cannot
is named, and nothing ends in an error that nobody thought of."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from streams.cli.root import run


class Ended(NamedTuple):
    """How a command ended."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def documents(self) -> list[Any]:
        """Standard output, one JSON document a line."""
        # Not splitlines(): a string in JSON may hold U+2028 and the like.
        return [json.loads(line) for line in self.out.split("\n") if line]


@contextmanager
def _captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    out, err = io.BytesIO(), io.BytesIO()
    with (
        mock.patch.object(sys, "stdout", io.TextIOWrapper(out, "utf-8", write_through=True)),
        mock.patch.object(sys, "stderr", io.TextIOWrapper(err, "utf-8", write_through=True)),
    ):
        yield out, err
        sys.stdout.flush()
        sys.stderr.flush()


def command(url: str, *words: str) -> Ended:
    """Run a command to its end; it must not end in an error that nobody thought of."""
    with _captured() as (out, err):
        status = run([*words, "--url", url])
        sys.stdout.flush()
        sys.stderr.flush()
        ended = Ended(words, status, out.getvalue().decode(), err.getvalue().decode())
    assert status == 0 or "STREAMS_DEBUG" not in ended.err, ended
    assert "Traceback" not in ended.err, ended
    for line in (ended.out + ended.err).splitlines():
        assert "\x1b" not in line, ended
    return ended


def lists(url: str, *words: str) -> Ended:
    """The same, for people and for programs, and both end well."""
    plain, documents = command(url, *words), command(url, *words, "--json")
    assert plain.status == documents.status == 0, (plain, documents)
    assert documents.documents is not None
    return documents
