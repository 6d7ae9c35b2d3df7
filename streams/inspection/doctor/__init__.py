"""The checklist of an event-driven service, held against a real application: what
``streams doctor`` and the dashboard say.

============================  ======================================================
``checklist``                 the items, in their order
``app_inspection``            the app and its log, looked at; what an item found
``log_checks``                items about the log: persisted, order, retention
``history_checks``            items about aggregates: their event topics and snapshots
``view_checks``               items about views: what stands still, waits, lags, is left over
``manager_checks``            items about process managers: what nobody reads, dead, overdue
``projection_checks``         items about SQL projections: what lags, or is left over
``outbox_checks``             items about outboxes: nobody relays, rows are old or failed
``processor_checks``          items about processors: idempotent, dead letters, and so on
``monitoring_checks``         items about who watches: monitoring, alerts
``prometheus``                what a Prometheus is asked
============================  ======================================================
"""
