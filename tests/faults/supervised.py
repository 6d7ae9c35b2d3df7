"""The app of :mod:`tests.faults.worker` for ``streams run``: what it needs stands in the
environment, its log in ``STREAMS_URL``."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.fleet import SETTINGS
from tests.faults.worker import build

folder, topic, group, concurrency, pause = os.environ[SETTINGS].splitlines()
app = build(Path(folder), os.environ["STREAMS_URL"], topic, group, int(concurrency), float(pause))
