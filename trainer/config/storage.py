"""The section `[storage]`."""

from pydantic import BaseModel, Field

from trainer.storage.retries import Retries


class StorageConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Repetition of writes of checkpoints and reads of the dataset after errors of the storage that may pass by themselves."""

    retries: int = Field(
        4,
        ge=0,
        le=20,
        description="attempts after an input/output error, a time-out or a lost connection, of a file of a checkpoint or of the "
        "dataset in training. Then the error counts as a full disk does (checkpoint.on_error). A full disk or denied permission "
        "is not tried again; 0: no further attempt",
    )
    retry_wait_seconds: float = Field(
        0.5, ge=0.0, le=3600.0, description="wait before the second attempt. It doubles before each further one"
    )

    @property
    def policy(self) -> Retries:
        """Return the bound on attempts."""
        return Retries(self.retries, self.retry_wait_seconds)
