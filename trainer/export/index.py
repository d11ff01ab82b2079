"""A FAISS index of item vectors for approximate search: a graph of neighbours by dot product (HNSW, arXiv:1603.09320).

FAISS is an optional package. Without it items are searched exactly.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import UserError
from trainer.export.search import BLOCK_ITEMS, Vectors

NEIGHBOURS = 32  # of each item in the graph
BUILD_CANDIDATES = 200  # that are compared when an item is inserted
SEARCH_CANDIDATES = 256  # that are compared in a search, at least
INSTALL = "pip install 'shoal[serve]'"


def is_installed() -> bool:
    """Return whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def build_index(vectors: Vectors, path: Path) -> dict[str, Any]:
    """Build the index of all item vectors, write it, and return its settings for the manifest."""
    import faiss

    width = vectors.rows(slice(0, 1)).shape[1]
    index = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = BUILD_CANDIDATES
    for start in range(0, vectors.num_items, BLOCK_ITEMS):
        index.add(vectors.rows(slice(start, start + BLOCK_ITEMS)).numpy())
    index.hnsw.efSearch = SEARCH_CANDIDATES
    faiss.write_index(index, str(path))
    return {
        "kind": "hnsw",
        "metric": "inner product",
        "neighbours": NEIGHBOURS,
        "build_candidates": BUILD_CANDIDATES,
        "search_candidates": SEARCH_CANDIDATES,
        "faiss": faiss.__version__,
    }


def read_index(path: Path) -> Any:
    """Read an index. Raises UserError if FAISS is not installed."""
    if not is_installed():
        raise UserError(f"{path}: needs the package faiss-cpu, which is not installed; {INSTALL}, or search exactly")
    import faiss

    return faiss.read_index(str(path))


def search(index: Any, users: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return about the best items of each user: ids (B, k), 0 where the index finds fewer, and scores (B, k)."""
    import faiss

    parameters = faiss.SearchParametersHNSW(efSearch=max(SEARCH_CANDIDATES, 2 * k))
    scores, places = index.search(np.ascontiguousarray(users, np.float32), k, params=parameters)
    return places + 1, scores  # the index has no item at place -1
