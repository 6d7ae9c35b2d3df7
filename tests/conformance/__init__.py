"""One suite over all logs: what every log owes to whoever stands on it.

``logs.py`` holds the list; a log is added by one line. A test gets a :class:`~.world.World` of one
log after the other, and says with ``@pytest.mark.needs("durable")`` what a log must be able to do
for it; on a log that cannot, it is not collected.
"""
