"""Where a key goes: all records at once as one by one, and for ever the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.log.names import partition_for, partitions_for
from streams.message import Record

RECORDS = st.builds(
    Record,
    value=st.none(),
    key=st.none() | st.binary(max_size=30),
    id=st.text(st.characters(codec="utf-8"), min_size=1) | st.just("\udce9"),
    partition=st.none() | st.integers(-2, 20),
)


@given(st.lists(RECORDS), st.integers(1, 16))
def test_many_records_go_where_each_of_them_goes(records: list[Record], partitions: int) -> None:
    assert partitions_for(records, partitions) == [
        partition_for(each.key, each.id, partitions) if each.partition is None else each.partition
        for each in records
    ]


def test_a_key_stays_where_it_always_went() -> None:
    """CRC-32, modulo the partitions: another rule would tear the keys of every log apart."""
    records = [Record(None, key, "id") for key in (b"", b"N14228", b"customer-1", None)]
    assert partitions_for(records, 8) == [0, 6, 5, 0]
