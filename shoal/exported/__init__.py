"""Exported models in this process.

Files:
    exported_model.py  base of the exported models of both tasks
    ranker.py          an exported ranker
    recommender.py     an exported next-item model
    write_and_load.py  the functions export and load_export
"""
