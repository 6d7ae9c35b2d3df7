"""A shop whose books are equal whatever is killed: an endpoint with an outbox, processors with an
inbox, on PostgreSQL or SQLite.

    python -m examples.shop          # a SQLite file, and a log in a file
    python -m examples.shop --database postgresql://shop@localhost/shop --url kafka://localhost:9092

===========  ======================================================================
``shop``     events, tables, and what becomes of an order
``service``  the endpoint: the order and the event of it are one transaction
``worker``   a process that runs the processors, and takes the outbox to the log
``demo``     orders by HTTP while service and workers are killed; then the books
===========  ======================================================================
"""
