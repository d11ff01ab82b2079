"""Preparing: the two passes over event logs as functions of one task each, and what they work out together."""
