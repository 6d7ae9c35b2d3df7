"""What can become of an operation that is to run once, other than its result."""

from __future__ import annotations

from streams.errors import ConfigError, NotRunning, StreamsError


class StoreClosed(NotRunning, ConfigError):
    """The store was closed before those who use it had ended.

    No message is at fault, so in a handler it is a :class:`~streams.ConfigError` as well: the
    processor ends with the message unsettled, and no saga is compensated for it.
    """


class InProgress(StreamsError):
    """Somebody else works under this key now, and the caller did not want to wait.

    :param left: seconds until their claim ends at the latest, unless they renew it.
    """

    def __init__(self, key: str, left: float) -> None:
        super().__init__(f"idempotency key {key!r}: somebody else is working on it")
        self.key = key
        self.left = left


class KeyReused(StreamsError):
    """The key was used before, for a request with another fingerprint. Nothing was done.

    A key names one request: whoever sends another one makes another key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency key {key!r}: used before for another request; nothing done")
        self.key = key


class ClaimLost(StreamsError):
    """The claim ended while the operation ran, so somebody else may have begun it too.

    It happens when the event loop or the store stood still for longer than the lease, or the store
    refuses the outcome. What the operation did is not known to others: asking again under the same
    key gives their result, or runs it again.
    """

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"idempotency key {key!r}: the claim was lost: {why}")
        self.key = key


class OperationFailed(StreamsError):
    """The operation ran once and failed for good; that is its outcome, for every caller.

    For the caller whose operation it was, the exception itself is the cause (``__cause__``).

    :param kind: the name of the exception's class.
    :param reason: its text.
    """

    def __init__(self, key: str, kind: str, reason: str) -> None:
        super().__init__(f"idempotency key {key!r}: {kind}: {reason}" if reason else kind)
        self.key = key
        self.kind = kind
        self.reason = reason
