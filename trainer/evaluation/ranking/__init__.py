"""Held-out impressions scored: metrics of probabilities and of order, baselines, intervals, results, report."""
