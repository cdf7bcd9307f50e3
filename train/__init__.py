"""Data sources, simulator, replay, training and evaluation."""
