"""Executors: what drives the engine. They know the engine and a subscription, never a driver.

* :mod:`~streams.processing.job`: what is to be run, decided once when a processor starts.
* :mod:`~streams.processing.poller`: the thread that polls a subscription, feeds an executor, and
  commits.
* :mod:`~streams.processing.executor`: what every executor does with an outcome.
* :mod:`~streams.processing.thread_executor`: plain handlers, in worker threads.
* :mod:`~streams.processing.async_executor`: async handlers, on the app's event loop.
"""
