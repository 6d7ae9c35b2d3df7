"""Orders over three services: reserve, charge, ship, or all of it undone.

python -m examples.orders                # 60 orders, two workers, one after the other killed
python -m examples.orders work           # a worker, until Ctrl-C
python -m examples.orders order ada cup  # an order, from anywhere else
streams saga list orders --all --url sqlite:///orders.db

By default an orchestrator runs an order (``saga.py``). With ``--choreographed`` there is none: the
services listen to each other (``choreography.py``), in each of the three commands.
"""
