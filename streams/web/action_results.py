"""The results of actions: done, to be confirmed, or continued in the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ActionDone:
    """The result of an action: shown to the visitor, and logged.

    :param text: a sentence, translated.
    :param count: how many messages, keys or groups it concerned.
    :param back: the address to go on to (made by :meth:`streams.web.page.Page.url`), and its name.
    :param details: more lines.
    :param subject: the target, for the log line: a topic, a group, a saga.
    :param changed: the names of topics and groups that were changed, so that they are
        read again before all others.
    """

    text: str
    count: int = 1
    back: tuple[str, str] | None = None
    details: Sequence[str] = ()
    subject: str = ""
    changed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A description of an action, to be confirmed: it is called again with the same fields.

    :param title: a question, translated.
    :param count: how many messages it concerns; above 1 the visitor types the number.
    :param facts: lines that say what will happen.
    :param columns: headings of ``rows``.
    :param rows: a table, for facts that differ by partition or message.
    :param button: the label of the button.
    :param back: where to go instead.
    :param warning: a reason against it.
    :param confirm: the value of the form's field ``confirm`` if nothing is to be typed; for an
        action that compares more than a count (a plan that may have changed).
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


class ReportProgress(Protocol):
    """The function by which a job reports its progress."""

    def __call__(self, done: int, total: int | None = None) -> None:
        """Report that this many are done.

        :raises JobStopped: the job is to stop; do not catch it.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackgroundAction:
    """The work of an action in the background, as it may take longer than a visitor waits.

    :param title: a description of it, translated.
    :param work: does it, in a thread of its own: reports its progress now and then, and returns
        its result.
    :param back: the address to go on to, and its name.
    :param subject: its target: pages of the target can name the job.
    :param is_alone: it is refused while the same action on the same subject runs.
    """

    title: str
    work: Callable[[ReportProgress], ActionDone]
    back: tuple[str, str]
    subject: str = ""
    is_alone: bool = False
