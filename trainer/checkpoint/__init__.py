"""Checkpoints: save, verify, load and reshard.

Files:
    finite.py   detection of non-finite weights before they are saved
    folder.py   names, commits, verification, retention
    keys.py     names of tensors in a checkpoint
    reader.py   safe reading of torch's metadata
    reshard.py  rewriting of a checkpoint for another plan, in little memory
    tensors.py  saving and loading of tensors, hashed while written
"""
