"""Held-out histories ranked over the full catalogue: ranks, metrics, results, report."""
