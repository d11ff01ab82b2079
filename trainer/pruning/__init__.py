"""Pruning: removes the heads and blocks of an encoder that contribute least. Importing this package imports no torch.

Files:
    choice.py         which heads and blocks are pruned
    contributions.py  the validation metric without each head and each block
    new_run.py        the run folder of a pruned model
    outputs.py        files of the results
    plots.py          quality against FLOPs
    pruning.html.j2   template of pruning.html
    results.py        quality and cost of each pruned model
    weights.py        the weights of a pruned model
"""
