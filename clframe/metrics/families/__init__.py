"""The catalogue by theme: a module per family of metrics, each listing its own as `METRICS`."""
