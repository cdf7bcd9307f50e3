"""The Kafka door: transactions in, decisions out, exactly once."""
