"""An app for ``streams web tests.web.held_app:app``, whose redrive stands still in the chunk that
``HOLD_AT`` names (from 1): the chunk is written, and not noted yet. The file ``HOLD_FILE`` says so.

Without ``HOLD_AT`` nothing stands still. ``CHUNK`` letters are one chunk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from streams import Streams
from streams.log.appending import append_and_wait
from streams.patterns.deadletters import redriving

app = Streams()
left = int(os.environ.get("HOLD_AT", "0"))


def holding(log: Any, topic: str, records: Sequence[Any]) -> Any:
    """Write, and stand still if it is the turn."""
    global left
    answers = append_and_wait(log, topic, records)
    left -= 1
    if left == 0:
        Path(os.environ["HOLD_FILE"]).touch()
        threading.Event().wait()
    return answers


redriving.REDRIVE_CHUNK = int(os.environ.get("CHUNK", redriving.REDRIVE_CHUNK))
patch.object(redriving, "append_and_wait", holding).start()
