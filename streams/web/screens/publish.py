"""Publishing a message: a form from the topic's type, checked before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response
from uuid_utils import uuid7

from stream_codecs import CodecError, Json, type_name
from streams.errors import InvalidValue, LogError, NotFound, OutcomeUnknown, StreamsError
from streams.log.appending import append_and_wait
from streams.log.events import events_only
from streams.log.range_reader import read_first
from streams.message import ID, Record
from streams.patterns.internal_topics import internal_topics
from streams.web.action_results import ActionDone
from streams.web.addresses import topic_of
from streams.web.page import Action, Page, Screen
from streams.web.rendering import is_text, path_part
from streams.web.schema_forms import (
    PREFIX,
    Variant,
    filled_in,
    value_of,
    variant_for,
    variants_of,
)
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.message import Batch
    from streams.topic import Topic

MAX_HEADERS = 100
"""The most headers of a message that is published here."""

OWN_PREFIXES = ("__streams.", "streams_")
"""The prefixes of the toolkit's own headers, which visitors must not fill in."""

OWN_HEADERS = (ID, *OWN_PREFIXES)
"""The prefixes of headers that are not copied from a message."""


def show_form(page: Page) -> Response:
    """The form; first the one that asks for the topic."""
    name = page.fields.text("topic")
    if not name:
        return _choose(page)
    topic = topic_of(page)
    info = page.log.describe_topic(topic)
    if info.is_event_topic:
        raise events_only(topic, "published to")
    if not page.may_publish(topic):
        raise _own_topic(page)
    copied = _copied(page, topic)
    context: dict[str, Any] = {} if copied is None else _of_message(page, copied)
    return _form(page, topic, **context)


def _refuse_own(page: Page, topic: str) -> None:
    """Refuse a topic of the toolkit's own: the permission to publish must not include the effect of
    a record in one of these, such as ending a saga or putting a letter back.

    :raises InvalidValue: the topic is the toolkit's own.
    """
    log = page.log
    if topic in internal_topics(log.list_topics(), log.list_groups()):
        raise _own_topic(page)


def _own_topic(page: Page) -> InvalidValue:
    return InvalidValue(page._("The toolkit keeps this topic for itself."))


def _choose(page: Page) -> Response:
    groups = page.dashboard.groups.look(0.1)
    names = [name for name in groups.topics if name not in groups.internal][:1_000]
    return page.render("publish_topic.html", title=page._("Publish"), names=names)


def _form(page: Page, topic: str, *, status: int = 200, error: str = "", **filled: Any) -> Response:
    declared = page.app.topics.get(topic)
    variants = [] if declared is None else variants_of(declared.type)
    document = filled.get("document")
    chosen = _chosen(page, variants, document)
    as_json = page.fields.flag("as_json") or chosen is None
    members = {
        name.removeprefix(PREFIX): value
        for name, value in page.fields.pairs
        if name.startswith(PREFIX)
    }
    if chosen is not None and not members and document is not None:
        members = filled_in(chosen, document)
    fields = page.fields
    return page.render(
        "publish.html",
        status=status,
        title=page._("Publish to %(topic)s", topic=topic),
        topic=topic,
        error=error,
        type_text="" if declared is None else type_name(declared.type),
        variants=variants,
        chosen=chosen,
        as_json=as_json,
        members=members,
        prefix=PREFIX,
        value=fields.raw("value") or filled.get("value", "") or _example(chosen),
        key=fields.raw("key") or filled.get("key", ""),
        key_is_read=declared is not None and declared.key_of is not None,
        id=fields.raw("id") or str(uuid7()),
        id_is_read=declared is not None and declared.id_of is not None,
        headers=fields.raw("headers") or filled.get("headers", ""),
        tombstone=fields.flag("tombstone"),
        is_json=declared is None,
        check_json="topic" not in fields or fields.flag("check_json") or "id" not in fields,
    )


def _chosen(page: Page, variants: list[Variant], document: Any) -> Variant | None:
    wanted = page.fields.text("variant")
    for each in variants:
        if each.name == wanted:
            return each
    found = variant_for(variants, document) if document is not None else None
    return found or (variants[0] if variants else None)


def _example(variant: Variant | None) -> str:
    """A value with every required member, as the initial text."""
    if variant is None:
        return ""
    empty: dict[str, Any] = {"text": "", "integer": 0, "number": 0.0, "boolean": False, "json": {}}
    found = dict(variant.constants)
    for each in variant.fields:
        if each.required:
            choice = orjson.loads(each.choices[0]) if each.choices else empty.get(each.kind)
            found[each.name] = None if each.nullable else choice
    return orjson.dumps(found, option=orjson.OPT_INDENT_2).decode()


# -- a copy of a message


def _copied(page: Page, topic: str) -> Batch | None:
    """The message that is copied into the form (``copy=PARTITION/OFFSET``)."""
    written = page.fields.text("copy")
    if not written or not page.payloads.allowed:
        return None
    partition, slash, offset = written.partition("/")
    if not slash or not partition.isdecimal() or len(partition) > 9:
        raise InvalidValue(page._("copy=: a partition and an offset, such as 0/17"))
    at = page.log.parse_offset(offset)
    batch = read_first(page.log, topic, int(partition), at, at + 1)
    if batch is None:
        raise NotFound(page._("There is no message at %(place)s.", place=written[:100]))
    return batch


def _of_message(page: Page, batch: Batch) -> dict[str, Any]:
    payloads, topic = page.payloads, batch.topic
    value, key = payloads.value(topic, batch.values[0]), payloads.key(topic, batch.keys[0])
    for each in (value, key):  # parts that the form would send back changed
        if not is_text(each.data or b""):
            raise InvalidValue(
                page._("Its key or its value is no plain text, so it cannot be copied here.")
            )
    headers = [
        f"{name}: {shown.text}"
        for name, shown in payloads.headers(topic, batch.headers(0), batch.keys[0])
        if not name.startswith(OWN_HEADERS)
        and shown.data is not None
        and is_text(name.encode("utf-8", "surrogateescape") + shown.data)
        and b"\n" not in shown.data
        and "\n" not in name
    ]
    document: Any = None
    text = value.text or ""
    try:
        document = orjson.loads(value.data or b"null")
    except orjson.JSONDecodeError:
        pass
    return {
        "document": document,
        "value": text,
        "key": key.text or "",
        "headers": "\n".join(headers),
    }


# -- publishing


def publish(page: Page) -> ActionDone | Response:
    """Check the input, write the message, and show its position."""
    topic, log = topic_of(page), page.log
    info = log.describe_topic(topic)
    if info.is_event_topic:
        raise events_only(topic, "published to")
    _refuse_own(page, topic)
    try:
        record = _record(page, topic)
    except (InvalidValue, CodecError) as error:
        return _form(page, topic, status=400, error=str(error))
    [outcome] = append_and_wait(log, topic, [record])
    if isinstance(outcome, OutcomeUnknown):
        problem = page._("Perhaps it was written. Publishing again with the same ID is harmless.")
        return _form(page, topic, status=504, error=f"{outcome}. {problem}")
    if isinstance(outcome, LogError):
        raise outcome
    place = f"{outcome.partition}/{log.format_offset(outcome.offset)}"
    address = f"/topics/{path_part(topic)}/messages/{place}"
    return ActionDone(
        page._("Published as %(place)s.", place=f"{topic}/{place}"),
        count=1,
        back=(page.url(address), page._("Show it"))
        if page.access.payloads
        else (page.url(f"/topics/{path_part(topic)}"), page._("Back to the topic")),
        details=[page._("message ID %(id)s", id=record.id)],
        subject=f"topic {topic}, message ID {record.id}",
        changed=(topic,),
    )


def _record(page: Page, topic: str) -> Record:
    """The record to write.

    :raises InvalidValue: a field is invalid.
    :raises CodecError: the value does not fit the topic's type.
    """
    fields = page.fields
    key = fields.raw("key") or None
    id = fields.text("id") or None
    headers = _headers(page)
    declared = page.app.topics.get(topic)
    if id is not None and "\0" in id:
        raise InvalidValue(page._("A message ID cannot contain NUL."))
    if fields.flag("tombstone"):
        if key is None:
            raise InvalidValue(page._("A tombstone needs the key to mark as deleted."))
        return Record(None, key.encode("utf-8", "surrogateescape"), id or str(uuid7()), headers)
    if declared is None:
        return _plain_record(page, key, id, headers)
    value = _value(page, declared)
    try:
        return declared.record(
            value, key=key, id=None if declared.id_of is not None else id, headers=_by_name(headers)
        )
    except StreamsError as error:
        raise InvalidValue(str(error)) from error


def _plain_record(
    page: Page, key: str | None, id: str | None, headers: list[tuple[str, bytes | None]]
) -> Record:
    data = page.fields.raw("value").replace("\r\n", "\n").encode("utf-8", "surrogateescape")
    if page.fields.flag("check_json"):
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise InvalidValue(page._("The value is not JSON: %(why)s", why=str(error))) from None
    key_bytes = None if key is None else key.encode("utf-8", "surrogateescape")
    return Record(data, key_bytes, id or str(uuid7()), headers)


def _value(page: Page, declared: Topic[Any]) -> Any:
    """The filled-in value, as the topic's type.

    :raises InvalidValue: it is invalid.
    """
    fields = page.fields
    if declared.type is bytes:
        return fields.raw("value").replace("\r\n", "\n").encode("utf-8", "surrogateescape")
    if declared.type is str:
        return fields.raw("value").replace("\r\n", "\n")
    variants = variants_of(declared.type)
    chosen = _chosen(page, variants, None)
    if chosen is None or fields.flag("as_json"):
        document = fields.raw("value").encode("utf-8", "surrogateescape")
    else:
        document = value_of(chosen, fields)
    try:
        return Json().bind(declared.type, topic=declared.name, role="value").decode(document)
    except CodecError as error:
        raise InvalidValue(str(error)) from error


def _by_name(headers: list[tuple[str, bytes | None]]) -> dict[str, str]:
    """Headers in the form that a topic takes."""
    return {name: (value or b"").decode("utf-8", "surrogateescape") for name, value in headers}


def _headers(page: Page) -> list[tuple[str, bytes | None]]:
    """The filled-in headers, one per line: ``name: value``.

    :raises InvalidValue: a line is not a header.
    """
    found: list[tuple[str, bytes | None]] = []
    for line in page.fields.raw("headers").splitlines():
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        name = name.strip()
        if not colon or not name:
            raise InvalidValue(
                page._(
                    "Headers: write name: value, one per line, not %(line)s", line=repr(line[:60])
                )
            )
        if name == ID or name.startswith(OWN_PREFIXES):
            raise InvalidValue(page._("Headers: %(name)s is the toolkit's own.", name=name))
        found.append((name, value.strip().encode("utf-8", "surrogateescape")))
    if len(found) > MAX_HEADERS:
        raise InvalidValue(page._("Headers: at most %(number)s.", number=str(MAX_HEADERS)))
    return found


SCREENS = (Screen("/publish", show_form, mark("Publish"), needs="publish"),)

ACTIONS = (Action("/publish", publish, "publish"),)
