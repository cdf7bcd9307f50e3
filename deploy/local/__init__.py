"""The embedded stack: real Kafka, Triton and Valkey as processes of this machine."""
