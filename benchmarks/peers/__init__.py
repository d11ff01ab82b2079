"""Training speed of Shoal and of other tools, each through the whole of its own system, in turns in one run.

    python -m benchmarks.peers --logs ../shared/data/ml-1m/events_3416_items.parquet --json FILE
    python -m benchmarks.peers --json FILE --page docs/comparison.md            # writes the table

RePlay and RecTools need older libraries than Shoal. They run in an environment of their own, build/peers, which is made at the
first use from requirements/peers.txt. Their programs import nothing of Shoal, and use the classes, transforms and trainers that the
documentation of the tools recommends for training.

Files:
    __main__.py       command, turns and table
    environment.py    environment of the other tools, and runs of programs in it
    histories.py      histories of the logs, as the other tools get them
    program.py        arguments of programs, and the time of batches under Lightning's trainer
    replay_sasrec.py  program that trains RePlay's SASRec
    rectools_hstu.py  program that trains RecTools' HSTU
"""
