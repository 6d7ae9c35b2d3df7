"""The errors of an operation that is to run once."""

from __future__ import annotations

from streams.errors import ConfigError, NotRunning, StreamsError


class StoreClosed(NotRunning, ConfigError):
    """The store was closed before its users had ended.

    No message is at fault, so in a handler it is a :class:`~streams.ConfigError` as well: the
    processor ends with the message unsettled, and no saga is compensated for it.
    """


class InProgress(StreamsError):
    """Another caller holds the claim on this key, and this one did not want to wait.

    :param left: seconds until that claim ends at the latest, unless it is renewed.
    """

    def __init__(self, key: str, left: float) -> None:
        super().__init__(f"idempotency key {key!r}: another caller is working on it")
        self.key = key
        self.left = left


class KeyReused(StreamsError):
    """The key was used before, for a request with another fingerprint. Nothing was done.

    A key names one request: a caller that sends another one must make another key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"idempotency key {key!r}: used before for another request; nothing done")
        self.key = key


class ClaimLost(StreamsError):
    """The claim ended while the operation ran, so another process may have begun it too.

    It happens when the event loop or the store was blocked for longer than the lease, or the store
    refuses the outcome. Others do not know this operation's outcome: calling again under the same
    key gives the stored result, or runs the operation again.
    """

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"idempotency key {key!r}: the claim was lost: {why}")
        self.key = key


class OperationFailed(StreamsError):
    """The operation ran once and failed for good; that is its outcome, for every caller.

    The caller that ran the operation gets the exception itself as the cause (``__cause__``).

    :param kind: the name of the exception's class.
    :param reason: its text.
    """

    def __init__(self, key: str, kind: str, reason: str) -> None:
        super().__init__(f"idempotency key {key!r}: {kind}: {reason}" if reason else kind)
        self.key = key
        self.kind = kind
        self.reason = reason
