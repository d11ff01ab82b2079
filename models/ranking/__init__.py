"""Models that score what a user was shown: fields of an impression, crossed, through experts, to a logit for each label.

Files:
    batch.py            what a ranking model is given for one step
    config.py           its settings: crossing, experts, labels
    costs.py            what a ranker costs: FLOPs by part, parameters, bytes
    crossing.py         products of fields: DCN-v2, factorisation machine
    experts.py          what labels share: shared bottom, MMoE, PLE
    fields.py           all that is known of an impression, each thing a vector
    interest.py         what of a history bears on a candidate: DIN, BST, HSTU, SIM
    interest_config.py  settings of how candidates meet histories
    labels.py           what logits of labels mean, and their loss together
    layers.py           several small networks side by side, computed as one
    losses.py           of each impression, or of one user's together
    micro_batches.py    the same in pieces that are computed one after another
    model.py            tables, interest, fields, experts and labels together
    presets.py          published rankers as settings to start from
    reach.py            how many events before an impression its score depends on
"""
