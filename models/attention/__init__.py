"""Attention over jagged histories, composed of exchangeable parts. Importing this package imports no torch.

Files:
    activation_unit.py   scores of a small network of both sides (DIN)
    attend.py            the attention function, and the choice of its path
    bias.py              biases by distance in positions and in time
    block_mask.py        the blocks of pairs that FlexAttention visits
    blocks.py            which events attend to which: whole histories, windows
    candidates.py        candidates as queries, and the events that each sees
    compiled.py          the attention of the compiled kernel: its choice and its inputs
    config.py            settings of the parts: normalisation, bias, mask, heads, gate ...
    continued.py         attention of new events to earlier ones with kept keys and values
    gpu.py               flash attention over packed histories, FlexAttention with biases
    layer.py             the attention sub-layer: projections, heads, gate
    maps.py              the weights of each layer, computed again
    normalise.py         softmax, SiLU, sparsemax, entmax
    pruned.py            attention without some of its heads
    reference.py         the definition of each part, in plain code
    rotary.py            rotary positions
    search.py            selects a few events for each candidate, by category or similarity
    target.py            target attention: a candidate attends to its history
    terms.py             inputs of the paths besides queries, keys and values
    tiled.py             attention of any form, a cache-sized tile of scores at a time
    traceable.py         layouts from which torch.export can trace a program
    triton_attention.py  attention by Triton kernels on GPUs: forms, ranges of keys, gradients
    triton_kernels.py    the kernels: softmax, SiLU and linear weights with biases, forward and backward
"""
