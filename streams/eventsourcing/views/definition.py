"""A view as it was declared; without a log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from stream_codecs import Codec
from streams.app import Streams
from streams.callables import is_async, is_plain, parameters_of
from streams.config import Dedup
from streams.decoding import Source, TopicDecoder
from streams.errors import ConfigError
from streams.eventsourcing.declaration_checks import check_app
from streams.eventsourcing.event_topic import EventTopic
from streams.eventsourcing.views.document_type import DocumentType
from streams.eventsourcing.views.names import collection_name, group_names, keyed_topic_name
from streams.eventsourcing.views.repeats import RepeatDetector
from streams.log.names import check_topic
from streams.log.protocol import Log, TopicPartition
from streams.numbers import is_int

D = TypeVar("D")

KeyFunction = Callable[[Any], "str | Sequence[str] | None"]
"""Which documents an event changes: one, several, or none."""

MAX_VERSION = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ViewDefinition(Generic[D]):
    """One version of a view, as it was declared.

    :param key: which documents an event changes; None: the one of its message's key.
    :param dedup: its window says how far apart a message and its repeat may be. The cap has no
        meaning here: what counts must not depend on how many partitions a process has.
    :param wants_message: the function takes the message, too.
    """

    app: Streams
    name: str
    version: int
    sources: tuple[Source[Any], ...]
    document_type: DocumentType[D]
    fold: Callable[..., Any]
    wants_message: bool
    key: KeyFunction | None
    dedup: Dedup

    @property
    def where(self) -> str:
        """How errors name it."""
        return f"view {self.name!r}"

    @property
    def collection(self) -> str:
        """Where its documents are; its group has the same name."""
        return collection_name(self.name, self.version)

    @property
    def is_keyed(self) -> bool:
        """Its events are first written again by the keys of their documents, as the events of one
        document may stand in several partitions."""
        return self.key is not None or len(self.sources) > 1

    @property
    def keyed_topic(self) -> str:
        """Where they are written to."""
        return keyed_topic_name(self.collection)

    @property
    def groups(self) -> tuple[str, ...]:
        """Of its processors; the topic of a keyed version has the name of the second."""
        return group_names(self.collection, is_keyed=self.is_keyed)

    @property
    def topics(self) -> tuple[str, ...]:
        """The names of its sources."""
        return tuple(source.name for source in self.sources)

    @property
    def decodings(self) -> dict[str, TopicDecoder[Any]]:
        """How the messages of each source are decoded, by its name."""
        return {source.name: source.decoding for source in self.sources}

    def repeats(
        self, log: Log, source: TopicPartition, position: int, keep_alive: Callable[[], None]
    ) -> RepeatDetector | None:
        """Tells which messages of a source partition are passed over, as they were published twice;
        None: none is. An aggregate has each of its events once.

        :param position: from where on its messages are read.
        """
        (topic,) = (each for each in self.sources if each.name == source[0])
        if not self.dedup.window or isinstance(topic, EventTopic):
            return None
        return RepeatDetector(log, topic.decoding, source, self.dedup.window, position, keep_alive)

    @property
    def places_keys(self) -> bool:
        """The partition of a document follows from its key: nothing but appends writes the
        events."""
        return self.is_keyed or isinstance(self.sources[0], EventTopic)


def define_view(
    app: Any,
    name: str,
    document: type[D],
    fold: Callable[..., Any],
    sources: Sequence[Any],
    key: KeyFunction | None,
    version: int,
    codec: Codec | None,
    dedup: Dedup,
) -> ViewDefinition[D]:
    """A view's definition.

    :raises ConfigError: it cannot work.
    """
    where = f"view {name!r}"
    check_app(where, app)
    check_topic(name)
    if not is_int(version, 1, MAX_VERSION):
        raise ConfigError(f"{where}: version={version!r}: must be a positive integer")
    if not sources:
        raise ConfigError(f"{where}: give at least one topic: app.topic(...) or aggregate.events")
    for source in sources:
        if not (hasattr(source, "name") and hasattr(source, "decoding")):
            raise ConfigError(
                f"{where}: {source!r} is not a topic; use app.topic(...) or aggregate.events"
            )
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        raise ConfigError(f"{where}: reads a topic twice: {', '.join(names)}")
    if not isinstance(dedup, Dedup):
        raise ConfigError(f"{where}: dedup={dedup!r}: a Dedup, such as Dedup(window=0)")
    if key is not None and (not callable(key) or is_async(key)):
        raise ConfigError(f"{where}: key={key!r}: a plain function of the event")
    definition = ViewDefinition(
        app,
        name,
        version,
        tuple(sources),
        DocumentType(where, document, codec),
        fold,
        _wants_message(where, fold),
        key,
        dedup,
    )
    check_topic(definition.keyed_topic)
    return definition


def _wants_message(where: str, fold: Any) -> bool:
    """Whether the function takes (document, event, message) and not (document, event)."""
    if not callable(fold):
        raise ConfigError(f"{where}: {fold!r} is no function of a document and an event")
    if not is_plain(fold):
        raise ConfigError(
            f"{where}: the function must be a plain one, which only returns the document: what has "
            "effects belongs into a processor"
        )
    parameters = parameters_of(fold)
    if parameters is None:
        return False
    required = parameters.required
    if not (parameters.can_take(2) or parameters.can_take(3)):
        raise ConfigError(
            f"{where}: the function takes {required} parameters; it is called as (document, "
            "event) or (document, event, message)"
        )
    if parameters.keywords:
        raise ConfigError(f"{where}: the function has a parameter by keyword without a default")
    return required == 3
