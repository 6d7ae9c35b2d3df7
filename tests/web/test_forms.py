"""Fields of forms: what a page writes comes back."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.errors import InvalidValue
from streams.web.forms import HEX, parse_fields
from streams.web.rendering import _finalize, hidden_field


class _Input(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found = {name: value or "" for name, value in attrs}


def sent_back(name: str, text: str) -> str:
    """What a browser sends of a hidden field."""
    reader = _Input()
    reader.feed(str(_finalize(hidden_field(name, text))))
    pair = reader.found["name"], reader.found["value"]
    data = urlencode([pair]).encode("ascii")
    assert data.decode() == urlencode([pair], errors="surrogateescape")
    return parse_fields(data).raw(name)


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
@example("a\tb")
@example("a\r\nb\n")
@example(' "<&> ')
@example("\x00\x9b\u202e")
@example("\udcff")
def test_a_hidden_field_comes_back_as_it_is(text: str) -> None:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return  # text that no bytes are
    assert sent_back("key", text) == text


def test_what_is_no_hexadecimal_is_refused() -> None:
    with pytest.raises(InvalidValue):
        parse_fields(f"{HEX}key=zz".encode())
