"""Recommendations over HTTP from an export of `shoal export`.

    pip install 'shoal[serve]'
    EXPORT=exports/mine uvicorn examples.serve:app
    curl localhost:8000/recommend --json '{"users": {"42": [{"item_id": 1, "time": 1700000000}]}, "k": 5}'

An event has the columns of the logs besides the user: the item, the time, and the features that the model uses.
"""

import os
from functools import cache
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

import shoal

app = FastAPI(title="Shoal")


class Request(BaseModel):
    users: dict[str, list[dict[str, Any]]] = Field(description="events of each user, oldest first")
    k: int = Field(10, ge=1, le=1000, description="items per user")
    filter_viewed: bool = Field(True, description="leave out items of the history")


class Item(BaseModel):
    item_id: Any
    score: float | None = Field(description="null for a user without events, who gets the most popular items")


@cache
def model() -> shoal.ExportedRecommender:
    """Load the export once, at the first request."""
    loaded = shoal.load_export(os.environ["EXPORT"])
    assert isinstance(loaded, shoal.ExportedRecommender)
    return loaded


@app.post("/recommend")
def recommend(request: Request) -> dict[str, list[Item]]:
    """Return the best items of each user, best first."""
    try:
        best = model().recommend_to(request.users, request.k, filter_viewed=request.filter_viewed)
    except (shoal.UserError, pa.ArrowInvalid) as error:
        raise HTTPException(422, str(error)) from None
    return {user: [Item(**item) for item in items] for user, items in best.items()}
