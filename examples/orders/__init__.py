"""Orders over three services: reserve, charge, ship, or all of it taken back.

python -m examples.orders                # 60 orders, two workers, one after the other killed
python -m examples.orders work           # a worker, until Ctrl-C
python -m examples.orders order ada cup  # an order, from anywhere else
streams saga list orders --all --url sqlite:///orders.db
"""
