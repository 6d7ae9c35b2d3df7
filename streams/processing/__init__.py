"""Executors: what drives the engine. They know the engine and a subscription, never a driver.

* :mod:`~streams.processing.job`: what is to be run, decided once when a processor starts.
* :mod:`~streams.processing.poller`: the thread that polls a subscription and feeds an executor;
  :mod:`~streams.processing.polling_hand_over`: a handler's thread that does it instead.
* :mod:`~streams.processing.committer`: what is committed, and when;
  :mod:`~streams.processing.pipeline_committer`: the same of an exactly-once processor, and
  :mod:`~streams.processing.pending_outputs`: what it has to publish until then.
* :mod:`~streams.processing.partition_lifecycle`: partitions that are assigned, revoked or lost.
* :mod:`~streams.processing.executor`: what all executors have in common;
  :mod:`~streams.processing.thread_executor` runs plain handlers, in threads, and
  :mod:`~streams.processing.async_executor` async ones, on the app's event loop.
* :mod:`~streams.processing.outcomes`: how a handler is called, and what comes of its messages.
* :mod:`~streams.processing.handler_transaction`: the transaction that a handler may join.
* :mod:`~streams.processing.several`: messages that are several values each.
* :mod:`~streams.processing.timing`: how long calls take.

What patterns know of processing is exported here, and nothing else.
"""

from streams.engine.dispatcher import Delivery
from streams.engine.progress import EncodedProgress, Range, is_within
from streams.engine.progress import encode_progress as encode_progress
from streams.processing.committer import PartitionProgress
from streams.processing.handler_transaction import in_block, in_transaction
from streams.processing.job import (
    Decoding,
    Job,
    Outgoing,
    ResultEncoder,
    SeveralValues,
    Skip,
    identify_batch,
    reset_generation,
    settled_ahead,
)
from streams.processing.timing import BUCKET_BOUNDS, Durations, Histogram

__all__ = [
    "BUCKET_BOUNDS",
    "Decoding",
    "Delivery",
    "Durations",
    "EncodedProgress",
    "Histogram",
    "Job",
    "Outgoing",
    "PartitionProgress",
    "Range",
    "ResultEncoder",
    "SeveralValues",
    "Skip",
    "encode_progress",
    "identify_batch",
    "in_block",
    "in_transaction",
    "is_within",
    "reset_generation",
    "settled_ahead",
]
