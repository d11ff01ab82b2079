"""From a dataset to batches: the order of examples, row groups, jagged batches of one rank."""
