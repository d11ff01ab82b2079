"""What a model is told besides ids: features of items, events and users, and times. Importing this package imports no torch.

Files:
    bags.py    values that are added up where their rows lie
    config.py  its settings: features of events and users, times
    inputs.py  what the encoder is given for an event
    items.py   an item's vector from its id and its features
    time.py    gaps, hours, weekdays, and seconds since a history began
    unique.py  ids that occur several times, asked for once
    values.py  what features say: rows settled on the host, and added up
"""
