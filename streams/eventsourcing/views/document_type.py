"""A view's documents as a type."""

from __future__ import annotations

from types import NoneType
from typing import Any, Generic, get_args, get_origin

from typing_extensions import TypeVar

from stream_codecs import BindError, Codec, default_codec, type_name
from streams.errors import ConfigError
from streams.eventsourcing.state_type import check_frozen, shape_fingerprint
from streams.topic import check_codec

D = TypeVar("D")


class DocumentType(Generic[D]):
    """What a view's events are folded into.

    :param where: the view, for errors.
    """

    def __init__(self, where: str, document: type[D], codec: Codec | None) -> None:
        self.type = document
        if document is NoneType or NoneType in get_args(document):
            raise ConfigError(
                f"{where}: its documents cannot be None, which means that there is no document"
            )
        check_frozen(f"{where}: its document", document)
        check_codec(where, codec)
        try:
            bound = (codec if codec is not None else default_codec(document)).bind(
                document, topic=where, role="value"
            )
        except BindError as error:
            raise ConfigError(f"{where}: {error}") from error
        if bound.needs_headers:
            raise ConfigError(
                f"{where}: codec={codec!r} keeps a part of each document in headers; use one that "
                "does not, such as stream_codecs.Json()"
            )
        self.encode = bound.encode
        self.decode = bound.decode
        self.fast_decode, self.fast_limit = bound.fast or bound.decode, bound.small
        """The same at its quickest, for at most so many bytes."""
        self.fingerprint = shape_fingerprint(document, 0, bound.content_type)
        """Of the shape of its documents."""
        base = get_origin(document) or document
        self._base: Any = base if isinstance(base, type) else None

    def check(self, document: Any) -> None:
        """See that a function has returned a document.

        :raises TypeError: it has not.
        """
        base = self._base
        if base is not None and type(document) is not base and not isinstance(document, base):
            raise TypeError(
                f"the view's function returned {type_name(type(document))}, not "
                f"{type_name(self.type)} or None"
            )
