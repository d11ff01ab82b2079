"""What one worker runs: logs to sequences, sequences to batches, the training loop, checkpoints, evaluation.

Knows nothing of Ray: it is given a rank, a world size and callbacks. Importing this package imports no torch.
"""
