"""A web service that takes orders and reserves stock for them, in one process.

``POST /orders`` publishes and answers at once; a processor reserves the stock through a pool of
database connections that is opened with the service; what it decided is published in turn.

Run it with ``uvicorn --factory examples.service.app:create``.
"""
