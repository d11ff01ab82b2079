"""What differs between the tasks: model, training stream, what a batch is given of the global one, evaluation.

Files:
    daily_training.py  training by days from one command to the next, while the logs grow
    metrics.py         metrics by task: names, directions, ranges
    next_item.py       the next event, out of the whole catalogue
    outputs.py         files of an evaluation, by task
    ranking.py         what becomes of impressions
    task.py            what the loop and the stages ask of one
"""
