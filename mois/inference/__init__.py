"""Whole volumes: a scan is encoded once as tiles; clicks, tracking and propagation decode."""
