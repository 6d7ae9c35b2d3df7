"""What people see of a log, and what they do to it: the parts that the command line and the
dashboard have in common.

Nothing here prints, and nothing here knows of a terminal or a browser: functions ask a log (and
block), and return what they found.
"""
