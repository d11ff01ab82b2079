"""Attention over jagged histories, in parts that can be exchanged. Importing this package imports no torch."""
