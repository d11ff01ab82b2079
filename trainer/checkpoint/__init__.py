"""Checkpoints: their folder, their tensors and what these are called, and one written anew for another plan.

Files:
    finite.py   weights that are no longer finite, found before they are saved
    folder.py   names, commits, verification, retention
    keys.py     what tensors are called in a checkpoint, however they are held
    reader.py   torch's metadata, read without running what it holds
    reshard.py  a checkpoint written anew for another plan, in little memory
    tensors.py  tensors saved and loaded, hashed while written
"""
