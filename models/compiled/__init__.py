"""Kernels in C++ that are compiled on the machine that trains. They are optional: everything has a path in torch.

Importing this package imports no torch.

Files:
    activations.h         activations with their slopes, and dropout
    addresses.py          addresses of tensors, as arguments of the libraries
    attention.cpp         forms of the attention: softmax, SiLU, sparsemax and entmax, and their biases
    attention.h           causal attention of packed histories, forward and backward
    attention.py          its autograd function
    build.py              compilation of the sources, once per machine and version
    feed_forward.cpp      a whole feed-forward sub-layer, forward and backward
    feed_forward.py       its autograd function
    kernels.py            all kernels of a model
    layers.cpp            residual sums with dropout and gate, activations with dropout, and norms, forward and backward
    layers.py             their autograd functions
    norm_rows.h           layer norms and RMS norms of rows
    numbers.h             numbers in memory: float and bfloat16
    projections.cpp       the products around an attention with norm and residual sum, forward and backward
    projections.py        their autograd functions
    row_products.h        products of some rows with small weights, and their norms
    softmax.h             softmax over candidates that all targets share, with both gradients
    softmax.py            its terms as tensors
    softmax_bfloat16.cpp  its products in bfloat16, by AMX
    softmax_float32.cpp   its products in float32
    tiles.h               products of small matrices, exponentials, memory
"""
