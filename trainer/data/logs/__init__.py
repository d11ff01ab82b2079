"""Event logs: finding their files, checking rows against a contract, and keeping rejected rows in quarantine.

Files:
    column_names.py  checks that each column is in a file exactly once
    column_types.py  types of columns in files, and the types that reading stores
    columns.py       columns to read, with the role of each
    config.py        settings of logs: files, columns, features, labels
    contract.py      the agreed type of each column over all files
    files.py         paths, globs and URIs to a list of files
    format_names.py  names and endings of the file formats
    formats.py       readers of the file formats behind one protocol
    headers.py       column names and row counts of files
    observations.py  counts of suspicious ids and times
    quarantine.py    rejected rows, kept with file, row and reason
    quotes.py        unclosed quotes, and rows over several lines
    reading.py       rows read block by block, accepted or quarantined
    text_files.py    CSV and TSV files as streams of text columns: encoding, delimiter, quotes
    text_scan.py     first pass over a text file: the types that its values fit
    text_values.py   text as values of the agreed type
    time_formats.py  strptime formats, checked without pyarrow
    times.py         text as timestamps in UTC
    values.py        values of every type as the dataset stores them
"""
