"""One aggregate: its version, state, snapshots, events and refusals, as a document and for
people."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.cli import output
from streams.cli.aggregates.lists import list_keys
from streams.cli.command_errors import CommandFailed
from streams.cli.message_lines import LEFT_OUT
from streams.text import did_you_mean
from streams.wire import utc_from_seconds

if TYPE_CHECKING:
    from streams.cli.aggregates.log_and_app import LogAndApp
    from streams.eventsourcing.inspection import (
        InspectedAggregate,
        InspectedEvent,
        InspectedRefusal,
        StoppedAt,
    )
    from streams.log.events import Head, History, StoredEvent, StoredSnapshot
    from streams.log.protocol import TopicInfo

SUGGESTED_FROM = 1_000
"""How many IDs are searched for one similar to an ID that does not exist."""


class _Found(NamedTuple):
    """The records found for an aggregate."""

    head: Head
    partition: int
    version: int
    """The version that is shown: the last one, or the requested one."""
    last: StoredEvent | None
    """The event of that version, if it was read."""
    snapshot: StoredSnapshot | None
    """The snapshot from which reading began."""
    inspected: InspectedAggregate | None


class AggregateView:
    """One aggregate in its shown form."""

    def __init__(self, opened: LogAndApp, name: str, info: TopicInfo, key: bytes) -> None:
        self._log: Any = opened.log
        self._name = name
        self._topic = info.name
        self._info = info
        self._key = key
        self._inspector = None if opened.app is None else opened.inspector(name)

    def document(self, at: int | datetime | None, number: int | None) -> dict[str, Any]:
        """The whole document.

        :param number: also this many of its last events, 0: all.
        """
        from streams.log.events import EMPTY

        snapshots = output.call_or_report(
            "snapshots", partial(self._log.list_snapshots, self._topic, self._key)
        )
        found = self._find(at, snapshots or ())
        if found.head == EMPTY:  # an aggregate with only a refused command has no version either
            raise self._not_there()
        head_version = found.head.base.version
        if isinstance(at, int) and at > head_version:
            raise CommandFailed(
                f"{self._name} {self._id}: it has {output.plural(head_version, 'version')}, "
                f"and none is {at}"
            )
        document = self._summary_json(found)
        document["snapshots"] = [
            row
            for each in snapshots or ()
            if (row := output.call_or_report("snapshot", partial(self._snapshot_json, each, found)))
            is not None
        ]
        if number is not None:
            document["events"] = list(self._events(at, number))
            document["refusals"] = self._refusals(at, number, found, document["events"])
        return document

    def _summary_json(self, found: _Found) -> dict[str, Any]:
        """The aggregate's end and its state, without snapshots, events and refusals."""
        summary: dict[str, Any] = {
            "aggregate": self._name,
            **output.lossless_json("id", self._key),
            "topic": self._topic,
            "partition": found.partition,
            "version": found.head.base.version,
            "closed": found.head.is_final,
            "last": self._last_json(found),
        }
        if found.inspected is not None:
            summary["stopped"] = _stopped_json(found.inspected.stopped)
            summary["state_version"] = found.inspected.version
            summary["state"] = self._state_json(found.inspected)
        return summary

    @property
    def _id(self) -> str:
        return repr(output.bytes_text(self._key))

    def _find(self, at: int | datetime | None, snapshots: Iterable[StoredSnapshot]) -> _Found:
        if self._inspector is not None:
            inspected = self._inspector.inspect(self._key, at)
            version = inspected.version
            if inspected.last is not None:
                version = max(version, inspected.last.version)
            return _Found(
                inspected.head,
                inspected.partition,
                version,
                inspected.last,
                inspected.snapshot,
                inspected,
            )
        from streams.eventsourcing.inspection import events_until
        from streams.log.events import EMPTY

        wanted, last = events_until(at), None
        head, partition = EMPTY, -1
        snapshot: StoredSnapshot | None = None
        for found in self._pages(at, snapshots):
            head, partition = found.head, found.partition
            snapshot = found.snapshot or snapshot
            chosen = [each for each in found.events if wanted(each)]
            last = chosen[-1] if chosen else last
            if len(chosen) < len(found.events):
                break
        version = snapshot.base.version if snapshot is not None else 0
        version = version if last is None else last.version
        return _Found(head, partition, version, last, snapshot, None)

    def _pages(
        self, at: int | datetime | None, snapshots: Iterable[StoredSnapshot]
    ) -> Iterator[History]:
        """The history, or only its end if that is enough: behind the newest snapshot of any
        kind."""
        from streams.eventsourcing.inspection import history_pages

        newest = max(snapshots, key=lambda each: each.base.version, default=None)
        kind = "" if newest is None or at is not None else newest.fingerprint
        return history_pages(self._log, self._topic, self._key, kind)

    def _not_there(self) -> CommandFailed:
        from streams.errors import LogError

        try:
            keys = list_keys(self._log, self._info, b"", None, SUGGESTED_FROM)
            known = [output.bytes_text(each.key) or "" for each in islice(keys, SUGGESTED_FROM)]
        except LogError:
            known = []
        hint = did_you_mean(output.bytes_text(self._key) or "", known)
        more = f"; {hint}" if hint else ""
        return CommandFailed(f"{self._name} {self._id}: there is no such aggregate{more}")

    def _last_json(self, found: _Found) -> dict[str, Any] | None:
        """The last event: its time and position."""
        moment: float | None
        if found.last is not None:
            offset, moment = found.last.offset, found.last.time
        elif found.snapshot is not None:
            offset = found.snapshot.offset
            moment = self._time_at(found.partition, offset)
        else:
            return None
        return {
            "version": found.version,
            "time": None if moment is None else output.iso_time(moment),
            "position": self._position(found.partition, offset),
        }

    def _position(self, partition: int, offset: int) -> str:
        return f"{self._topic}/{partition}/{self._log.format_offset(offset)}"

    def _time_at(self, partition: int, offset: int) -> float | None:
        """The log's timestamp of a record."""
        from streams.log.range_reader import read_first

        where = self._position(partition, offset)
        read = partial(read_first, self._log, self._topic, partition, offset, offset + 1)
        batch = output.call_or_report(where, read)
        return None if batch is None else batch.time(0)

    def _state_json(self, inspected: InspectedAggregate) -> Any:
        from streams.eventsourcing.inspection import json_document

        return output.document_json(json_document(inspected.state))

    def _snapshot_json(self, snapshot: StoredSnapshot, found: _Found) -> dict[str, Any]:
        version = snapshot.base.version
        why = "" if self._inspector is None else self._inspector.why_useless(snapshot)
        if not why and not self._is_held(snapshot):
            why = "the history does not have what it was made of"
        moment = self._time_at(found.partition, snapshot.offset)
        return {
            "fingerprint": output.printable_text(str(snapshot.fingerprint)),
            "version": version,
            "behind": found.head.base.version - version,
            "time": None if moment is None else output.iso_time(moment),
            "bytes": len(snapshot.data),
            "usable": None if self._inspector is None and not why else not why,
            "why": why or None,
        }

    def _is_held(self, snapshot: StoredSnapshot) -> bool:
        """Whether the log would return it: the events that it was made of are in its history."""
        from streams.log.events import HistoryRequest

        request = HistoryRequest(self._key, limit=1, fingerprint=snapshot.fingerprint)
        (found,) = self._log.read_histories(self._topic, [request])
        return found.snapshot is not None

    # -- events

    def _events(self, at: int | datetime | None, number: int) -> Iterable[dict[str, Any]]:
        """The last events up to a version or time, each as one document or several."""
        from streams.eventsourcing.inspection import events_until, history_pages

        wanted = events_until(at)
        rows: deque[dict[str, Any]] = deque(maxlen=number or None)
        cause, append_id = "", ""
        for found in history_pages(self._log, self._topic, self._key):
            for each in self._inspect(found):
                stored = each.stored
                if not wanted(stored):
                    return rows
                where = f"{self._name} {self._id} {stored.version}"
                row = output.call_or_report(
                    where, partial(self._event_json, each, found.partition, cause, append_id)
                )
                for part in row or ():
                    cause, append_id = part["cause"] or "", part["append"] or ""
                    rows.append(part)
        return rows

    def _refusals(
        self,
        at: int | datetime | None,
        number: int,
        found: _Found,
        events: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """The stored refusals up to a version or time, from the first event that is shown on.

        :param number: this many of the last ones; 0: all.
        :param events: those that are shown.
        """
        from streams.eventsourcing.inspection import read_refusals

        first = events[0]["version"] if number and len(events) >= number else 0
        last = at if isinstance(at, int) else found.head.base.version
        limit = None if isinstance(at, datetime) else number or None
        versions = range(first, last + 1)
        read = partial(
            read_refusals, self._log, self._topic, self._key, found.partition, versions, limit
        )
        refusals = output.call_or_report(f"{self._name} {self._id}: refusals", read) or []
        if isinstance(at, datetime):
            refusals = [each for each in refusals if utc_from_seconds(each.time) <= at]
        return [self._refusal_json(each, found) for each in refusals[-number:]]

    def _refusal_json(self, refusal: InspectedRefusal, found: _Found) -> dict[str, Any]:
        return {
            "version": refusal.version,
            "time": output.iso_time(refusal.time),
            "id": output.printable_text(refusal.id),
            "position": self._position(found.partition, refusal.offset),
            "cause": output.printable_text(refusal.cause) or None,
            "error": output.printable_text(refusal.error) or None,
        }

    def _inspect(self, found: History) -> Iterator[InspectedEvent]:
        if self._inspector is not None:
            yield from self._inspector.decode_events(found)
            return
        from streams.eventsourcing.inspection import InspectedEvent

        for stored in found.events:
            yield InspectedEvent(stored, ())

    def _event_json(
        self, event: InspectedEvent, partition: int, cause_before: str, append_before: str
    ) -> list[dict[str, Any]]:
        """An event; several rows if it is upcast to several events."""
        from streams.eventsourcing.inspection import json_document

        common = self._stored_json(event.stored, partition, cause_before, append_before)
        record = event.stored.record
        if self._inspector is None:
            return [{**common, **output.value_json(record.value)}]
        if event.reason:
            return [{**common, **output.value_json(record.value), "why": event.reason}]
        rows = [
            {
                **common,
                "type": type(each).__name__,
                "event": output.document_json(json_document(each)),
            }
            for each in event.events
        ]
        if len(rows) > 1:
            for index, row in enumerate(rows):
                row["id"] = f"{common['id']}#{index}"
        return rows or [{**common, "type": None, "event": None}]

    def _stored_json(
        self, stored: StoredEvent, partition: int, cause_before: str, append_before: str
    ) -> dict[str, Any]:
        """The stored event without its value.

        :param cause_before: the cause of the event before it, in whose append it may be.
        """
        from streams.log.event_headers import (
            CAUSE,
            EVENT,
            FINAL,
            cause_of,
            event_header,
            is_final,
            parse_event,
        )

        record = stored.record
        header = parse_event(event_header(record.headers), record.id)
        append_id = "" if header is None else header.append_id
        cause = cause_of(record.headers)
        if not cause and append_id and append_id == append_before:
            cause = cause_before
        return {
            "version": stored.version,
            "time": output.iso_time(stored.time),
            "id": output.printable_text(record.id),
            "position": self._position(partition, stored.offset),
            "append": output.printable_text(append_id) or None,
            "cause": output.printable_text(cause) or None,
            "final": is_final(record.headers),
            "headers": {
                output.printable_text(name): output.bytes_text(value)
                for name, value in record.headers
                if name not in (EVENT, CAUSE, FINAL)
            },
        }


def _stopped_json(stopped: StoppedAt | None) -> dict[str, Any] | None:
    return None if stopped is None else {"version": stopped.version, "why": stopped.reason}


def print_aggregate(document: Mapping[str, Any]) -> None:
    """Print an aggregate for people."""
    closed = ", closed" if document["closed"] else ""
    name = f"{document['aggregate']} {document['id']}"
    output.print_line(f"{name}: version {document['version']}{closed}")
    lines: dict[str, output.Cell] = {}
    last = document["last"]
    if last is not None:
        lines[f"event {last['version']}"] = f"{last['time'] or '?'}  {last['position']}"
    stopped = document.get("stopped")
    if stopped is not None:
        lines["stopped"] = stopped["why"]
    if "state" in document:
        state = output.json_bytes(document["state"]).decode().rstrip()
        lines[f"state at {document['state_version']}"] = state
    for each in document["snapshots"]:
        use = {None: "", True: ", used by this code", False: f", of no use: {each['why']}"}
        behind = output.plural(each["behind"], "event")
        lines[f"snapshot {each['fingerprint']}"] = (
            f"of version {each['version']} ({each['time'] or '?'}), {behind} behind, "
            f"{each['bytes']:,} bytes{use[each['usable']]}"
        )
    output.print_mapping(lines)
    if "events" in document:
        columns = ["version", "time", "id", "cause", "event"]
        output.print_rows(_history_rows(document), columns, json=False)


def _history_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of events and refusals, each refusal behind the event of its version."""
    found = [
        (row["version"], False, {**row, "event": _event_text(row)}) for row in document["events"]
    ]
    for row in document["refusals"]:
        error = f": {row['error']}" if row["error"] else ""
        text = f"(refused at version {row['version']}{error})"
        found.append((row["version"], True, {**row, "version": None, "event": text}))
    found.sort(key=lambda each: each[:2])
    return [row for _, _, row in found]


def _event_text(row: Mapping[str, Any]) -> str:
    """The content of an event, on one line."""
    why = f"  (cannot be decoded: {row['why']})" if row.get("why") else ""
    if row.get("type") is None and "event" in row:
        return LEFT_OUT
    for field in ("event", "value"):
        if field in row:
            content = output.json_bytes(row[field]).decode().rstrip()
            return f"{row['type']} {content}" if field == "event" else f"{content}{why}"
    return f"{row.get('text', row.get('base64'))}{why}"
