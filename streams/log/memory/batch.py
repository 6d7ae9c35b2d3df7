"""Messages of the memory log, as a poll returns them."""

from __future__ import annotations

from streams.message import ID, Batch, Headers, Record


class MemoryBatch(Batch):
    """A slice of a partition. The ID header of a message without other headers is created when it
    is read."""

    __slots__ = ("header_sources",)

    header_sources: list[Record | str]

    def headers(self, index: int) -> Headers:
        """The headers of one message, the ID first where there is one."""
        found = self.header_sources[index]
        return (
            headers_with_id(found, ())
            if isinstance(found, str)
            else headers_with_id(found.id, found.headers)
        )

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID."""
        found = self.header_sources[index]
        return () if isinstance(found, str) else found.headers


def headers_with_id(id: str, others: Headers) -> Headers:
    """A message's headers, the ID first."""
    return ((ID, id.encode("utf-8", "surrogateescape")), *others) if id else others
