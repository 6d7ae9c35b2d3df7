"""A web service that takes orders and reserves stock for them, in one process.

``POST /orders`` publishes and answers at once; a second request with the same ``Idempotency-Key``
gets the same answer. A processor reserves the stock through a pool of database connections that
is opened with the service; its decision is published in turn, and a queue has the mails about
it sent.

Run it with ``uvicorn --factory examples.service.app:create``. With
``STREAMS_WEB_PASSWORDS=NAME:PASSWORD`` in the environment, its dashboard is at ``/ops/``.
"""
