"""A process that runs versions of a projection, to be killed:
``python -m tests.projections.worker URL TOPIC KIND PLACE VERSION [VERSION]``.
"""

from __future__ import annotations

import os
import sys
import threading

from tests.inbox.kinds import KINDS
from tests.projections.world import World


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    url, topic, name, place, *versions = sys.argv[1:]
    kind = next(each for each in KINDS if each.name == name)
    World(url, topic, kind, place, map(int, versions)).app.run()
