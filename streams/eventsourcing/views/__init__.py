"""Views: documents that are folded from events, and follow them.

A view is declared with :meth:`streams.Aggregate.view`, or with :class:`streams.View` over any
topics. Its documents are the fold of the history up to their checkpoint, exactly, whatever is
killed.
"""
