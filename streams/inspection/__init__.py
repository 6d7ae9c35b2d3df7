"""Inspection and administration of a log: the parts that the command line and the dashboard share.

Nothing here prints or depends on a terminal or a browser: the functions query a log (and block),
and return their findings.
"""
