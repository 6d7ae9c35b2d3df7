"""A process that ships and bills, and relays the outbox to the log.

python -m examples.shop.worker URL DATABASE
"""

from __future__ import annotations

import logging
import sys

from examples.shop.shop import create


def main() -> None:
    logging.basicConfig(level=logging.ERROR, format="worker: %(message)s")
    url, database = sys.argv[1:3]
    create(url, database).app.run()


if __name__ == "__main__":
    main()
