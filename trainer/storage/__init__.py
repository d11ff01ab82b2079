"""Storage: file hashes, atomic writes, object storages, and safe reading of pickles. Of the rest of Shoal it knows only errors.

Packages:
    objects  object storages: paths, leases, files that grow, credentials

Files:
    files.py              hashes, atomic writes of small files, explanations of disk errors
    mapped.py             Arrow tables and arrays in temporary files, mapped into memory
    parquet.py            Parquet and Arrow files on local disks and object storages
    restricted_pickle.py  unpickling that admits only named classes
    retries.py            repetition after errors of the storage that may pass
"""
