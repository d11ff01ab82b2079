"""The next-item model.

Files:
    later_targets.py  heads and targets for events after the next one
    masking.py        the learned vector that replaces a masked event
    model.py          tables, encoder and objective together
"""
