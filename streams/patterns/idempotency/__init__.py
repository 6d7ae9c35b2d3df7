"""Doing things once: an operation a key, in any number of processes; a message ID in one.

Promises
--------
* **One execution.** Of all who call under one key, in whatever process, one operation runs at a
  time, and none after one has succeeded, until ``ttl`` seconds have passed.
* **No claim for ever.** Who is killed loses the key when its lease is over; who works longer
  renews it. Once another has begun, a former owner can store, release and renew nothing.
* **Whatever an operation returns is its result**, None and 0 included. What it raises is not,
  unless that was asked for.

The edge: a process that is killed after its operation took effect and before the outcome is stored
leaves a claim that ends, and the operation is run again. Only the system that has the effect can
rule that out, by taking the same key.

=================  ===========================================================
``store``          :class:`IdempotencyStore`: outcomes and claims by key
``processor``      :class:`IdempotentProcessor`: runs operations under claims
``consumer``       :class:`DeduplicatedConsumer`: message IDs, in this process
``claim_renewal``  renewing a claim while its work runs
``single_flight``  callers of one process that want the same
``claims_client``  the way from coroutines to where claims are kept
``outcome``        what is stored
``errors``         what can become of an operation, other than its result
=================  ===========================================================

Claims themselves are kept by the logs' packages (:mod:`streams.log.claims`).
"""

from streams.patterns.idempotency.consumer import DeduplicatedConsumer
from streams.patterns.idempotency.errors import ClaimLost, InProgress, KeyReused, OperationFailed
from streams.patterns.idempotency.processor import IdempotentProcessor
from streams.patterns.idempotency.store import IdempotencyStore

__all__ = [
    "ClaimLost", "DeduplicatedConsumer", "IdempotencyStore", "IdempotentProcessor",
    "InProgress", "KeyReused", "OperationFailed",
]  # fmt: skip
