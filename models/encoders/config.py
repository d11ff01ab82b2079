"""Settings of the encoders of histories. Imports no torch.

An encoder is a composition of parts. `kind` names a published composition, which sets the defaults of the other settings. A
setting that is given replaces its part, so a new encoder needs no code.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from models.attention.config import AttentionConfig, preset, with_heads

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
    """Turns a history into vectors. `kind` sets the defaults (docs/attention.md); those shown are of "sasrec"."""

    kind: EncoderKind = Field(
        "sasrec",
        description="published encoder that sets the defaults: SASRec, BERT4Rec, HSTU, LiGR (eSASRec), FuXi-alpha, or "
        "two towers with an attention-pooled user",
    )
    num_blocks: int = Field(2, ge=0, le=64, description="number of attention blocks")
    heads_by_block: list[int] | None = Field(
        None,
        description="number of heads of each of the num_blocks blocks, each as wide as the model divided by attention.num_heads. 0 "
        "leaves out the whole block. `shoal prune` sets it; default: attention.num_heads in each",
    )
    positions: Literal["learned", "rotary", "none"] = Field(
        "learned",
        description="learned: a learned vector per position is added to each event; rotary: queries and keys are rotated; "
        "none: positions enter only through the bias of attention",
    )
    positions_from: Literal["oldest", "newest"] = Field(
        "oldest",
        description="event from which learned positions count: the oldest kept, or the newest. SASRec's code pads histories on "
        "the left, which equals newest; a position then also tells the number of later events",
    )
    scale_inputs: bool = Field(
        False,
        description="multiply the vectors of events by the square root of their width before positions are added (Vaswani et "
        "al. 2017, section 3.4)",
    )
    input_norm: bool = Field(
        False,
        description="apply a norm to the vectors of events after positions are added, before the first block (BERT4Rec)",
    )
    norm: Literal["layer_norm", "rms_norm"] = Field("layer_norm", description="norm of the blocks")
    norm_place: Literal["pre", "post"] = Field(
        "pre", description="pre: norm before each sub-layer, with an unnormalised residual; post: norm after their sum"
    )
    candidate_norms: bool = Field(
        False,
        description='rankers with interest.kind = "encoder": candidates have norms of their own in each block, next to those of '
        "events (MTGR's group layer norm)",
    )
    final_norm: bool = Field(True, description="apply a norm after the last block")
    residual_gate: bool = Field(
        False, description="multiply the output of each sub-layer by a sigmoid of a projection of its input (LiGR)"
    )
    feed_forward: Literal["none", "relu", "gelu", "swiglu"] = Field(
        "gelu", description="activation of the feed-forward sub-layer; none removes the sub-layer"
    )
    feed_forward_multiple: int = Field(
        1,
        ge=1,
        le=16,
        description="width of the hidden layer of the feed-forward sub-layer, in multiples of the model width",
    )
    feed_forward_dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="dropout probability of hidden activations inside the feed-forward sub-layer (SASRec), in addition to "
        "`dropout`",
    )
    truncate_after: int | None = Field(
        None,
        ge=1,
        le=63,
        description="next-item models: number of blocks that encode the whole history. Deeper blocks receive only its truncate_to "
        "newest events, and only these are targets in training; default: no truncation",
    )
    truncate_to: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="number of newest events that the blocks after truncate_after receive; default: no truncation",
    )
    merge_size: int | None = Field(
        None,
        ge=2,
        le=256,
        description="next-item models: number of adjacent events that are merged into one token before the blocks (token merge, "
        "LONGER). Only events older than the merge_recent newest ones are merged; default: none",
    )
    merge_recent: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="number of newest events that are not merged. Only these are targets in training; default: no merge",
    )
    merge_form: Literal["projection", "transformer"] = Field(
        "projection",
        description="projection: a token is a projection of the vectors of its events, joined; transformer: events of a group "
        "first attend to each other in a block of their own (LONGER's inner transformer)",
    )
    pooling: Literal["last", "attention"] = Field(
        "last",
        description="vector of the history up to an event: the output of that event, or an average of all outputs up to it, "
        "weighted by a learned query",
    )
    output_head: Literal["none", "gelu"] = Field(
        "none",
        description="next-item models: gelu adds a linear layer, GELU and a norm between the encoded history and its scores "
        "(BERT4Rec)",
    )
    user_tower: list[int] = Field(
        default_factory=list,
        description="hidden layers between history and user vector: the width of each, in multiples of the model width",
    )
    item_tower: list[int] = Field(
        default_factory=list,
        description="hidden layers between an item's input vector and the vector for its scores, in the same form. [] uses one "
        "vector for both",
    )
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="dropout probability of activations, in steps of 1/256")
    initial_std: float | None = Field(
        0.02,
        gt=0.0,
        description="standard deviation of the initial weights. Unset (`--set model.encoder.initial_std=none`), each matrix "
        "preserves the scale of its input and of its gradient (Glorot & Bengio 2010)",
    )
    recompute: bool = Field(
        False,
        description="store only the inputs of blocks and recompute the rest in the backward pass: less memory, more time",
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

    @model_validator(mode="after")
    def _truncation_fits(self) -> "EncoderConfig":
        after = self.truncate_after
        if (after is None) != (self.truncate_to is None):
            missing = "truncate_to" if self.truncate_to is None else "truncate_after"
            raise ValueError(f"truncation needs truncate_after and truncate_to; {missing} is not set")
        if after is not None and after >= self.num_blocks:
            raise ValueError(
                f"truncate_after = {after} leaves no deeper block of num_blocks = {self.num_blocks}; choose a smaller number, or "
                "unset truncate_after and truncate_to"
            )
        if after is not None and self.bidirectional:
            raise ValueError(
                'truncate_after needs attention.mask = "causal": with "bidirectional" a masked event before the truncate_to '
                "newest would not be restored"
            )
        return self

    @model_validator(mode="after")
    def _merge_fits(self) -> "EncoderConfig":
        if (self.merge_size is None) != (self.merge_recent is None):
            missing = "merge_recent" if self.merge_recent is None else "merge_size"
            raise ValueError(f"token merge needs merge_size and merge_recent; {missing} is not set")
        if self.merge_size is None:
            if self.merge_form != "projection":
                raise ValueError(f'merge_form = "{self.merge_form}" needs merge_size and merge_recent')
            return self
        reasons = {
            'attention.mask = "bidirectional": a masked event in a group would not be restored': self.bidirectional,
            'pooling = "attention": an average would count a group as one event': self.pooling == "attention",
            "truncate_after: both decide which events are encoded to the end": self.truncate_after is not None,
            "num_blocks = 0: no output would depend on the merged events": self.num_blocks == 0,
        }
        for reason, applies in reasons.items():
            if applies:
                raise ValueError(
                    f"merge_size cannot be combined with {reason}; unset merge_size and merge_recent, or change it"
                )
        return self

    @model_validator(mode="after")
    def _heads_by_block_fit(self) -> "EncoderConfig":
        if self.heads_by_block is None:
            return self
        most, shared = self.attention.num_heads, self.attention.num_heads // self.attention.key_value_heads
        if len(self.heads_by_block) != self.num_blocks:
            raise ValueError(
                f"heads_by_block = {self.heads_by_block} must have {self.num_blocks} numbers, one for each of num_blocks"
            )
        if any(not 0 <= heads <= most or heads % shared for heads in self.heads_by_block):
            multiples = f", in multiples of {shared} that share keys" if shared > 1 else ""
            raise ValueError(
                f"heads_by_block = {self.heads_by_block} must be from 0 to attention.num_heads = {most}{multiples}"
            )
        return self

    @property
    def heads_of_blocks(self) -> dict[int, int]:
        """Return the number of heads of each block that is not left out, by its number from 1."""
        heads = self.heads_by_block or [self.attention.num_heads] * self.num_blocks
        return {number: count for number, count in enumerate(heads, start=1) if count}

    def attention_widths(self, width: int, heads: int) -> tuple[int, int, int]:
        """Return the widths of queries, of keys, and of the attended values of all channels, of a block.

        Args:
            width: of the model.
            heads: number of heads of the block.
        """
        head_width = width // self.attention.num_heads
        attention = with_heads(self.attention, heads)
        return heads * head_width, attention.key_value_heads * head_width, attention.num_channels * heads * head_width

    def is_truncated(self, number: int) -> bool:
        """Return whether a block, by its number from 1, receives the truncate_to newest events of each history only."""
        return self.truncate_after is not None and number > self.truncate_after

    @property
    def last_whole_block(self) -> int | None:
        """Return the block that receives the whole history and returns its newest events only; None if there is none.

        With a window a block computes all events, since its cost is linear in the window.
        """
        if self.num_newest is None or self.attention.window is not None:
            return None
        after = self.num_blocks if self.truncate_after is None else self.truncate_after
        return max((number for number in self.heads_of_blocks if number <= after), default=None)

    @property
    def num_newest(self) -> int | None:
        """Return how many newest events of a history are encoded to the end, and alone are targets; None: all."""
        return self.merge_recent if self.truncate_to is None else self.truncate_to

    @property
    def bidirectional(self) -> bool:
        """Return whether events attend to later ones. Such a model learns masked items."""
        return self.attention.mask == "bidirectional"

    @property
    def uses_time(self) -> bool:
        """Return whether the encoder uses the times of events."""
        return self.attention.uses_time


def inner_encoder(config: EncoderConfig) -> EncoderConfig:
    """Return the settings of the inner transformer: a plain block in which the events of a group all see each other.

    It has no positions of its own. The slots of a group enter by the projection, and learned positions by the events.
    """
    return EncoderConfig(
        num_blocks=1,
        positions="none",
        norm=config.norm,
        dropout=config.dropout,
        attention=AttentionConfig(num_heads=config.attention.num_heads, mask="bidirectional"),
    )
