"""Storage: file hashes, atomic writes, and safe reading of pickles. It knows nothing of the rest of Shoal.

Files:
    files.py              hashes, atomic writes of small files, explanations of disk errors
    restricted_pickle.py  unpickling that admits only named classes
    retries.py            repetition after errors of the storage that may pass
"""
