"""Dashboards as code, and the door to a Grafana server; rules for Prometheus stand beside them."""
