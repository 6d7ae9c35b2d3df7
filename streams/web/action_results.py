"""What an action answers: what it did, what it would do, or what is done from now on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did: shown to the visitor, and logged.

    :param text: a sentence, translated.
    :param count: how many messages, keys or groups it concerned.
    :param back: the address to go on to (made by :meth:`Page.url`), and what it is called.
    :param details: more lines.
    :param subject: what it was done to, for the log line: a topic, a group, a saga.
    :param changed: the names of topics and groups that are not as they were, so that they are
        looked at before all others.
    """

    text: str
    count: int = 1
    back: tuple[str, str] | None = None
    details: Sequence[str] = ()
    subject: str = ""
    changed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Confirm:
    """What an action would do, to be confirmed: it is called again with the same fields.

    :param title: a question, translated.
    :param count: how many messages it concerns; above 1 the visitor types the number.
    :param facts: lines that say what will happen.
    :param columns: headings of ``rows``.
    :param rows: a table, for what differs by partition or message.
    :param button: what the button says.
    :param back: where to go instead.
    :param warning: something that speaks against it.
    :param confirm: what the form sends as ``confirm`` where nothing is to be typed; for an action
        that compares it with more than a count (a plan that may have changed).
    """

    title: str
    count: int
    button: str
    back: tuple[str, str]
    facts: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    warning: str = ""
    confirm: str = ""


class Report(Protocol):
    """How a job says how far it is."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done.

        :raises JobStopped: it is to stop; let it pass.
        """
        ...


@dataclass(frozen=True, slots=True)
class Background:
    """What an action does in the background, as it may take longer than a visitor waits.

    :param title: what it does, translated.
    :param work: does it, in a thread of its own: it says now and then how far it is, and returns
        what it did.
    :param back: where to go on to, and what that is called.
    :param subject: what it is done to: pages of that can name the job.
    :param is_alone: it is refused while the same action upon the same subject runs.
    """

    title: str
    work: Callable[[Report], Done]
    back: tuple[str, str]
    subject: str = ""
    is_alone: bool = False
