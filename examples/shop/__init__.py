"""A shop whose books balance whatever is killed: an endpoint with an outbox, processors with an
inbox, on PostgreSQL or SQLite.

    python -m examples.shop          # a SQLite file, and a log in a file
    python -m examples.shop --database postgresql://shop@localhost/shop --url kafka://localhost:9092

===========  ======================================================================
``shop``     events, tables, and the processing of an order
``service``  the endpoint: the order and its event are one transaction
``worker``   a process that runs the processors, and relays the outbox to the log
``demo``     orders by HTTP while service and workers are killed; then the books
===========  ======================================================================
"""
