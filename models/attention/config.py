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
    """Attention between the events of a history. `model.encoder.kind` sets the defaults; those shown are of "sasrec"."""

    num_heads: int = Field(1, ge=1, le=64, description="number of heads. It must divide the width of the item table")
    num_key_value_heads: int | None = Field(
        None,
        ge=1,
        le=64,
        description="number of heads of keys and values, each shared by the same number of query heads. It must divide "
        "num_heads; default: num_heads",
    )
    normalisation: Normalisation = Field(
        "softmax",
        description="how scores become weights. softmax, sparsemax and entmax15 normalise over all visible events (the last "
        "two give exact zeros). silu applies to each score on its own. none uses the scores as weights",
    )
    differential: bool = Field(
        False,
        description="subtract a second attention map from the first, which cancels noise common to both. It needs weights that "
        "sum to one",
    )
    temperature: Literal["fixed", "learned"] = Field(
        "fixed",
        description="divisor of scores: the square root of the head width, or a learned multiple of it per head",
    )
    temperature_factor: float = Field(
        1.0,
        gt=0.0,
        description="factor of this divisor, the initial one if it is learned. Below 1 weights begin sharper, above 1 flatter",
    )
    mask: Literal["causal", "bidirectional"] = Field(
        "causal",
        description="causal: an event sees earlier events only; bidirectional: later ones too, and training masks items",
    )
    window: int | None = Field(
        None,
        ge=1,
        description="an event sees only events less than this number of positions away. The cost is linear in it; default: all "
        "events",
    )
    num_global: int = Field(
        0, ge=0, le=1024, description="number of oldest events that every event sees, even outside its window"
    )
    bias: Literal["none", "position", "time", "both"] = Field(
        "none",
        description="bias added to scores, by the distance of two events: of their positions, of their times, or both",
    )
    bias_as: Literal["score", "channel"] = Field(
        "score",
        description="score: add biases to scores; channel: each bias forms an attention map of its own, next to that of the "
        "scores (FuXi-alpha)",
    )
    position_bias: Literal["exact", "bucketed", "functional"] = Field(
        "exact",
        description="exact: a learned number per distance of positions; bucketed: per bucket of distances, of growing width; "
        "functional: a learned slope",
    )
    time_bias: Literal["bucketed", "functional"] = Field(
        "bucketed",
        description="bucketed: a learned number per bucket of log time; functional: a learned multiple of log time",
    )
    projection_activation: Literal["none", "silu"] = Field(
        "none", description="activation of queries, keys, values and gates (HSTU: silu)"
    )
    output_norm: Literal["none", "layer_norm", "rms_norm"] = Field(
        "none", description="norm of the attention output over all heads, before gate and output projection"
    )
    gate: bool = Field(
        False,
        description="multiply the attention output elementwise by a projection of the event (HSTU)",
    )
    output_bias: bool = Field(True, description="add a bias to the output projection")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout probability of attention weights")
    penalty: float = Field(
        0.0,
        description="factor of a term in the loss of each target: the entropy of its attention weights (for silu and none: "
        "their absolute sum), averaged over heads and blocks. Positive makes attention sparser, negative spreads it",
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
    """Attention of a candidate to the events before it: the settings of attention, and the comparison of candidate and event.

    Positions and times are those of the candidate and of each event.
    """

    score: Literal["dot_product", "activation_unit"] = Field(
        "dot_product",
        description="comparison of candidate and event: a scaled dot product, or a small network of both (DIN's activation "
        "unit)",
    )
    projection: bool = Field(
        True,
        description="project candidates and events before they are compared, and the attention output afterwards. false uses "
        "their vectors unchanged (DIN)",
    )
    unit_hidden: list[int] = Field(
        [36], min_length=1, max_length=4, description="widths of the hidden layers of the activation unit"
    )
    unit_activation: UnitActivation = Field(
        "dice",
        description="activation of these layers: relu, prelu, or dice, which adapts to the statistics of earlier batches",
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
        has_scale = self.temperature == "learned" or self.temperature_factor != 1.0
        if unit and (has_scale or self.key_value_heads != self.num_heads):
            raise ValueError(
                'score = "activation_unit" has its own scale and needs keys for each head: leave temperature, '
                "temperature_factor and num_key_value_heads as they are"
            )
        if not self.projection and (self.gate or self.projection_activation != "none"):
            raise ValueError("gate and projection_activation apply to projections: they need projection = true")
        if not self.projection and self.key_value_heads != self.num_heads:
            raise ValueError("num_key_value_heads needs projection = true: without it every head has its own keys")
        return self


def with_heads(config: AttentionConfig, num_heads: int) -> AttentionConfig:
    """Return the settings with fewer heads, and with fewer heads of keys and values in the same proportion."""
    if num_heads == config.num_heads:
        return config
    shared = config.num_heads // config.key_value_heads
    return config.model_copy(update={"num_heads": num_heads, "num_key_value_heads": num_heads // shared})


def preset(defaults: dict[str, Any], given: Any) -> Any:
    """Merge the `given` settings into `defaults`, recursively."""
    if not isinstance(given, dict):
        return given
    merged = dict(defaults)
    for name, value in given.items():
        inner = defaults.get(name)
        merged[name] = preset(inner, value) if isinstance(inner, dict) else value
    return merged
