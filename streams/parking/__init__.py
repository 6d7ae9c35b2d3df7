"""Key parking: messages kept behind a dead one of their key, for ``DeadLetters(sequenced=True)``.

:mod:`streams.parking.records` is the format of what is written and the state that follows from it;
:mod:`streams.parking.key_parking` reads and writes it for a processor.
"""
