"""The demo: a month of real flights through a log, with a worker killed in the middle.

``python -m examples.flights`` publishes every departure, arrival and cancellation, handles them
with 64 concurrent handlers, and then compares the result with a plain count over the file.
"""
