"""Kafka: ``kafka://host:9092,host2:9092?setting=value``, and ``kafka+ssl://`` for TLS.

Built on confluent-kafka (librdkafka). See ``docs/kafka.md`` for URLs, settings, and the promises'
honest edges. Where another log has the same thing, its file has the same name.

=========================  ========================================================================
``log``                    the log protocol, one object that shares the work out
``settings``, ``errors``   the URL and the driver's settings; the driver's errors in our words
``client``                 the driver's clients, shared and replaced; asking a broker something
``reconnect``              whether a client that is cut off should be replaced
``statistics``             what the driver counts, as far as we use it
``topics``, ``groups``     administration: topics and their metadata; groups and who is in them
``durability``             how safe an acknowledged message is
``forced_resets``          setting the offsets of a group that runs

``producer``               confirmed, pipelined appends
``reader``, ``batch``      plain reads, watermarks, the offset for a time; messages as columns
``reader_consumer``        a consumer outside any group, which asks where a topic is
``partition_probe``        asking about partitions in a thread of its own

``subscription``           a group's member
``consumer``               its consumer, and what the driver calls back
``driver_reports``         whether that consumer is cut off, or has stopped fetching
``member_errors``          errors that its next poll raises
``assignment``             what it owns and fetches
``assignment_starter``     starting the partitions that it was given
``assignment_ender``       ending assignments: revoked, lost, started anew
``ownership``              until when it certainly owns what it reads
``offsets``                committing as a member, and reading what was committed
``fetch_watch``            finding partitions from which nothing comes although there is more

``transactions``           what the writers of transactions have in common
``output_writer``          an exactly-once processor's: records and its group's offsets

``events``                 histories of event topics: appends, and readers that judge them
``event_topics``           what makes a topic an event topic
``event_appends``          appends, written first and judged when the index has passed them
``arbitration``            which records count, by their order in the log alone
``event_readers``          what readers of an event topic are given
``event_indexes``          the indexes of a log's event topics
``event_index``            one topic's: folded from the log, and followed
``partition_index``        its histories of one partition
``index_file``             the same in a file, so that a restart need not read all of it
``index_keepers``          the threads that write that file, or snapshots of the index
``index_records``          a snapshot of it as records of a compacted topic, for who has no disk
``index_topic``            that topic: what is read of it, and when a snapshot is written
``index_writer``           writing one, in one transaction
``event_snapshots``        snapshots of histories: found, read and written
``snapshot_index``         where the newest of each stand, in a compacted topic

``documents``              collections of documents: compacted topics, a writer a partition
``document_records``       their topics, and what their records say
``document_writer``        writing a partition, one transaction a write
``document_index``         what a collection holds, read and followed
``document_partition``     one partition of it: which records count, and when they are shown
``document_file``          the same in a file

``index_consumer``         following partitions for an index, of events or of documents
``topic_identity``         whether a topic is still the one that was read
``cache_file``             the SQLite file that an index is kept in
=========================  ========================================================================
"""

from streams.log.kafka.log import KafkaLog, open

__all__ = ["KafkaLog", "open"]
