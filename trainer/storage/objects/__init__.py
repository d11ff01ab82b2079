"""Object storages: S3, GCS, Azure and HDFS through the filesystems of pyarrow.

Files:
    credentials.py  detection of credentials in URIs
    lease.py        exclusive use of a folder, in place of a lock
    paths.py        paths that behave as local ones, and functions for paths of either kind
    spool.py        files that grow, uploaded from a local copy
    streams.py      readers and writers of objects, and their errors
"""
