"""What waits in the outbox, as a model: to look at, and to count in tests.

Rows are written by :func:`~streams.outbox.django.publish_on_commit` or by an
:class:`~streams.outbox.Outbox`, and deleted by relays.
"""

from __future__ import annotations

from django.db import models  # type: ignore[import-untyped]


class OutboxRow(models.Model):  # type: ignore[misc]  # Django has no types
    """A message that is to be published; see :mod:`streams.outbox.tables`."""

    sequence = models.BigAutoField(primary_key=True)
    id = models.UUIDField()
    aggregatetype = models.CharField(max_length=255)
    aggregateid = models.CharField(max_length=255)
    type = models.CharField(max_length=255)
    payload = models.BinaryField(null=True)
    messageid = models.TextField(null=True)
    keytype = models.CharField(max_length=8, default="text")
    headers = models.TextField(null=True)
    state = models.SmallIntegerField(
        default=0,  # pyright: ignore[reportArgumentType]
        choices=[(0, "ready"), (1, "failed"), (2, "waiting"), (3, "undeclared")],
    )
    error = models.TextField(null=True)

    class Meta:
        """The table is the outbox's own, whose migration creates it."""

        db_table = "outbox"
        ordering = ("sequence",)
        verbose_name = "outbox row"

    def __str__(self) -> str:
        return f"{self.aggregatetype} {self.messageid or self.id}"
