"""Next-item model: tables, encoder and objective together.

Files:
    masking.py  the vector in the place of a masked event
    model.py    table, encoder and objective together
"""
