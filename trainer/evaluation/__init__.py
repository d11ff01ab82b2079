"""Evaluation on held-out data, for both tasks.

Files:
    confidence.py  confidence intervals that stay within a metric's range
    outputs.py     what an evaluation of either task leaves in its folder
"""
