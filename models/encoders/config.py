"""Settings of the encoders of histories. Imports no torch.

An encoder is a composition of parts. `kind` names a published composition, which sets the defaults of the other settings. A
setting that is given replaces its part, so a new encoder needs no code.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from models.attention.config import AttentionConfig, preset

EncoderKind = Literal["sasrec", "bert4rec", "hstu", "ligr", "fuxi_alpha", "two_tower"]

# The settings of each published encoder that differ from the fields' own defaults, which are those of SASRec.
PRESETS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "bert4rec": {
        "norm_place": "post",
        "feed_forward_multiple": 4,
        "final_norm": False,
        "attention": {"num_heads": 2, "mask": "bidirectional", "dropout": 0.1},
    },
    "hstu": {
        "feed_forward": "none",
        "final_norm": False,
        "attention": {
            "normalisation": "silu",
            "bias": "both",
            "projection_activation": "silu",
            "output_norm": "layer_norm",
            "gate": True,
        },
    },
    "ligr": {
        "residual_gate": True,
        "feed_forward": "swiglu",
        "feed_forward_multiple": 4,
        "attention": {"num_heads": 4},
    },
    "fuxi_alpha": {
        "norm": "rms_norm",
        "feed_forward": "swiglu",
        "final_norm": False,
        "attention": {
            "normalisation": "silu",
            "bias": "both",
            "bias_as": "channel",
            "projection_activation": "silu",
            "output_norm": "rms_norm",
            "gate": True,
        },
    },
    # Towers have no norm, so small initial weights would shrink their input to almost nothing.
    "two_tower": {"pooling": "attention", "user_tower": [2], "item_tower": [2], "initial_std": None},
}


class EncoderConfig(BaseModel, extra="forbid", frozen=True, strict=True):
    """Turns a history into vectors. Defaults are those of its `kind` (docs/attention.md); those shown are of "sasrec"."""

    kind: EncoderKind = Field(
        "sasrec",
        description="the published encoder that the other settings start from: SASRec, BERT4Rec, HSTU, LiGR (eSASRec), FuXi-alpha, "
        "or two towers with an attention-pooled user",
    )
    num_blocks: int = Field(2, ge=0, le=64, description="attention blocks on top of each other")
    positions: Literal["learned", "rotary", "none"] = Field(
        "learned",
        description="how an event's place in the history enters: a learned vector added to it, queries and keys rotated by it, or "
        "by the bias of attention alone",
    )
    positions_from: Literal["oldest", "newest"] = Field(
        "oldest",
        description="of learned positions: the event from which places count, the oldest that is kept or the newest. SASRec's code "
        "pads histories on the left, which is newest; a place then also tells how many later events the history has",
    )
    scale_inputs: bool = Field(
        False,
        description="multiply the vectors of events by the square root of their width before places are added (Vaswani et al. "
        "2017, section 3.4)",
    )
    input_norm: bool = Field(
        False, description="norm of the vectors of events after places are added, before the first block (BERT4Rec)"
    )
    norm: Literal["layer_norm", "rms_norm"] = Field("layer_norm", description="norm of the blocks")
    norm_place: Literal["pre", "post"] = Field(
        "pre", description="norm before each sub-layer, beside which the input goes on unchanged, or after their sum"
    )
    final_norm: bool = Field(True, description="norm once more after the last block")
    residual_gate: bool = Field(
        False, description="multiply what each sub-layer adds by a sigmoid of a projection of its input (LiGR)"
    )
    feed_forward: Literal["none", "relu", "gelu", "swiglu"] = Field(
        "gelu", description="activation of the feed-forward sub-layer; none leaves the sub-layer out"
    )
    feed_forward_multiple: int = Field(
        1,
        ge=1,
        le=16,
        description="width of the hidden layer of the feed-forward part, in multiples of the model width",
    )
    feed_forward_dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="probability of dropping a hidden activation inside of the feed-forward sub-layer (SASRec), beside `dropout`",
    )
    pooling: Literal["last", "attention"] = Field(
        "last",
        description="what stands for the history up to an event: the event's own output, or an average of all outputs up to it, "
        "weighted by a learned query",
    )
    output_head: Literal["none", "gelu"] = Field(
        "none",
        description="of next-item models: gelu is a linear layer, GELU and a norm between the encoded history and its scores "
        "(BERT4Rec)",
    )
    user_tower: list[int] = Field(
        default_factory=list,
        description="hidden layers between history and user vector: the width of each, in multiples of the model width",
    )
    item_tower: list[int] = Field(
        default_factory=list,
        description="the same between an item's vector and what its score is computed from; empty: they are one",
    )
    dropout: float = Field(
        0.2, ge=0.0, lt=1.0, description="probability of dropping an activation; applied in steps of 1/256"
    )
    initial_std: float | None = Field(
        0.02,
        gt=0.0,
        description="standard deviation of the initial weights; none: that of each matrix keeps the length of its input and of its "
        "gradient (Glorot & Bengio 2010)",
    )
    recompute: bool = Field(
        False,
        description="keep only the inputs of blocks and compute the rest again in the backward pass: less memory, more time",
    )
    attention: AttentionConfig = Field(default_factory=AttentionConfig, description="how events attend to each other")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_kind(cls, values: Any) -> Any:
        kind = values.get("kind", "sasrec") if isinstance(values, dict) else None
        return preset(PRESETS.get(kind, {}), values) if isinstance(kind, str) else values

    @model_validator(mode="after")
    def _parts_are_there(self) -> "EncoderConfig":
        if self.positions_from == "newest" and self.positions != "learned":
            raise ValueError(
                f'positions_from = "newest" needs positions = "learned": with "{self.positions}" only distances between events '
                "count"
            )
        if self.feed_forward_dropout and self.feed_forward == "none":
            raise ValueError(
                'feed_forward_dropout needs a feed-forward sub-layer, and feed_forward = "none" leaves it out; choose relu, gelu '
                "or swiglu, or set feed_forward_dropout = 0"
            )
        return self

    @property
    def bidirectional(self) -> bool:
        """Return whether events attend to later ones. Such a model learns masked items."""
        return self.attention.mask == "bidirectional"

    @property
    def uses_time(self) -> bool:
        """Return whether the encoder uses the times of events."""
        return self.attention.uses_time
