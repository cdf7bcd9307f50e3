"""The wire format: JSON messages to columns and decisions to JSON, in bulk."""
