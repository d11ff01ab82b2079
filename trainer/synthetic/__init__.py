"""Event logs with planted structure, and the truth about them."""
