"""Who may do what on the dashboard.

``access=`` is asked about every request, before anything else is done. It answers with one of

* ``"all"``: see everything, and do everything;
* ``"read"``: see all screens, but nothing that is in messages (values, keys, headers, errors);
* ``"none"`` (or None): nothing;
* a collection of names: ``"read"``, ``"payloads"`` (what is in messages, and searching it), and the
  names of actions (:data:`ACTION_NAMES`), as in ``{"read", "payloads", "retry"}``;
* an :class:`Access`, which can also say who it is.
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
        "drop",  # dead letters, and what closes a key
        "cancel",  # a delayed message
        "resume",  # a saga
        "abandon",  # a saga
        "pause",  # a processor of this process, and resume it
        "rebuild",  # a view, and promote, drop or retry what of it stopped
        "outbox",  # rows that could not be published
    }
)
"""What can be done, by the names under which ``access=`` allows it."""

READ, PAYLOADS = "read", "payloads"


@dataclass(frozen=True, slots=True)
class Access:
    """What a visitor may do.

    :param read: see the screens.
    :param payloads: see what is in messages: values, keys, headers and errors; and search it.
    :param actions: which of :data:`ACTION_NAMES` are allowed.
    :param who: the visitor's name, for the log lines of actions.
    """

    read: bool = False
    payloads: bool = False
    actions: frozenset[str] = frozenset()
    who: str = ""

    @classmethod
    def of(cls, answer: object, *, who: str = "") -> Access:
        """What an answer of ``access=`` means.

        :raises ConfigError: it means nothing.
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
        # Whoever may do something must see what it is done to.
        return cls(bool(found), PAYLOADS in found, frozenset(found & ACTION_NAMES), who)

    @property
    def read_only(self) -> bool:
        """Nothing can be done, only seen."""
        return not self.actions

    def may(self, action: str) -> bool:
        """Whether an action is allowed."""
        return action in self.actions

    def without_actions(self) -> Access:
        """The same, read-only."""
        return replace(self, actions=frozenset())


AccessFunction = Callable[["Request"], object]
"""What ``access=`` is: called with each request; it may be a coroutine function."""


class AccessRule:
    """``access=`` as it was given, checked.

    :param given: a function of the request, or the same answer for everybody.
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
        """It looks at the request; else everybody who reaches the address is answered the same."""
        return self._function is not None

    async def of(self, request: Request) -> Access:
        """What this request's sender may do.

        :raises ConfigError: what ``access=`` answered means nothing.
        """
        if self._constant is not None:
            return self._constant
        assert self._function is not None  # noqa: S101 - one of both is there
        answer = self._function(request)
        if inspect.isawaitable(answer):
            answer = await answer
        return Access.of(answer, who=_name_of(request))


def _name_of(request: Request) -> str:
    """Who sends a request, where Starlette's authentication (or FastAPI's) says so."""
    user = request.scope.get("user")
    name = getattr(user, "display_name", None) or getattr(user, "username", None)
    return name if isinstance(name, str) else ""
