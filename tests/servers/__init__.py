"""Real servers for tests and benchmarks: started here, on loopback, and ended with whoever did.

* :mod:`~tests.servers.lifetime`: a folder and everything started in it, ended together;
* :mod:`~tests.servers.kafka`, :mod:`~tests.servers.redis` and :mod:`~tests.servers.postgres`:
  servers that a test may kill, pause and start again, clusters of them, and their tools;
* :mod:`~tests.servers.find`: one shared server of each kind, from the environment, a container
  engine, or a local process.

``python -m tests.servers`` says what this machine has, and fetches Kafka's jars once.
"""
