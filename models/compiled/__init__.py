"""Kernels in C++ that are compiled on the machine that trains. They are optional: everything has a path in torch.

build.py              compiles the sources, once per machine and version
kernels.py            all kernels of a model
softmax.py            the softmax over a catalogue or negatives that all targets share
softmax.h             its algorithm
softmax_float32.cpp   its products in float32
softmax_bfloat16.cpp  its products in bfloat16, by AMX
attention.py          causal softmax attention of packed histories
attention.cpp         its forward and backward pass
tiles.h               products of small matrices, for both
"""
