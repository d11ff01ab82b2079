"""Inputs of a model besides ids: features of items, events and users, and times. Importing this package imports no torch.

Files:
    bags.py       values that are summed where their rows are stored
    catalogue.py  all items with their features, and the requests for some of them
    composer.py   the vector of an item from its id and its features
    config.py     settings of features and times
    inputs.py     the vector of an input event
    request.py    the rows and bags that a batch looks up
    time.py       gaps, hours, weekdays, and seconds since the start of a history
    unique.py     unique ids of a batch and the index of every occurrence
    values.py     embeddings of features: rows resolved on the host, and their sums
"""
