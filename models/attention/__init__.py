"""Attention over jagged histories, in parts that can be exchanged. Importing this package imports no torch.

Files:
    activation_unit.py  scores by a small network of both sides, as DIN's
    attend.py           one function, and by which path it is computed
    bias.py             biases by distance of places and of times
    block_mask.py       the blocks of pairs that FlexAttention visits
    blocks.py           which events look at which: whole histories, windows
    candidates.py       candidates as queries: which events each looks at
    config.py           the parts by name: normalisation, bias, mask, heads, gate ...
    gpu.py              flash attention over packed histories, FlexAttention with biases
    layer.py            the sub-layer: projections, heads, gate, around all that
    normalise.py        softmax, SiLU, sparsemax, entmax
    reference.py        what each part is, by definition
    rotary.py           rotary positions
    search.py           a few events for each candidate, by category or similarity
    target.py           target attention: what a candidate sees in its history
    terms.py            what paths are given beside queries, keys and values
    tiled.py            any form, a cache-sized piece of scores at a time, kept or computed again
"""
