"""Sagas in memory: order, compensation, retries, contexts, groups, cancellation, bad input."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pytest

from streams import ConfigError, InvalidValue, Reject, Retry, RetryAfter
from streams.patterns import (
    ContextConflict,
    SagaError,
    SagaFailedError,
    SagaOrchestrator,
    SagaStep,
    StepCall,
    StepTimeout,
)

pytestmark = pytest.mark.anyio

FAST = Retry(attempts=3, delay=0.001, cap=0.002)


class Broken(Exception):
    pass


class Diary:
    """What steps did, in order; and steps that write in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failing: dict[str, int] = {}
        """How often an action fails yet, by what it writes."""

    def write(self, line: str) -> None:
        self.lines.append(line)
        if self.failing.get(line, 0) > 0:
            self.failing[line] -= 1
            raise Broken(line)

    def step(self, name: str, **options: Any) -> SagaStep[Any]:
        async def execute(context: dict[str, Any]) -> None:
            self.write(f"do {name}")
            context.setdefault("did", []).append(name)

        async def compensate(context: dict[str, Any]) -> None:
            self.write(f"undo {name}")
            context.setdefault("undid", []).append(name)

        options.setdefault("compensation_retry", FAST)
        return SagaStep(name, execute, compensate, **options)


async def ticks(over: Callable[[], bool]) -> None:
    """Let the loop turn until something is so, for some turns at most."""
    for _ in range(50):
        if over():
            return
        await asyncio.sleep(0)


@pytest.fixture
def diary() -> Diary:
    return Diary()


async def test_steps_run_in_order_and_the_context_is_passed_on(diary: Diary) -> None:
    saga = SagaOrchestrator().add_step(diary.step("a")).add_step(diary.step("b"))
    given = {"order": 7}
    assert await saga.execute(given) == {"order": 7, "did": ["a", "b"]}
    assert given == {"order": 7}
    assert diary.lines == ["do a", "do b"]


async def test_what_a_step_returns_takes_the_contexts_place() -> None:
    class Order(msgspec.Struct, frozen=True):
        total: int

    def double(order: Order) -> Order:
        return msgspec.structs.replace(order, total=order.total * 2)

    async def add(order: Order) -> Order:
        return msgspec.structs.replace(order, total=order.total + 1)

    saga = SagaOrchestrator().add_step("double", double).add_step("add", add)
    assert await saga.execute(Order(4)) == Order(9)


async def test_a_step_may_fail_with_an_error_that_has_no_words() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def fail(context: dict[str, Any]) -> None:
        raise Mute

    saga = SagaOrchestrator().add_step(SagaStep("fail", fail))
    with pytest.raises(SagaFailedError, match=r"Mute: \(its str\(\) raised") as caught:
        await saga.execute({}, id="s1")
    assert isinstance(caught.value.cause, Mute)


async def test_completed_steps_are_compensated_in_reverse(diary: Diary) -> None:
    saga = SagaOrchestrator()
    for name in "abcd":
        saga.add_step(diary.step(name))
    diary.failing["do c"] = 1
    with pytest.raises(SagaFailedError) as caught:
        await saga.execute({}, id="s1")
    assert diary.lines == ["do a", "do b", "do c", "undo b", "undo a"]
    error = caught.value
    assert (error.saga_id, error.step, error.failed_compensations) == ("s1", "c", ())
    assert isinstance(error.cause, Broken)
    assert error.__cause__ is error.cause
    # A failed step leaves no trace in the context; a compensation sees it as it then is.
    assert error.context == {"did": ["a", "b"], "undid": ["b", "a"]}
    assert str(error) == (
        "saga s1: step 'c' failed: Broken: do c (everything before it was compensated)"
    )


async def test_compensations_see_the_context_as_it_then_is() -> None:
    seen: list[dict[str, int]] = []

    async def count(context: dict[str, int]) -> None:
        context["n"] += 1

    async def undo(context: dict[str, int]) -> None:
        seen.append(dict(context))
        context["n"] -= 10

    async def fail(context: dict[str, int]) -> None:
        context["n"] = 999
        raise Broken

    saga = SagaOrchestrator().add_step("a", count, undo).add_step("b", count, undo)
    with pytest.raises(SagaFailedError):
        await saga.add_step("c", fail).execute({"n": 0})
    assert seen == [{"n": 2}, {"n": -8}]


async def test_a_failing_compensation_is_retried_recorded_and_stops_no_other(
    diary: Diary,
) -> None:
    saga = SagaOrchestrator()
    for name in "abcd":
        saga.add_step(diary.step(name))
    diary.failing.update({"do d": 1, "undo c": 2, "undo b": 99})
    with pytest.raises(SagaFailedError) as caught:
        await saga.execute({})
    assert diary.lines[4:] == [*["undo c"] * 3, *["undo b"] * 3, "undo a"]
    (failed,) = caught.value.failed_compensations
    assert (failed.step, failed.attempts) == ("b", 3)
    assert isinstance(failed.error, Broken)
    assert "not compensated: b" in str(caught.value)
    assert isinstance(caught.value.cause, Broken)
    assert str(caught.value.cause) == "do d"


async def test_a_failing_step_is_tried_once_unless_its_policy_says_more(diary: Diary) -> None:
    saga = SagaOrchestrator().add_step(diary.step("a", retry=FAST))
    diary.failing["do a"] = 2
    assert await saga.execute({}) == {"did": ["a"]}
    assert diary.lines == ["do a"] * 3

    once = SagaOrchestrator().add_step(diary.step("b"))
    diary.failing["do b"] = 1
    with pytest.raises(SagaFailedError):
        await once.execute({})
    assert diary.lines[3:] == ["do b"]


@pytest.mark.parametrize(
    ("error", "calls"),
    [(Reject("no"), 1), (KeyError("never"), 1), (RetryAfter(0.001), 5), (Broken(), 5)],
)
async def test_a_policy_says_what_is_tried_again(error: Exception, calls: int) -> None:
    attempts = []

    async def fail(context: Any, call: StepCall) -> None:
        attempts.append(call.attempt)
        raise error

    retry = Retry(attempts=5, delay=0.001, never=(KeyError,))
    with pytest.raises(SagaFailedError) as caught:
        await SagaOrchestrator().add_step("a", fail, retry=retry).execute({})
    assert attempts == list(range(1, calls + 1))
    assert caught.value.cause is error


@pytest.mark.parametrize("compensate_failed", [True, False])
async def test_a_failed_steps_partial_effect_is_undone_by_choice(
    diary: Diary, compensate_failed: bool
) -> None:
    saga = SagaOrchestrator().add_step(diary.step("a"))
    saga.add_step(diary.step("b", compensate_failed=compensate_failed))
    diary.failing["do b"] = 1
    with pytest.raises(SagaFailedError):
        await saga.execute({})
    assert diary.lines[2:] == [*(["undo b"] if compensate_failed else []), "undo a"]


async def test_a_step_without_compensation_is_passed_over(diary: Diary) -> None:
    async def nothing(context: Any) -> None:
        diary.write("do b")

    saga = SagaOrchestrator().add_step(diary.step("a")).add_step("b", nothing)
    diary.failing["do c"] = 1
    with pytest.raises(SagaFailedError):
        await saga.add_step(diary.step("c")).execute({})
    assert diary.lines == ["do a", "do b", "do c", "undo a"]


async def test_concurrent_executions_share_no_context() -> None:
    both = asyncio.Barrier(2)

    async def remember(context: dict[str, Any]) -> None:
        context["seen"].append(context["n"])
        await both.wait()

    saga = SagaOrchestrator().add_step("a", remember).add_step("b", remember)
    shared: list[int] = []
    first, second = await asyncio.gather(*(saga.execute({"n": n, "seen": shared}) for n in (1, 2)))
    assert (first["seen"], second["seen"], shared) == ([1, 1], [2, 2], [])


async def test_every_call_of_a_step_has_its_own_idempotency_key() -> None:
    keys: list[tuple[str, str]] = []

    def note(what: str, failing: bool, context: Any, call: StepCall) -> None:
        keys.append((what, call.idempotency_key))
        if failing:
            raise Broken

    saga = SagaOrchestrator()
    for name, fails in (("a", False), ("b", True)):
        saga.add_step(
            name,
            partial(note, f"do {name}", fails),
            partial(note, f"undo {name}", False),
            retry=Retry(attempts=2, delay=0.001),
            compensate_failed=True,
        )
    with pytest.raises(SagaFailedError):
        await saga.execute({}, id="x")
    assert keys == [
        ("do a", "saga/x/a"),
        ("do b", "saga/x/b"),
        ("do b", "saga/x/b"),
        ("undo b", "saga/x/b/undo"),
        ("undo a", "saga/x/a/undo"),
    ]
    assert StepCall("saga", "x", "b").idempotency_key != StepCall("saga", "y", "b").idempotency_key


async def test_a_plain_step_runs_in_a_thread() -> None:
    threads = []

    def work(context: dict[str, Any]) -> None:
        threads.append(threading.current_thread())

    await SagaOrchestrator().add_step("a", work).execute({})
    assert threads != [threading.main_thread()]


async def test_a_step_that_takes_too_long_fails() -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    saga = SagaOrchestrator().add_step("a", hang, timeout=0.01)
    with pytest.raises(SagaFailedError) as caught:
        await saga.execute({})
    assert isinstance(caught.value.cause, StepTimeout)

    async def own(context: Any) -> None:
        raise TimeoutError("the step's own")

    with pytest.raises(SagaFailedError, match="the step's own"):
        await SagaOrchestrator().add_step("a", own, timeout=60).execute({})


# -- groups ---------------------------------------------------------------------------------------


@dataclass
class Trip:
    hotel: str = ""
    flight: str = ""
    notes: tuple[str, ...] = ()


class Frozen(msgspec.Struct, frozen=True):
    hotel: str = ""
    flight: str = ""


class Plain:
    def __init__(self) -> None:
        self.hotel = self.flight = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # it is compared, never hashed


def made(kind: Any, **values: str) -> Any:
    if kind is Plain:
        found = Plain()
        vars(found).update(values)
        return found
    return kind(**values)


@pytest.mark.parametrize("kind", [dict, Trip, Frozen, Plain])
async def test_a_group_runs_side_by_side_and_its_changes_are_merged(kind: Any) -> None:
    both = asyncio.Barrier(2)

    def book(what: str) -> Callable[[Any], Any]:
        async def execute(context: Any) -> Any:
            await asyncio.wait_for(both.wait(), 30)  # only passed by two at once
            if kind is Frozen:
                return msgspec.structs.replace(context, **{what: "booked"})
            if kind is dict:
                context[what] = "booked"
                context.pop("draft", None)
            else:
                setattr(context, what, "booked")
            return None

        return execute

    saga = SagaOrchestrator().add_parallel(
        SagaStep("hotel", book("hotel")), SagaStep("flight", book("flight"))
    )
    given = made(kind, draft="yes") if kind is dict else made(kind)
    assert await saga.execute(given) == made(kind, hotel="booked", flight="booked")


async def test_the_next_step_begins_when_all_of_a_group_are_done(diary: Diary) -> None:
    gate = asyncio.Event()

    async def slow(context: Any) -> None:
        await gate.wait()
        diary.write("slow")

    async def quick(context: Any) -> None:
        diary.write("quick")
        gate.set()

    saga = SagaOrchestrator().add_parallel(SagaStep("slow", slow), SagaStep("quick", quick))
    await saga.add_step(diary.step("after")).execute({})
    assert diary.lines == ["quick", "slow", "do after"]


async def test_two_changes_of_one_field_are_a_failure_and_undone(diary: Diary) -> None:
    def name(value: str) -> SagaStep[Any]:
        async def execute(context: dict[str, str]) -> None:
            context["name"] = value

        async def compensate(context: dict[str, str]) -> None:
            diary.write(f"undo {value}")

        return SagaStep(value, execute, compensate)

    saga = SagaOrchestrator().add_step(diary.step("a")).add_parallel(name("x"), name("y"))
    with pytest.raises(SagaFailedError) as caught:
        await saga.execute({})
    assert isinstance(caught.value.cause, ContextConflict)
    assert "'x' and 'y' both changed 'name'" in str(caught.value.cause)
    assert diary.lines == ["do a", "undo y", "undo x", "undo a"]


async def test_a_failure_in_a_group_lets_the_others_finish_and_undoes_them(diary: Diary) -> None:
    failed = asyncio.Event()

    async def slow(context: Any) -> None:
        await failed.wait()
        diary.write("do slow")

    async def undo(context: Any) -> None:
        diary.write("undo slow")

    async def fail(context: Any) -> None:
        failed.set()
        raise Broken

    saga = SagaOrchestrator().add_step(diary.step("a"))
    saga.add_parallel(SagaStep("slow", slow, undo), SagaStep("fails", fail))
    with pytest.raises(SagaFailedError) as caught:
        await saga.add_step(diary.step("z")).execute({})
    assert caught.value.step == "fails"
    assert diary.lines == ["do a", "do slow", "undo slow", "undo a"]


async def test_only_those_of_a_group_that_failed_are_tried_again(diary: Diary) -> None:
    saga = SagaOrchestrator().add_parallel(diary.step("a"), diary.step("b", retry=FAST))

    def kept(name: str) -> SagaStep[Any]:
        async def execute(context: dict[str, str]) -> None:
            diary.write(f"do {name}")
            context[name] = "done"

        return SagaStep(name, execute, retry=FAST)

    saga = SagaOrchestrator().add_parallel(kept("a"), kept("b"))
    diary.failing["do b"] = 2
    assert await saga.execute({}) == {"a": "done", "b": "done"}
    assert sorted(diary.lines) == ["do a", "do b", "do b", "do b"]


# -- cancellation ---------------------------------------------------------------------------------


async def test_a_cancelled_saga_is_compensated_before_the_cancellation_goes_on(
    diary: Diary,
) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def hang(context: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def undo(context: Any) -> None:
        diary.write("undo begun")
        await gate.wait()
        diary.write("undo ended")

    async def nothing(context: Any) -> None:
        return None

    saga = SagaOrchestrator().add_step("a", nothing, undo).add_step("hang", hang)
    task = asyncio.create_task(saga.execute({}))
    await begun.wait()
    task.cancel()
    await ticks(lambda: bool(diary.lines))
    task.cancel()  # once more does not leave the compensation half done
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["undo begun", "undo ended"]


async def test_a_step_that_is_cut_off_has_failed_and_the_cancellation_is_not_lost(
    diary: Diary,
) -> None:
    begun = asyncio.Event()

    async def hang(context: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    saga = SagaOrchestrator().add_step(diary.step("a")).add_step("hang", hang)
    task = asyncio.create_task(saga.execute({}))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["do a", "undo a"]


async def test_a_failure_beside_it_does_not_hide_a_cancellation(diary: Diary) -> None:
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stubborn(context: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert gate.wait(30)

    async def fail(context: Any) -> None:
        raise Broken

    saga = SagaOrchestrator().add_parallel(SagaStep("a", stubborn), SagaStep("b", fail))
    task = asyncio.create_task(saga.execute({}))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_step_that_ends_in_spite_of_being_cancelled_is_undone_as_well(
    diary: Diary,
) -> None:
    begun, gate = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def stubborn(context: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert gate.wait(30)
        diary.write("done")

    async def undo(context: Any) -> None:
        diary.write("undone")

    saga = SagaOrchestrator().add_step("a", stubborn, undo).add_step(diary.step("b"))
    task = asyncio.create_task(saga.execute({}))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["done", "undone"]


async def test_cancelled_while_a_step_waits_to_be_tried_again(diary: Diary) -> None:
    saga = SagaOrchestrator().add_step(diary.step("a"))
    saga.add_step(diary.step("b", retry=Retry(attempts=2, delay=3600, cap=3600)))
    diary.failing["do b"] = 1
    task = asyncio.create_task(saga.execute({}))
    await ticks(lambda: "do b" in diary.lines)
    await ticks(lambda: False)  # until nothing moves but the clock
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert diary.lines == ["do a", "do b", "undo a"]


async def test_a_step_that_is_cancelled_from_within_has_failed(diary: Diary) -> None:
    async def inner(context: Any) -> None:
        raise asyncio.CancelledError

    saga = SagaOrchestrator().add_step(diary.step("a")).add_step("b", inner)
    with pytest.raises(SagaFailedError, match="cancelled from within"):
        await saga.execute({})
    assert diary.lines == ["do a", "undo a"]


# -- what cannot be -------------------------------------------------------------------------------


async def nothing(context: Any) -> None:
    return None


def generator(context: Any) -> Any:
    yield context


def many(one: Any, two: Any, three: Any) -> None:
    pass


def keyword(context: Any, *, wanted: Any) -> None:
    pass


def plain(context: Any) -> None:
    pass


Step: Any = SagaStep
Orchestrator: Any = SagaOrchestrator
# As somebody writes them who has no type checker.


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Step("", nothing), "1 to 200 characters"),
        (lambda: Step("two\nlines", nothing), "one line"),
        (lambda: Step("a", "execute"), "give a function"),
        (lambda: Step("a", Broken), "give a function \\(context"),
        (lambda: Step("a", generator), "generator"),
        (lambda: Step("a", many), "takes 3 parameters"),
        (lambda: Step("a", keyword), "'wanted' by keyword"),
        (lambda: Step("a", lambda: None), "takes 0 parameters"),
        (lambda: Step("a", nothing, timeout=0), "positive number of seconds"),
        (lambda: Step("a", plain, timeout=1), "cannot be interrupted"),
        (lambda: Step("a", nothing, plain, timeout=1), "plain compensate"),
        (lambda: Step("a", nothing, compensate_failed=True), "without a compensate"),
        (lambda: Step("a", nothing, retry=3), "use Retry"),
        (lambda: Step("a", nothing, retry=Retry(in_order=False)), "in_order"),
        (
            lambda: Orchestrator().add_step("a", nothing).add_step("a", nothing),
            "'a' already",
        ),
        (
            lambda: Orchestrator().add_step(Step("a", nothing), nothing),
            "not both",
        ),
        (lambda: Orchestrator().add_parallel(), "at least one"),
        (lambda: Orchestrator().add_parallel(nothing), "not a SagaStep"),
        (lambda: Orchestrator(name="orders"), "needs all of"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_where_it_is_written(
    make: Callable[[], object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


async def test_a_saga_without_steps_and_a_context_that_cannot_be_copied() -> None:
    with pytest.raises(ConfigError, match="no steps"):
        await SagaOrchestrator().execute({})
    saga = SagaOrchestrator().add_step("a", nothing)
    with pytest.raises(ConfigError, match="cannot be copied"):
        await saga.execute({"lock": threading.Lock()})
    with pytest.raises(InvalidValue, match="printable"):
        await saga.execute({}, id="a\nb")
    for call in (saga.start({}), saga.status("x"), saga.list(), saga.resume("x")):
        with pytest.raises(ConfigError, match="for durable sagas"):
            await call


async def test_what_is_returned_must_be_a_context(diary: Diary) -> None:
    async def odd(context: Any) -> Any:
        diary.write("do odd")
        return "done"

    async def undo(context: Any) -> None:
        diary.write("undo odd")

    saga = SagaOrchestrator().add_step("odd", odd, undo, retry=FAST)
    with pytest.raises(SagaFailedError, match=r"returned a str: return the context \(a dict\)"):
        await saga.execute({})
    # It had its effect: it is not tried again, and it is undone.
    assert diary.lines == ["do odd", "undo odd"]


async def test_a_compensation_that_leaves_no_context_is_called_once_and_recorded(
    diary: Diary,
) -> None:
    async def undo(context: Any) -> Any:
        diary.write("undo odd")
        return "undone"

    saga = SagaOrchestrator().add_step(diary.step("a"))
    saga.add_step(SagaStep("odd", nothing, undo, compensation_retry=FAST))
    diary.failing["do c"] = 1
    with pytest.raises(SagaFailedError) as caught:
        await saga.add_step(diary.step("c")).execute({})
    assert diary.lines == ["do a", "do c", "undo odd", "undo a"]
    (failed,) = caught.value.failed_compensations
    assert "returned a str" in str(failed.error)


async def test_errors_are_of_one_family() -> None:
    assert issubclass(SagaFailedError, SagaError)


async def test_a_builtin_and_an_object_may_be_steps(diary: Diary) -> None:
    class Setter:
        async def __call__(self, context: dict[str, int]) -> None:
            context["n"] = 1

    saga = SagaOrchestrator().add_step("clear", dict.clear).add_step("set", Setter())
    assert await saga.execute({"old": 1}) == {"n": 1}


@pytest.mark.timeout(60)
async def test_a_plain_step_that_raises_stop_iteration_has_failed() -> None:
    """No future holds that exception, so nobody would ever be told that the step has ended."""

    def stops(context: dict[str, Any]) -> None:
        raise StopIteration

    saga = SagaOrchestrator().add_step("stops", stops)
    with pytest.raises(SagaFailedError, match="StopIteration"):
        await saga.execute({})
