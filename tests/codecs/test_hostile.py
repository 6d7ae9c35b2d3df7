"""What anybody may send: whatever the bytes, a value of the type or one typed error."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_codecs import Codec, DecodeError, Json, Key, MessagePack, Text, Zstd
from tests.codecs.samples import (
    Cancelled,
    Departed,
    Node,
    nested_json,
    nested_msgpack,
)

MAX = 150_000
DEPARTED = Departed("N1", "UA", 2)
NODE = Node(1, Node(2, children=[Node(3)]))

CASES: dict[str, tuple[Codec, Any, Any]] = {
    "json": (Json(MAX), Departed | Cancelled, DEPARTED),
    "json, recursive": (Json(MAX), Node, NODE),
    "json, untyped": (Json(MAX), Any, [{"a": [1, "b", None]}]),
    "msgpack": (MessagePack(MAX), Departed | Cancelled, DEPARTED),
    "msgpack, recursive": (MessagePack(MAX), Node, NODE),
    "msgpack, untyped": (MessagePack(MAX), Any, [{"a": [1, "b", None]}]),
    "text": (Text(MAX), str, "a text \u20ac"),
    "key": (Key(MAX), int, -70_000),
    "zstd": (Zstd(Json(), max_size=MAX), Node, NODE),
}


def payload(rng: random.Random, good: bytes) -> bytes:
    """Corrupt, truncated, deep, oversized, spliced, or plain noise."""
    match rng.randrange(6):
        case 0:
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        case 1:
            return good[: rng.randrange(len(good))]
        case 2:
            levels = rng.choice([300, 513, 5_000, 100_000])
            nested = rng.choice([nested_json, nested_msgpack])
            opener = rng.choice([b"", b'{"next":', b'{"children":[', b'{"x":[', b"\x81\xa4next"])
            return opener * levels if opener else nested(levels, rng.random() < 0.5)
        case 3:
            return good + b" " * (MAX - len(good) + rng.randint(1, 100))
        case 4:
            return rng.randbytes(rng.choice([0, 1, 8, 300, 3000]))
        case _:
            return good[: rng.randrange(len(good))] + rng.randbytes(5) + good


def attempt(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except DecodeError as error:
        return error


def described(outcome: Any) -> Any:
    if isinstance(outcome, DecodeError):
        return type(outcome), {**vars(outcome), "data": None}, str(outcome)
    return outcome


@pytest.mark.parametrize("name", CASES)
def test_a_thousand_payloads(name: str) -> None:
    codec, form, value = CASES[name]
    bound = codec.bind(form, topic="t", role="value")
    good = bound.encode(value)
    rng = random.Random(20130101)
    failed = 0
    for _ in range(100):
        batch = [payload(rng, good) for _ in range(10)]
        outcomes: list[Any] = []
        for data in batch:
            kept = bytes(bytearray(data))
            outcome = attempt(bound.decode, data)
            if isinstance(outcome, DecodeError):
                failed += 1
                assert outcome.data == kept
                assert "\n" not in str(outcome)
                assert str(outcome).startswith("t value: ")
            outcomes.append(outcome)
            assert bound.decode(good) == value
        # A batch, and each payload where it is a batch of its own, end the same.
        assert list(map(described, bound.decode_many(batch))) == list(map(described, outcomes))
        alone = [bound.decode_many([data])[0] for data in batch]
        assert list(map(described, alone)) == list(map(described, outcomes))
    assert failed > 300


SMALL_STACK = """
import threading
from typing import Any
from stream_codecs import DecodeError, Json, MessagePack
from tests.codecs.samples import Node, nested_json, nested_msgpack

def work():
    for codec, document, types in (
        (Json(), nested_json, (Any, list[Any], Node)),
        (MessagePack(), nested_msgpack, (Any, list[Any], Node)),
    ):
        for type in types:
            bound = codec.bind(type, topic="t")
            assert type is Node or bound.decode(document(512))
            for levels in (512, 513, 10_000, 1_000_000):
                for data in (document(levels), document(levels, False)):
                    for decode in (bound.decode, bound.decoder([data])):
                        try:
                            decode(data)
                        except Exception as exc:
                            assert isinstance(bound.explain(data, exc), DecodeError)
                        else:
                            assert levels <= 512, levels
    for levels in (512, 100_000):
        for item in (b'{"next":', b'{"children":[', b'{"other":'):
            data = item * levels
            try:
                Json().bind(Node, topic="t").decode(data)
            except DecodeError:
                pass
            else:
                raise AssertionError
    print("done")

threading.stack_size(512 << 10)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_depth_does_not_overflow_a_small_stack() -> None:
    """In a process of its own: if it does, the interpreter dies."""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", SMALL_STACK],
        env={"PYTHONPATH": f"{root}:{root / 'codecs'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
