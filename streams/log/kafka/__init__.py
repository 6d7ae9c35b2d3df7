"""Kafka: ``kafka://host:9092,host2:9092?setting=value``, and ``kafka+ssl://`` for TLS.

Built on confluent-kafka (librdkafka). See ``docs/kafka.md`` for URLs, settings, and the promises'
honest edges. The files have the names that those of the other logs have:

* ``log``: the log protocol, one object that shares the work out;
* ``settings``: the URL and the driver's settings, and which of them are refused;
* ``errors``: the driver's errors and log lines in our words;
* ``client``: the driver's clients, shared and replaced, and how a broker is asked something;
* ``subscription``: a group's member; ``consumer``: its consumer, and what the driver calls back;
  ``assignment``: what it owns and fetches; ``assignment_starter``: starting what arrived;
  ``ownership``: until when it owns what it reads; ``offsets``: committing, and reading what was
  committed;
* ``batch``: messages as columns;
* ``producer``: confirmed, pipelined appends;
* ``reader``: plain reads, watermarks, and the offset for a time;
* ``topics``, ``groups`` and ``durability``: administration, and topics' metadata;
  ``forced_resets``: setting the offsets of a running group.

Kafka's alone are ``statistics``, what the driver counts, and ``reconnect``, which replaces a client
that is cut off.
"""

from streams.log.kafka.log import KafkaLog, open

__all__ = ["KafkaLog", "open"]
