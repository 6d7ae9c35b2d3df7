"""What a process knows to be folded of a keyed version, so that it need not ask the log again.

Of each partition of the documents: below which positions of the sources everything is in it, and
the checkpoint at which that was seen. That stays true for as long as these documents are not
deleted and made anew. So it is forgotten when the registry says anything new of the view
(:class:`streams.eventsourcing.views.family.ViewFamily`), and each read that relied on it is held
against the checkpoint that it found: one that is behind the known one, in any source, belongs to
other documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streams.log.protocol import TopicPartition

Positions = Mapping[TopicPartition, int]
"""By source partition."""


class CoveredPartition:
    """What is known of one partition of the documents.

    :param position: its checkpoint's.
    :param sources: how far its checkpoint says that each source is folded.
    """

    def __init__(self, position: int, sources: Positions) -> None:
        self._position = position
        self._sources = dict(sources)
        self._below: dict[TopicPartition, int] = {}

    def covers(self, positions: Positions) -> bool:
        """Everything below these is in it."""
        return all(self._below.get(each, 0) >= position for each, position in positions.items())

    def includes_checkpoint(self, position: int, sources: Positions) -> bool:
        """A checkpoint that was read may be one of the documents that this is known of."""
        return position >= self._position and all(
            sources.get(each, 0) >= known for each, known in self._sources.items()
        )

    def extend(self, position: int, sources: Positions, below: Positions) -> None:
        """Everything below these is in it, as was seen at a checkpoint that it holds."""
        self._position = position
        self._sources = dict(sources)
        for each, covered in below.items():
            self._below[each] = max(covered, self._below.get(each, 0))


class KnownCoverage:
    """What is known of one version. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._partitions: dict[int, CoveredPartition] = {}

    def covers(self, positions: Positions, partitions: Iterable[int]) -> bool:
        """Everything below these is in those partitions of the documents."""
        return all(
            (known := self._partitions.get(each)) is not None and known.covers(positions)
            for each in partitions
        )

    def includes_checkpoint(self, partition: int, position: int, sources: Positions) -> bool:
        """What is known of a partition is known of the documents whose checkpoint this is."""
        known = self._partitions.get(partition)
        return known is not None and known.includes_checkpoint(position, sources)

    def extend(self, partition: int, position: int, sources: Positions, below: Positions) -> None:
        """Everything below these was seen to be in a partition.

        :param position: of the checkpoint at which it was seen.
        :param sources: how far that checkpoint says that each source is folded.
        """
        known = self._partitions.get(partition)
        if known is None or not known.includes_checkpoint(position, sources):
            known = self._partitions[partition] = CoveredPartition(position, sources)
        known.extend(position, sources, below)

    def clear(self) -> None:
        """Nothing is known any more."""
        self._partitions.clear()
