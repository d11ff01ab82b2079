"""Encoders of histories. Importing this package imports no torch."""
