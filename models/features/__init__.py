"""What a model is told besides ids: features of items, events and users, and times. Importing this package imports no torch."""
