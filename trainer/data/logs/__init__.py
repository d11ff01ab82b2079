"""Event logs: which files they are, their rows held against their contract, what is wrong kept in quarantine.

Files:
    column_types.py  types that columns come in, and what reading makes of them
    columns.py       which columns are read, and what for
    config.py        settings of logs: files, columns, features, labels
    contract.py      the one type that each column has in all files
    files.py         paths, globs and URIs to a list of files
    headers.py       what files say of themselves before they are read
    observations.py  counts of ids and times that are worth a look
    quarantine.py    rejected rows, kept with file, row and reason
    quotes.py        quotes that stay open, and rows over several lines
    reading.py       rows read block by block, handed on or quarantined
    text_files.py    CSV and TSV files as streams of text columns: encoding, delimiter, quotes
    text_scan.py     the first reading of a text file: the types that its values fit
    text_values.py   text as values of the agreed type
    time_formats.py  strptime formats, checked without pyarrow
    times.py         text as timestamps in UTC
    values.py        values of every type as the dataset stores them
"""
