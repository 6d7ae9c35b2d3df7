"""What views raise."""

from __future__ import annotations

from streams.errors import StreamsError
from streams.message import Position
from streams.text import count_with_noun


class ViewNotReady(StreamsError):
    """No version of the view that this process declares can serve yet.

    :param view: its name.
    :param progress: how much of the events is folded, from 0 to 1; None: nobody has begun.
    """

    def __init__(self, view: str, reason: str, progress: float | None = None) -> None:
        super().__init__(f"view {view!r}: {reason}")
        self.view = view
        self.progress = progress


class DocumentStopped(StreamsError):
    """A document is behind, because the view's function failed at one of its events; or it cannot
    be read.

    :param key: the document's.
    :param position: of the event, as text.
    :param reason: what was raised, in one line.
    :param remedy: what to do; empty: mend the function and have the document folded on.
    """

    def __init__(self, view: str, key: str, position: str, reason: str, remedy: str = "") -> None:
        remedy = remedy or f"fix the function, then: streams views retry {view} {key}"
        super().__init__(
            f"view {view!r}: document {key!r} stands still at {position}, where folding failed: "
            f"{reason}; {remedy}"
        )
        self.view = view
        self.key = key
        self.position = position
        self.reason = reason


class EventsChanged(StreamsError):
    """A message was written under the keys of its documents by code for which it was another number
    of events than it is for this code."""

    def __init__(self, position: Position, before: int, now: int) -> None:
        was, is_now = count_with_noun(before, "event"), count_with_noun(now, "event")
        super().__init__(
            f"the message at {position} was written by key as {was} and is {is_now} here, by an "
            "upcast that came since, so it is not known which documents it changes: code that "
            "knows it as before folds it, streams views rebuild makes the documents again, or give "
            "the view a new version"
        )


class UnknownDocument(StreamsError):
    """It cannot be known which documents a message changes."""

    def __init__(self, position: Position, reason: str) -> None:
        super().__init__(
            f"the message at {position}: which documents it changes cannot be known: {reason}; it "
            "is not skipped: have the code decode it (by an upcast, or a codec), and key= return "
            "its documents, or None"
        )


class ViewTimeout(StreamsError, TimeoutError):
    """The view had not folded what was waited for when the time was over."""


class MissingKey(StreamsError):
    """A message without a key, in a view whose documents are known by keys."""

    def __init__(self, position: Position) -> None:
        super().__init__(
            f"the message at {position} has no key, by which its document would be known: declare "
            "the view with key=, a function of the event"
        )
