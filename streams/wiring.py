"""Prepares a processor to run: binds its declaration to an app's log and publisher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from streams import derived_records
from streams.connection import Connection
from streams.decoding import Source
from streams.log.names import to_valid_name
from streams.log.protocol import StaticMember
from streams.processing.async_executor import AsyncExecutor
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job, ResultEncoder
from streams.processing.pending_outputs import PendingOutputs
from streams.processing.several import expand_several
from streams.processing.thread_executor import ThreadExecutor
from streams.processor import Processor


def static_member(
    processor: Processor[..., Any],
    processors: Iterable[Processor[..., Any]],
    member: str,
    instance_id: str,
) -> StaticMember | None:
    """The static member that a processor is in its group, in a process with this name; None without
    a name.

    If several processors share a group, those after the first have their own names added.
    """
    if not member:
        return None
    first_of_group = next((each for each in processors if each.group == processor.group), processor)
    name = member if first_of_group is processor else f"{member}-{processor.name}"
    return StaticMember(to_valid_name(name)[:249], instance_id)


def make_job(
    connection: Connection,
    processor: Processor[..., Any],
    member: StaticMember | None,
    start_positions: Mapping[tuple[str, int], int],
) -> Job:
    """The job that the executor runs for a processor."""
    options, group = processor.options, processor.group
    dead_letters = options.dead_letters
    sources: dict[str, Source[Any]] = {}
    for topic in options.topics:
        sources[topic.name] = sources[dead_letters.retry(topic.name, group)] = topic
    job = Job(
        name=processor.name,
        group=group,
        topics=tuple(sources),
        function=processor.function,
        asynchronous=processor.signature.asynchronous,
        wants_message=processor.signature.wants_message,
        decodings={name: topic.decoding for name, topic in sources.items()},
        concurrency=options.concurrency,
        batch=options.batch,
        filter=options.filter,
        timeout=options.timeout,
        retry=options.retry,
        dedup=options.dedup,
        flow=(
            replace(options.flow, commit=options.flow.pipeline_commit)
            if options.exactly_once
            else options.flow
        ),
        clock=connection.clock,
        encode_results=_result_encoder(processor),
        dead_letter=derived_records.dead_letter_maker(
            group,
            lambda topic: dead_letters.name(sources[topic].name, group),
            connection.clock,
            lambda topic: sources[topic].name != topic,
        ),
        write_derived=connection.publisher.publish_durably,
        outputs=(
            PendingOutputs(options.flow.bytes, connection.publisher.count_published)
            if options.exactly_once
            else None
        ),
        attempt_log=processor.attempt_log,
        observer=processor.attempt_log,
        key_parking=processor.key_parking,
        start_positions=start_positions,
        member=member,
        transactions=(
            connection.log.capabilities.transactions
            and options.to is None
            and processor.key_parking is None
        ),
    )
    if processor.inbox is not None:
        job = processor.inbox.wrap(job)
    return processor.adapt_job(expand_several(job))


def _result_encoder(processor: Processor[..., Any]) -> ResultEncoder | None:
    """The encoder that turns a handler's results into records; None: results are dropped."""
    target = processor.options.to
    if target is None:
        return None
    rule = derived_records.result_rule(processor.group, target.type)
    return derived_records.result_encoder(rule, target.name, target.derived_record)


def make_executor(
    job: Job,
    loop: asyncio.AbstractEventLoop,
    new_transaction: Callable[[], HandlerTransaction] | None = None,
) -> Executor:
    """The executor of a job: it runs an async handler in tasks of the loop, a plain one in
    threads."""
    if job.asynchronous:
        return AsyncExecutor(job, loop, new_transaction)
    return ThreadExecutor(job, new_transaction)
