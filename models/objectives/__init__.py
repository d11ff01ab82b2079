"""What the training minimises. Importing this package imports no torch."""
