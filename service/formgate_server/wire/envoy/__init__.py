"""Envoy's own protocols over the same core. The messages are ours: as much of Envoy's as we read and write."""
