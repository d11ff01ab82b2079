"""Event logs: which files they are, their rows held against their contract, what is wrong kept in quarantine."""
