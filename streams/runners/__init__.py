"""Runners: what drives the engine. They know the engine and a subscription, never a driver.

* :mod:`~streams.runners.job`: what is to be run, decided once when a processor starts.
* :mod:`~streams.runners.pump`: the thread that polls a subscription, feeds a runner, and commits.
* :mod:`~streams.runners.base`: what every runner does with an outcome.
* :mod:`~streams.runners.threads`: plain handlers, in worker threads.
* :mod:`~streams.runners.aio`: async handlers, on the app's event loop.
"""
