"""Logs, which hold the messages (:mod:`streams.log.protocol`). Only they import drivers."""
