"""per_impression.parquet and per_user.parquet of a ranking model, written and read in blocks. No torch."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.evaluation.merged_parts import ROW_ID
from trainer.evaluation.part_writer import part_writer
from trainer.evaluation.ranking.intervals import shares_by_users
from trainer.evaluation.ranking.judged import Judged, probabilities
from trainer.evaluation.ranking.metrics import UserTerms
from trainer.evaluation.ranking.names import BASELINES, name_of
from trainer.evaluation.ranking.results import RankingResults, values_of
from trainer.evaluation.ranking.scored import Impressions
from trainer.evaluation.ranking.slices import USER_IMPRESSIONS
from trainer.evaluation.spooled import Spool, blocks, filled, unique_keys
from trainer.storage.files import write_json_atomically
from trainer.storage.objects.paths import remove_tree
from trainer.storage.parquet import open_parquet

_KEPT = ("time", "history_length", "item_impressions", USER_IMPRESSIONS, "weight")  # columns of per_impression.parquet


def write(folder: Path, results: RankingResults, impressions: Impressions, items: pa.Array) -> None:
    """Write metrics.json, per_impression.parquet and per_user.parquet, and remove the workers' parts.

    Args:
        folder: where to write.
        results: the content of metrics.json.
        impressions: the impressions of merge_parts.
        items: the value in the logs of each id from 1 on.
    """
    with part_writer(folder / "per_impression.parquet", write_page_checksum=True) as writer:
        for table in impressions.rows.blocks(_columns_of_file(impressions)):
            writer.add(_file_rows(table, impressions.labels, items))
    with part_writer(folder / "per_user.parquet", write_page_checksum=True) as writer:
        for table in _user_tables(impressions):
            writer.add(table)
    write_json_atomically(folder / "metrics.json", asdict(results))
    remove_tree(folder / "parts", ignore_errors=True)


def impression_table(impressions: Impressions, items: pa.Array) -> pa.Table:
    """Return the rows of per_impression.parquet as one table, for few impressions.

    Columns: user, item, time, history_length, item_impressions, user_impressions, weight; by label `label` (null where it is not
    defined), `probability`, and the probability of each baseline.
    """
    blocks = impressions.rows.blocks(_columns_of_file(impressions))
    return pa.concat_tables(_file_rows(table, impressions.labels, items) for table in blocks)


def _columns_of_file(impressions: Impressions) -> list[str]:
    """Return the columns that per_impression.parquet is made of."""
    names = {"user", "item", *_KEPT}
    return [name for name in impressions.column_names if name in names or name.startswith(("label.", "logit."))]


def _file_rows(rows: pa.Table, labels: tuple[str, ...], items: pa.Array) -> pa.Table:
    """Return the rows of per_impression.parquet of some merged rows."""
    ids = rows.column("item").to_numpy()
    columns: dict[str, Any] = {
        "user": rows.column("user"),
        "item": items.take(pa.array(ids - 1, mask=ids == 0)),
        **{name: rows.column(name) for name in _KEPT if name in rows.column_names},
    }
    for label in labels:
        clicks = rows.column(f"label.{label}").to_numpy()
        columns[name_of("label", label, labels)] = pa.array(clicks, mask=np.isnan(clicks))
        # float64, because in float32 different large probabilities would become equal.
        columns[name_of("probability", label, labels)] = _probability(rows, f"logit.{label}")
        for baseline in BASELINES:
            columns[name_of(baseline, label, labels)] = _probability(rows, f"logit.{baseline}.{label}")
    return pa.table(columns)


def _probability(rows: pa.Table, column: str) -> np.ndarray:
    return probabilities(rows.column(column).to_numpy().astype(np.float64))


def _user_tables(impressions: Impressions) -> Iterator[pa.Table]:
    """Yield blocks of the rows of per_user.parquet, a row per user.

    Columns: user, impressions; by label `positives`, `user_auc` (null without both classes) and `user_logloss` of the user alone;
    by the name of each metric the user's share in it (shares_of_users).
    """
    users = unique_keys(impressions.column(ROW_ID))
    by_label = {}
    for label in impressions.labels:
        judged = impressions.judged(label)
        by_label[label] = (*_of_users_alone(judged, users), shares_by_users(judged, values_of(judged), users))
    stop = 0
    for rows in impressions.rows.blocks([ROW_ID, "user"]):
        _, first = np.unique(rows.column(ROW_ID).to_numpy(), return_index=True)
        start, stop = stop, stop + first.size
        some = slice(start, stop)
        columns: dict[str, Any] = {
            "user": rows.column("user").take(pa.array(first)),
            "impressions": np.diff(np.append(first, rows.num_rows)),
        }
        for label, (positives, alone, shares) in by_label.items():
            columns[name_of("positives", label, impressions.labels)] = positives[some]
            values = {name: of[some] for name, of in alone.items()} | {name: of(some) for name, of in shares.items()}
            for name, column in values.items():
                columns[name_of(name, label, impressions.labels)] = pa.array(column, mask=np.isnan(column))
        yield pa.table(columns)


def _of_users_alone(judged: Judged, users: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the number of positives of each user, and the auc and the log loss of the user alone."""
    by_user = judged.by_user
    auc = filled(users.size, np.float64, lambda some: np.full(users[some].size, np.nan))
    for some in blocks(by_user.user.size):
        auc[np.searchsorted(users, by_user.user[some])] = by_user.auc[some]
    terms = UserTerms(judged, users)
    weights, losses = terms.weights, terms.losses

    def logloss(some: slice) -> np.ndarray:
        weight = weights[some]
        of_users: np.ndarray = np.divide(losses[some], weight, out=np.full(weight.size, np.nan), where=weight > 0)
        return of_users

    unweighted = Judged(judged.user, judged.scores, judged.positive, np.broadcast_to(1.0, judged.scores.shape))
    positives = UserTerms(unweighted, users).positives
    return (
        filled(users.size, np.int64, lambda some: positives[some].astype(np.int64)),
        {"user_auc": auc, "user_logloss": filled(users.size, np.float64, logloss)},
    )


def read_scored(folder: Path, label: str, labels: tuple[str, ...], source: str = "probability") -> Judged:
    """Return the impressions of a per_impression.parquet on which a label is defined, with probabilities instead of logits.

    Args:
        folder: the folder of the evaluation.
        label: the label.
        labels: all labels of the model.
        source: the column of the probabilities.
    """
    columns = {name: name_of(name, label, labels) for name in ("label", source)}
    weights, scores, positives = Spool(np.float64), Spool(np.float64), Spool(np.bool_)
    with open_parquet(folder / "per_impression.parquet") as file:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number, columns=["weight", *columns.values()])
            table = table.filter(pc.is_valid(table.column(columns["label"])))
            weights.append(table.column("weight").to_numpy())
            scores.append(table.column(columns[source]).to_numpy())
            positives.append(table.column(columns["label"]).to_numpy() > 0)
    users = np.broadcast_to(np.int64(0), (weights.size,))
    return Judged(users, scores.array(), positives.array(), weights.array())
