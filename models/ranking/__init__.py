"""Rankers: fields of an impression, crossed and passed through experts, give a logit per label.

Files:
    batch.py             the input of a ranker for one step
    config.py            settings of crossing, experts and labels
    costs.py             FLOPs per part, parameters and bytes of a ranker
    crossing.py          products of fields: DCN-v2, factorisation machine
    dense_parameters.py  number of dense weights of the parts
    experts.py           layers that labels share: shared bottom, MMoE, PLE
    fields.py            the fields of an impression, a vector each
    interest.py          a vector of the history for each candidate: DIN, BST, HSTU, SIM
    interest_config.py   settings of how candidates attend to histories
    labels.py            the meaning of the logits of labels, and their joint loss
    layers.py            several small networks side by side, computed as one
    losses.py            losses per impression, or over one user's impressions
    micro_batches.py     splits a batch into pieces that are computed one after another
    model.py             tables, interest, fields, experts and labels together
    presets.py           published rankers as default settings
    reach.py             how many events before an impression its score depends on
"""
