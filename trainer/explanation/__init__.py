"""Explanations of recommendations, and how far they can be trusted.

Packages:
    aggregates     where attention goes, over many histories
"""
