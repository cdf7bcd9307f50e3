"""Deployment: the embedded stack in `local`, and later images, charts and cloud wiring."""
