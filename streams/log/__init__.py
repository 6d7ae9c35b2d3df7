"""Logs: what messages stand in. Only here is a driver imported, one a log;
see :mod:`streams.log.protocol`."""
