"""The facts that figures depend on besides the code: processor, system, versions."""

from __future__ import annotations

import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.collector import GC_THRESHOLD

PACKAGES = (
    "streams-toolkit", "msgspec", "orjson", "uvloop", "apsw", "confluent-kafka", "redis", "hiredis",
)  # fmt: skip


def machine_facts() -> dict[str, str]:
    """Names and values, as they are shown with the figures."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "garbage collector": f"each {GC_THRESHOLD:,} objects, as under streams run",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load_average() -> float | None:
    """The average number of runnable processes over the last minute; None if unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{size / (1 << 30):.0f} GiB"


def resident_bytes() -> int:
    """Bytes of this process that are in memory now (its peak, if the system gives no more)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MemorySampler:
    """Samples this process's memory, ten times a second. A context manager.

    :ivar samples: seconds since its start, and bytes.
    """

    def __init__(self, every: float = 0.1) -> None:
        self.samples: list[tuple[float, int]] = []
        self._every = every
        self._over = threading.Event()
        self._began = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._began = time.perf_counter()
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            self._sample()

    def _sample(self) -> None:
        self.samples.append((time.perf_counter() - self._began, resident_bytes()))

    @property
    def growth(self) -> int:
        """Bytes between the first sample and the highest."""
        return max(size for _, size in self.samples) - self.samples[0][1]

    def curve(self, points: int = 120) -> list[tuple[float, float]]:
        """Seconds and MiB: at most ``points`` of the samples, the highest of each interval."""
        step = max(1, -(-len(self.samples) // points))
        stretches = [self.samples[at : at + step] for at in range(0, len(self.samples), step)]
        return [
            (round(stretch[0][0], 2), round(max(size for _, size in stretch) / (1 << 20), 1))
            for stretch in stretches
        ]
