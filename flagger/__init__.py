"""The core of Fraud Flagger: schema, features, entity state, policy, Triton client, settings.

The core knows no Kafka, no HTTP and no command-line door; the doors (`streamer`, `gateway`,
`train`) import it, never the other way round.
"""

__version__ = "0.1.0"
