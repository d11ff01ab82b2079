"""Settings of attention: each field is an exchangeable part. Imports no torch.

docs/attention.md has the formula of each part, models/attention/reference.py its definition in code.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

NUM_POSITION_BUCKETS = 64
NUM_TIME_BUCKETS = 128

Normalisation = Literal["softmax", "silu", "sparsemax", "entmax15", "none"]
UnitActivation = Literal["relu", "prelu", "dice"]
POINTWISE = ("silu", "none")  # functions of one score each: the sum of the weights is not fixed


class AttentionConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """How events of a history attend to each other. Defaults are those of `model.encoder.kind`; those shown are of "sasrec"."""

    num_heads: int = Field(1, ge=1, le=64, description="heads; must divide the width of the item table")
    num_key_value_heads: int | None = Field(
        None,
        ge=1,
        le=64,
        description="heads of keys and values, each shared by equally many heads of queries; must divide num_heads; none is one "
        "for each",
    )
    normalisation: Normalisation = Field(
        "softmax",
        description="how scores become weights: over all visible events (softmax, and sparsemax and entmax15, which give exact "
        "zeros), or each on its own (silu; none: weights are the scores)",
    )
    differential: bool = Field(
        False,
        description="subtract a second map of weights from the first, which cancels what both attend to; only where weights sum "
        "to one",
    )
    temperature: Literal["fixed", "learned"] = Field(
        "fixed",
        description="what scores are divided by: the root of the head width, or a learned factor of it for each head",
    )
    mask: Literal["causal", "bidirectional"] = Field(
        "causal",
        description="whether an event sees earlier events only, or later ones too (then items are masked in training)",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="an event sees those less than this many places away; cost is linear in it; none sees all",
    )
    num_global: int = Field(
        0, ge=0, le=1024, description="of the oldest events, how many are seen from beyond the window too"
    )
    bias: Literal["none", "position", "time", "both"] = Field(
        "none",
        description="what is added to scores by the distance of two events: of their places, their times, or both",
    )
    bias_as: Literal["score", "channel"] = Field(
        "score",
        description="add biases to the scores, or let each be weights of its own beside those of the scores (FuXi-alpha)",
    )
    position_bias: Literal["exact", "bucketed", "functional"] = Field(
        "exact",
        description="a learned number for every distance of places; for buckets of it, of growing width; or a learned slope",
    )
    time_bias: Literal["bucketed", "functional"] = Field(
        "bucketed", description="a learned number for every bucket of log time; or a learned factor of log time"
    )
    projection_activation: Literal["none", "silu"] = Field(
        "none", description="what queries, keys, values and gates go through (HSTU: silu)"
    )
    output_norm: Literal["none", "layer_norm", "rms_norm"] = Field(
        "none", description="norm of what was attended to, all heads together, before gate and output projection"
    )
    gate: bool = Field(
        False,
        description="multiply what was attended to, element by element, by a projection of the event itself (HSTU)",
    )
    output_bias: bool = Field(True, description="whether the output projection has a bias")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="probability of dropping an attention weight")
    penalty: float = Field(
        0.0,
        description="added to the loss of each target: this times the entropy of its weights (silu, none: their absolute sum), "
        "averaged over heads and blocks; positive makes attention sparser, negative spreads it",
    )

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "AttentionConfig":
        shared = self.num_key_value_heads
        if shared is not None and self.num_heads % shared:
            raise ValueError(f"num_key_value_heads = {shared} must divide num_heads = {self.num_heads}")
        if self.differential and self.normalisation in POINTWISE:
            raise ValueError(
                f'differential = true needs weights that sum to one; those of normalisation = "{self.normalisation}" do not'
            )
        if self.num_global and self.window is None:
            raise ValueError("num_global needs a window: without one every event is seen anyway")
        if self.bias_as == "channel" and self.bias == "none":
            raise ValueError('bias_as = "channel" needs a bias: position, time or both')
        if self.bias_as == "channel" and self.differential:
            raise ValueError('differential = true and bias_as = "channel" cannot be combined; choose bias_as = "score"')
        return self

    @property
    def uses_position(self) -> bool:
        """Return whether a bias uses positions."""
        return self.bias in ("position", "both")

    @property
    def uses_time(self) -> bool:
        """Return whether a bias uses times."""
        return self.bias in ("time", "both")

    @property
    def key_value_heads(self) -> int:
        """Return the number of heads of keys and values."""
        return self.num_key_value_heads or self.num_heads

    @property
    def num_channels(self) -> int:
        """Return the number of maps of weights with concatenated results.

        It is one, and with bias_as = "channel" one more for each bias.
        """
        return 1 + (self.uses_position + self.uses_time if self.bias_as == "channel" else 0)


class TargetAttentionConfig(AttentionConfig):
    """How a candidate attends to the events before it: the same parts, and what is scored and averaged.

    Places and times are those of the candidate and of each event.
    """

    score: Literal["dot_product", "activation_unit"] = Field(
        "dot_product",
        description="how candidate and event are compared: a scaled dot product, or a small network of both (DIN's activation "
        "unit)",
    )
    projection: bool = Field(
        True,
        description="project candidates and events before they are compared, and what was attended to afterwards; else they are "
        "taken as they are (DIN)",
    )
    unit_hidden: list[int] = Field(
        [36], min_length=1, max_length=4, description="widths of the hidden layers of the activation unit"
    )
    unit_activation: UnitActivation = Field(
        "dice", description="activation of these: relu, prelu, or dice, which adapts to what earlier batches were like"
    )

    @model_validator(mode="after")
    def _parts_fit_candidates(self) -> "TargetAttentionConfig":
        if self.mask != "causal":
            raise ValueError(f'mask = "{self.mask}": a candidate sees earlier events only; leave it at "causal"')
        if self.differential:
            raise ValueError("differential = true is not supported for candidates; use it in the encoder's attention")
        if any(width < 1 for width in self.unit_hidden):
            raise ValueError(f"unit_hidden = {self.unit_hidden}: a hidden layer has a width of at least 1")
        unit = self.score == "activation_unit"
        if unit and (self.temperature == "learned" or self.key_value_heads != self.num_heads):
            raise ValueError(
                'score = "activation_unit" has its own scale and needs keys for each head: leave temperature and '
                "num_key_value_heads as they are"
            )
        if not self.projection and (self.gate or self.projection_activation != "none"):
            raise ValueError("gate and projection_activation apply to projections: they need projection = true")
        if not self.projection and self.key_value_heads != self.num_heads:
            raise ValueError("num_key_value_heads needs projection = true: without it every head has its own keys")
        return self


def preset(defaults: dict[str, Any], given: Any) -> Any:
    """Merge the `given` settings into `defaults`, recursively."""
    if not isinstance(given, dict):
        return given
    merged = dict(defaults)
    for name, value in given.items():
        inner = defaults.get(name)
        merged[name] = preset(inner, value) if isinstance(inner, dict) else value
    return merged
