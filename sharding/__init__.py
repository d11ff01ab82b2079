"""Ranks and placement: process groups, planning, sharding, initialisation, the combined optimizer.

Works on any module with TorchRec tables; knows nothing of histories, files or Ray. Importing this package imports no torch.
"""
