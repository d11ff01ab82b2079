"""Storage: files hashed and written atomically, output folders, and files that may come from others.

Files:
    credentials.py        credentials inside URIs, to be refused
    files.py              hashes, and small files written atomically
    output_folder.py      a folder that one command writes at a time
    restricted_pickle.py  unpickling that runs nothing but admitted classes
"""
