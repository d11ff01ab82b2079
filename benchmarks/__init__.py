"""Shoal measured side by side with ceilings, in the same run on the same machine. `python -m benchmarks`."""
