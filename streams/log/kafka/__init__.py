"""Kafka: ``kafka://host:9092,host2:9092?setting=value``, and ``kafka+ssl://`` for TLS.

Built on confluent-kafka (librdkafka). See ``docs/kafka.md`` for URLs, settings, and the promises'
honest edges; the parts are:

* ``settings``: the URL and the driver's settings, and which of them are refused;
* ``subscription`` and ``ownership``: a group's member, and until when it owns what it reads;
* ``batch``: messages as columns;
* ``producer``: confirmed, pipelined appends;
* ``reading`` and ``admin``: plain reads, topics, groups;
* ``errors``: the driver's errors in our words.
"""

from streams.log.kafka.log import KafkaLog, open

__all__ = ["KafkaLog", "open"]
