"""Checkpoints: their folder, their tensors and what these are called, and one written anew for another plan."""
