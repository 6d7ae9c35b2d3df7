"""The permissions of the dashboard's visitors.

``access=`` is called for every request, before anything else is done. It answers with one of

* ``"all"``: see everything, and do everything;
* ``"read"``: see all screens, but no contents of messages (values, keys, headers, errors);
* ``"none"`` (or None): nothing;
* a collection of names: ``"read"``, ``"payloads"`` (the contents of messages, and searching them),
  and the names of actions (:data:`ACTION_NAMES`), as in ``{"read", "payloads", "retry"}``;
* an :class:`Access`, which can also name the visitor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from streams.errors import ConfigError
from streams.text import suggestion

if TYPE_CHECKING:
    from starlette.requests import Request

ACTION_NAMES = frozenset(
    {
        "publish",  # write a message
        "reset",  # move a group
        "delete-group",
        "retry",  # dead letters, single or many
        "edit",  # a dead letter, and retry it
        "drop",  # dead letters, and the message that closes a key
        "cancel",  # a delayed message
        "resume",  # a saga
        "abandon",  # a saga
        "pause",  # a processor of this process, and resume it
        "rebuild",  # a view, and promote, drop or retry its stopped documents
        "outbox",  # rows that could not be published
    }
)
"""The names of all actions, by which ``access=`` allows them."""

READ, PAYLOADS = "read", "payloads"


@dataclass(frozen=True, slots=True)
class Access:
    """A visitor's permissions.

    :param read: see the screens.
    :param payloads: see the contents of messages: values, keys, headers and errors; and search
        them.
    :param actions: which of :data:`ACTION_NAMES` are allowed.
    :param who: the visitor's name, for the log lines of actions.
    """

    read: bool = False
    payloads: bool = False
    actions: frozenset[str] = frozenset()
    who: str = ""

    @classmethod
    def of(cls, answer: object, *, who: str = "") -> Access:
        """The permissions that an answer of ``access=`` stands for.

        :raises ConfigError: the answer is none of the above.
        """
        if isinstance(answer, Access):
            return answer if answer.who or not who else replace(answer, who=who)
        if answer is None or answer == "none":
            return cls(who=who)
        if answer == "all":
            return cls(read=True, payloads=True, actions=ACTION_NAMES, who=who)
        if answer == READ:
            return cls(read=True, who=who)
        if isinstance(answer, Collection) and not isinstance(answer, (str, bytes)):
            return cls._of_names(cast("Iterable[object]", answer), who)
        raise ConfigError(
            f"access= answered {answer!r}: 'all', 'read', 'none', or a collection of names such as "
            "{'read', 'payloads', 'retry'}"
        )

    @classmethod
    def _of_names(cls, names: Iterable[object], who: str) -> Access:
        known = {READ, PAYLOADS, *ACTION_NAMES}
        found = set[str]()
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ConfigError(f"access= answered {name!r}: {suggestion(name, known)}")
            found.add(name)
        # A visitor who may act on something must see it.
        return cls(bool(found), PAYLOADS in found, frozenset(found & ACTION_NAMES), who)

    @property
    def read_only(self) -> bool:
        """Whether no action is allowed."""
        return not self.actions

    def may(self, action: str) -> bool:
        """Whether an action is allowed."""
        return action in self.actions

    def without_actions(self) -> Access:
        """The same, read-only."""
        return replace(self, actions=frozenset())


AccessFunction = Callable[["Request"], object]
"""The type of ``access=``: called with each request; it may be a coroutine function."""


class AccessRule:
    """The checked value of ``access=``.

    :param given: a function of the request, or the same answer for all visitors.
    :raises ConfigError: it is neither.
    """

    def __init__(self, given: object) -> None:
        self._function: AccessFunction | None = None
        self._constant: Access | None = None
        if callable(given):
            self._function = given
        else:
            self._constant = Access.of(given)

    @property
    def asks(self) -> bool:
        """Whether it depends on the request; else all visitors get the same answer."""
        return self._function is not None

    async def of(self, request: Request) -> Access:
        """The permissions of this request's sender.

        :raises ConfigError: the answer of ``access=`` is invalid.
        """
        if self._constant is not None:
            return self._constant
        assert self._function is not None  # noqa: S101 - one of the two is set
        answer = self._function(request)
        if inspect.isawaitable(answer):
            answer = await answer
        return Access.of(answer, who=_name_of(request))


def _name_of(request: Request) -> str:
    """The sender's name, if Starlette's authentication (or FastAPI's) gives one."""
    user = request.scope.get("user")
    name = getattr(user, "display_name", None) or getattr(user, "username", None)
    return name if isinstance(name, str) else ""
