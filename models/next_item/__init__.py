"""The next-item model.

Files:
    masking.py  the learned vector that replaces a masked event
    model.py    tables, encoder and objective together
"""
