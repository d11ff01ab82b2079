"""Public data sets, converted from their publishers' downloads to event logs. Nothing is downloaded here.

Files:
    amazon.py     Amazon reviews
    columns.py    text columns as lists, codes and years
    kuairand.py   KuaiRand, and a processed form of it
    movielens.py  MovieLens
    output.py     the output folder, and conversion.json
    sets.py       the sets by name, and the conversion of one
    source.py     downloaded files: finding, reading, and error messages
    tables.py     tables that a converter passes to the writer
    taobao.py     Taobao user behaviour
    yambda.py     Yambda
"""
