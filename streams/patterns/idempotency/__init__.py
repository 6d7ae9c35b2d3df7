"""Idempotency: one execution per key, in any number of processes; per message ID, in one.

Promises
--------
* **One execution.** Of all calls under one key, in whatever process, one operation runs at a
  time, and none after one has succeeded, until ``ttl`` seconds have passed.
* **No claim forever.** A process that is killed loses the key when its lease expires; one that
  works longer renews it. Once another has claimed the key, a former owner can store, release and
  renew nothing.
* **Any value that an operation returns is its result**, None and 0 included. An exception is not,
  unless ``errors`` names its type.

The limit: a process that is killed after its operation took effect and before the outcome is stored
leaves a claim that expires, and the operation is run again. Only the system that has the effect can
rule that out, by accepting the same key.

=================  ===========================================================
``store``          :class:`IdempotencyStore`: outcomes and claims by key
``processor``      :class:`IdempotentProcessor`: runs operations under claims
``consumer``       :class:`DeduplicatedConsumer`: message IDs, in this process
``claim_renewal``  renewing a claim while its work runs
``single_flight``  sharing one call among callers of one process
``claims_client``  requests of coroutines to the store of claims
``outcome``        an outcome in its stored form
``errors``         the errors of an operation that is to run once
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
