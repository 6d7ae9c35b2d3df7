"""Creates the tables as :mod:`streams.outbox.tables` has them, on PostgreSQL or SQLite."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import NotSupportedError, migrations, models  # type: ignore[import-untyped]

from streams.outbox.tables import TableNames, dialect_of


def create(apps: Any, schema_editor: Any) -> None:
    """Create the tables where they are missing."""
    connection = schema_editor.connection
    if connection.vendor not in ("postgresql", "sqlite"):
        raise NotSupportedError(f"an outbox is on PostgreSQL or SQLite, not on {connection.vendor}")
    dialect = dialect_of(connection.vendor, TableNames("outbox"))
    for statement in dialect.schema():
        schema_editor.execute(statement)
    for bucket in range(dialect.bucket_count):
        schema_editor.execute(dialect.add_bucket().replace(":bucket", str(bucket)))


def drop(apps: Any, schema_editor: Any) -> None:
    """Drop the tables."""
    tables = TableNames("outbox")
    for table in (tables.outbox, tables.relays, tables.buckets):
        schema_editor.execute(f"DROP TABLE IF EXISTS {table}")


class Migration(migrations.Migration):  # type: ignore[misc]  # Django has no types
    """The first."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[Any]] = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(create, drop)],
            state_operations=[
                migrations.CreateModel(
                    "OutboxRow",
                    [
                        ("sequence", models.BigAutoField(primary_key=True, serialize=False)),
                        ("id", models.UUIDField()),
                        ("aggregatetype", models.CharField(max_length=255)),
                        ("aggregateid", models.CharField(max_length=255)),
                        ("type", models.CharField(max_length=255)),
                        ("payload", models.BinaryField(null=True)),
                        ("messageid", models.TextField(null=True)),
                        ("keytype", models.CharField(default="text", max_length=8)),
                        ("headers", models.TextField(null=True)),
                        (
                            "state",
                            models.SmallIntegerField(
                                choices=[
                                    (0, "ready"),
                                    (1, "failed"),
                                    (2, "waiting"),
                                    (3, "undeclared"),
                                ],
                                default=0,  # pyright: ignore[reportArgumentType]
                            ),
                        ),
                        ("error", models.TextField(null=True)),
                    ],
                    {
                        "db_table": "outbox",
                        "ordering": ("sequence",),
                        "verbose_name": "outbox row",
                    },
                )
            ],
        )
    ]
