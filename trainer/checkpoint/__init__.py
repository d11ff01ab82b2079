"""Checkpoints: save, verify, load and reshard.

Files:
    background.py  checkpoints that are written while training continues
    finite.py      detection of non-finite weights before they are saved
    folder.py      names, commits, verification, retention
    keys.py        names of tensors in a checkpoint
    reader.py      safe reading of torch's metadata, and reading of tensors
    replicas.py    comparison of the copies that ranks hold
    reshard.py     rewriting of a checkpoint for another plan, in little memory
    staging.py     copies of tensors in host memory
    tensors.py     saving and loading of tensors
    writing.py     a rank's files: hashed and flushed while written, with retries
"""
