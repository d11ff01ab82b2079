"""Exchange of training examples: each rank reads its part of the row groups, and sends examples to the ranks that train them.

The invariant: batches and shares are those of a rank that reads everything (trainer.data.stream.global_batches). Only the
place where examples are read differs.

Files:
    agreement.py  errors of one rank, raised on all
    counting.py   steps of an epoch, counted from lengths that the ranks divide
    lengths.py    lengths of examples, divided among the ranks
    payload.py    examples as bytes
    readers.py    the rank that reads each row group of an epoch
    rounds.py     what a rank reads, sends and receives in one round
    steps.py      training steps from the rounds of exchange
"""
