"""What the engine's tests share: how long Hypothesis looks, and batches as a log would make them.

``HYPOTHESIS_PROFILE`` says how long:

* ``ci`` (unless set): few examples, always the same ones, so that a red run is a change's fault;
* ``deep``: many examples, new ones each time. pytest prints the seed of a failing run;
  ``--hypothesis-seed=N`` runs it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from weakref import WeakSet

from hypothesis import HealthCheck, settings

from streams.message import Batch

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
if PROFILE not in ("ci", "deep"):
    raise ValueError(f"HYPOTHESIS_PROFILE={PROFILE!r}: ci or deep")
DEEP = PROFILE == "deep"


def runs(examples: int, *, steps: int = 50) -> settings:
    """Settings for a test that takes ``examples`` in a quick run."""
    return settings(
        max_examples=examples * (20 if DEEP else 1),
        stateful_step_count=steps,
        derandomize=not DEEP,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Tracked(Batch):
    """A batch that can be counted for as long as something holds it."""

    __slots__ = ("__weakref__",)


def batch(
    offsets: Sequence[int],
    keys: Sequence[bytes | None] | None = None,
    ids: Sequence[str | None] | None = None,
    *,
    values: Sequence[bytes] | None = None,
    topic: str = "orders",
    partition: int = 0,
    alive: WeakSet[Tracked] | None = None,
) -> Batch:
    """Messages of one partition; without keys, IDs or values unless given."""
    count = len(offsets)
    made = Tracked(
        topic,
        partition,
        offsets,
        list(keys) if keys is not None else [None] * count,
        list(values) if values is not None else [b""] * count,
        list(ids) if ids is not None else [None] * count,
    )
    if alive is not None:
        alive.add(made)
    return made
