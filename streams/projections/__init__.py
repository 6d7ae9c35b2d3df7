"""SQL projections: tables of the user's own, built from a topic by versions of a handler.

A processor with ``transaction=`` and ``version=2`` writes tables of the user's, in a group of its
own, ``NAME.v2``. So version 2 is built from the first message, at full speed, while the tables of
version 1 are read. Once it has handled all that version 1 has, it is *promoted*: a row of a table
in the same database says which version serves, and a function of the user's may switch a view in
the transaction that changes it.

===============  ================================================================
``tables``       the table ``streams_projections``, and every statement
``sessions``     a transaction of any of the databases, from a coroutine
``waiting``      messages of a version that are handled later than those behind them
``projection``   :class:`Projection`: one version; when it is promoted
``operations``   reports about projections, promote and drop
===============  ================================================================
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.projections.projection import Projection as Projection
    from streams.projections.tables import ddl as ddl
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.projections.projection": "Projection",
            "streams.projections.tables": "ddl",
        },
    )
