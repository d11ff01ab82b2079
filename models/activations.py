"""The number of activations that the backward pass of an encoder needs, estimated from its settings. Imports no torch."""

from models.encoders.config import EncoderConfig, inner_encoder


def saved_numbers(encoder: EncoderConfig, width: int, share: float = 1.0, tokens: float = 1.0) -> float:
    """Return how many numbers per event are kept for the backward pass.

    These are the inputs of matrix products, norms and activations.

    Args:
        encoder: the settings.
        width: of the model.
        share: of the events that truncated blocks, and all after the blocks, receive.
        tokens: number of tokens of the other blocks per event.
    """
    heads = encoder.heads_of_blocks
    shares = [share if encoder.is_truncated(number) else tokens for number in heads]
    blocks = [of * _of_block(encoder, width, count) for of, count in zip(shares, heads.values(), strict=True)]
    if encoder.last_whole_block is not None:
        # Of events without an output it keeps the inputs of the norm and of keys and values, and these as rows.
        at = list(heads).index(encoder.last_whole_block)
        _, key_width, _ = encoder.attention_widths(width, heads[encoder.last_whole_block])
        inputs = (2.0 + (encoder.norm == "rms_norm")) * width + 2.0 * key_width
        blocks[at] = share * _of_block(encoder, width, heads[encoder.last_whole_block]) + (tokens - share) * inputs
    block = sum(blocks)
    if encoder.recompute and blocks:
        block = sum(shares) * width + block / len(blocks)
    rms = encoder.norm == "rms_norm"  # torch also keeps the scale
    pooling = 6.0 * width * (encoder.pooling == "attention")
    towers = width * (1.0 + 2.0 * sum(encoder.user_tower)) if encoder.user_tower else 0.0
    ends = (1.0 + rms) * width * encoder.input_norm + (3.0 + rms) * width * (encoder.output_head != "none")
    inputs_and_outputs = (2.0 + 2.0 * share) * width  # of all blocks together
    merge = 0.0
    if encoder.merge_size is not None:
        # The inputs of the projection, and its outputs next to the newest events.
        merge = (1.0 - share) * width + tokens * width
        if encoder.merge_form == "transformer":
            inner = inner_encoder(encoder)
            merge += (1.0 - share) * (width + _of_block(inner, width, inner.attention.num_heads))
    return merge + block + inputs_and_outputs + share * (pooling + towers) + ends


def _of_block(encoder: EncoderConfig, width: int, heads: int) -> float:
    """Return the numbers of a block with this number of heads."""
    attention = encoder.attention
    query_width, key_width, seen = encoder.attention_widths(width, heads)
    maps = 2 if attention.differential else 1
    projected = query_width + 2 * key_width + seen * attention.gate
    rms = encoder.norm == "rms_norm"
    block = (2.0 + rms) * width  # the norm's input and output
    block += projected * (attention.projection_activation == "silu") * (1 + attention.gate)
    block += (
        2 + maps
    ) * query_width + seen * maps  # queries, keys, and values by map, as rows; the output of attention
    block += seen * (attention.gate + {"none": 0, "layer_norm": 1, "rms_norm": 2}[attention.output_norm])
    extra = 3.0 * width * encoder.residual_gate + width * (encoder.dropout > 0)
    block += extra
    if encoder.feed_forward != "none":
        hidden = width * encoder.feed_forward_multiple
        block += (2.0 + rms) * width + hidden * (4 if encoder.feed_forward == "swiglu" else 2) + extra
        block += hidden * (encoder.feed_forward_dropout > 0)  # the mask of dropout
    return block
