"""Public data sets, as their publishers offer them for download, turned into event logs. Nothing is downloaded here.

Files:
    amazon.py     Amazon reviews
    sets.py       the sets by name, and the conversion of one
    columns.py    lists, codes and years out of text
    kuairand.py   KuaiRand, and a processed form of it
    movielens.py  MovieLens
    output.py     the folder that is written, and conversion.json
    source.py     downloaded files found and read, with what is wrong with them
    tables.py     what a converter hands to the writer
    taobao.py     Taobao user behaviour
    yambda.py     Yambda
"""
