"""The HTTP door: synchronous scoring."""
