"""Load, benchmarks and the demo."""
