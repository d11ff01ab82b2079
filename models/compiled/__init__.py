"""Kernels in C++ that are compiled on the machine that trains. They are optional: everything has a path in torch.

build.py      compiles the sources, once per machine and version
softmax.py    the softmax over a catalogue or negatives that all targets share
sources/      softmax.h is the algorithm; softmax_float32.cpp and softmax_bfloat16.cpp are its two precisions
"""
