"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig  # type: ignore[import-untyped]


class OutboxConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """The outbox among a project's apps."""

    name = "streams.outbox.django"
    label = "streams_outbox"
    verbose_name = "Outbox"
    default_auto_field = "django.db.models.BigAutoField"  # pyright: ignore[reportAssignmentType]
