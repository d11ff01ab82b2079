"""An exported ranker in this process."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal.exported.exported_model import ExportedModel
from shoal.loaded.given import as_table
from trainer.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class ExportedRanker(ExportedModel):
    """An exported ranker. The method and the columns of its result are those of `shoal.ImpressionRanker`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model predicts, in the order of the columns."""
        return self.manifest.labels

    def score(
        self,
        histories: Any,
        impressions: "pa.Table | pd.DataFrame",
        *,
        user_features: "pa.Table | pd.DataFrame | None" = None,
    ) -> pa.Table:
        """Return the probability of each label: columns user_id, item_id, time and one per label, in the order of the impressions.

        An impression is scored from the events of its user strictly before its time.

        Args:
            histories: a table (Arrow or pandas) of events with the columns of the logs.
            impressions: a table with the columns of the logs for users, items and times, and the features of impressions that the
                model uses.
            user_features: a table with the columns of the files of users, if the model uses features of users.
        """
        from trainer.export.run_program import logits

        table = as_table(impressions, "impressions")
        if self._logs.user not in table.column_names:
            raise UserError(
                f'impressions: no column "{self._logs.user}" (logs.user); there are {", ".join(table.column_names)}'
            )
        shown_to = pc.unique(table.column(self._logs.user)).cast(self._encoder.type_of("user"))
        given = self._encode(histories, user_features, None, shown_to)
        packed, order = self._encoder.with_impressions(given, table)
        values = logits(self._run, self._names, self._form, packed, len(self.labels)).sigmoid().numpy()
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        columns = {
            "user_id": table.column(self._logs.user),
            "item_id": table.column(self._logs.item),
            "time": table.column(self._logs.time),
        }
        return pa.table(columns | {name: pa.array(values[back, place]) for place, name in enumerate(self.labels)})
