"""Exports of trained models: folders that score raw histories without Ray, TorchRec and the dataset.

Files:
    build.py        the program of a trained model, before it is traced
    describe.py     the manifest, as far as it follows from the model
    folder.py       the format: files and manifest
    index.py        FAISS index of item vectors
    inputs.py       inputs of a program from packed histories
    measure.py      runs an export and its model on the same users
    onnx.py         the program as an ONNX file
    parity.py       differences from the trained model, measured
    programs.py     modules from ids to user vectors or logits
    run_program.py  runs a program in batches
    search.py       exact search of the best items
    source.py       config, manifest and vocabularies of an export
    tables.py       tables in float32 and in 8-bit rows
    trace.py        tracing by torch.export
    write.py        writes an export
"""
