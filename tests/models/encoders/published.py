"""The published encoders on dense right-padded blocks, written from their papers with the weights of ours.

Shapes: B histories, L places, D width, H heads, K head width. Deviations are those that docs/attention.md names.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.encoders.encoder import Encoder


def padded_forward(encoder: Encoder, x_BLD: Tensor, lengths_B: Tensor, times_BL: Tensor) -> Tensor:
    """Return (B, L, D); what stands at padding means nothing."""
    longest, width = x_BLD.shape[1:]
    place = torch.arange(longest)
    x = x_BLD * (width**0.5 if encoder.config.scale_inputs else 1.0) + learned_places(encoder, place, lengths_B)
    if encoder.config.input_norm:
        x = layer_norm(encoder.input_norm, x)
    match encoder.config.kind:
        case "sasrec" | "two_tower":
            for block in encoder.blocks:
                x = x + block.attention.attention_output(
                    attention(block, layer_norm(block.attention_norm, x), causal(place))
                )
                x = x + feed_forward(encoder, block, layer_norm(block.feed_forward_norm, x))
            x = layer_norm(encoder.final_norm, x)
        case "bert4rec":
            real = (place[None, :] < lengths_B[:, None])[:, None, None, :]
            visible = real | torch.eye(longest, dtype=torch.bool)  # padding sees itself, so that it is a number
            for block in encoder.blocks:
                x = layer_norm(block.attention_norm, x + block.attention.attention_output(attention(block, x, visible)))
                x = layer_norm(block.feed_forward_norm, x + feed_forward(encoder, block, x))
        case "ligr":
            for block in encoder.blocks:
                seen = attention(block, layer_norm(block.attention_norm, x), causal(place))
                x = x + torch.sigmoid(block.attention_gate(x)) * block.attention.attention_output(seen)
                said = swiglu(block, layer_norm(block.feed_forward_norm, x))
                x = x + torch.sigmoid(block.feed_forward_gate(x)) * said
            x = layer_norm(encoder.final_norm, x)
        case "hstu":
            for block in encoder.blocks:
                normed = layer_norm(block.attention_norm, x)
                q, k, v, u = F.silu(normed @ block.attention.query_key_value.weight.T).split(width, dim=-1)
                scores = heads(q, block) @ heads(k, block).mT / heads(q, block).shape[-1] ** 0.5
                scores = scores + position_bias(block, place) + time_bias(block, times_BL)
                weights = F.silu(scores) / encoder.max_history * causal(place)
                seen = layer_norm(block.attention.output_norm, merged(weights @ heads(v, block)))
                x = x + block.attention.attention_output(seen * u)
        case "fuxi_alpha":
            for block in encoder.blocks:
                normed = rms_norm(block.attention_norm, x)
                projected = F.silu(normed @ block.attention.query_key_value.weight.T)
                q, k, v, u = projected.split([width, width, width, 3 * width], dim=-1)
                scores = heads(q, block) @ heads(k, block).mT / heads(q, block).shape[-1] ** 0.5
                semantic = F.silu(scores) / encoder.max_history * causal(place)
                positional, temporal = (
                    position_bias(block, place) * causal(place),
                    time_bias(block, times_BL) * causal(place),
                )
                channels = [merged(weights @ heads(v, block)) for weights in (semantic, positional, temporal)]
                h = rms_norm(block.attention.output_norm, torch.cat(channels, dim=-1)) * u
                x = x + block.attention.attention_output(h)
                x = x + swiglu(block, rms_norm(block.feed_forward_norm, x))
    if encoder.pooling is not None:
        x = pooled(encoder, x, causal(place))
    if encoder.config.output_head == "gelu":
        x = layer_norm(encoder.output_head.norm, F.gelu(encoder.output_head.into(x)))
    for number, layer in enumerate(encoder.user_tower.layers):
        x = layer(F.gelu(x) if number else x)
    return x


def learned_places(encoder: Encoder, place: Tensor, lengths_B: Tensor) -> Tensor:
    """Return (B or 1, L, D). From the newest event: as in a history of max_history events that is padded on the left."""
    if encoder.config.positions_from == "oldest":
        return encoder.positions.weight[place][None]
    from_left = place[None, :] + encoder.max_history - lengths_B[:, None]
    return encoder.positions.weight[from_left.clamp(max=encoder.max_history - 1)]


def causal(place: Tensor) -> Tensor:
    return place[:, None] >= place[None, :]


def heads(x_BLD: Tensor, block) -> Tensor:
    """Return (B, H, L, K)."""
    return x_BLD.unflatten(-1, (block.attention.config.num_heads, -1)).transpose(1, 2)


def merged(x_BHLK: Tensor) -> Tensor:
    return x_BHLK.transpose(1, 2).flatten(2)


def attention(block, x: Tensor, visible: Tensor) -> Tensor:
    q, k, v = (heads(part, block) for part in (x @ block.attention.query_key_value.weight.T).chunk(3, dim=-1))
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~visible, float("-inf"))
    return merged(scores.softmax(dim=-1) @ v)


def pooled(encoder: Encoder, x: Tensor, visible: Tensor) -> Tensor:
    shape, halves = encoder.pooling.query.shape, encoder.pooling.key_value(x).chunk(2, dim=-1)
    k, v = (half.unflatten(-1, shape).transpose(1, 2) for half in halves)
    scores_BHL = torch.einsum("hk,bhlk->bhl", encoder.pooling.query, k) / k.shape[-1] ** 0.5
    scores = scores_BHL[:, :, None, :].masked_fill(~visible, float("-inf"))
    return encoder.pooling.output(merged(scores.softmax(dim=-1) @ v))


def position_bias(block, place: Tensor) -> Tensor:
    """Return (H, L, L)."""
    return block.attention.position_bias.weight[:, (place[:, None] - place[None, :]).clamp(min=0)]


def time_bias(block, times_BL: Tensor) -> Tensor:
    """Return (B, H, L, L), of the buckets of 1.35-fold growth that HSTU's published code has."""
    age = (times_BL[:, :, None] - times_BL[:, None, :]).clamp(min=1).double()
    bucket = (age.log() / 0.301).floor().long().clamp(max=127)
    return block.attention.time_bias.weight[:, bucket].transpose(0, 1)


def feed_forward(encoder: Encoder, block, x: Tensor) -> Tensor:
    activation = {"gelu": F.gelu, "relu": F.relu}[encoder.config.feed_forward]
    return block.feed_forward.out_of(activation(block.feed_forward.into(x)))


def swiglu(block, x: Tensor) -> Tensor:
    gate, hidden = (x @ block.feed_forward.into.weight.T).chunk(2, dim=-1)
    return (F.silu(gate) * hidden) @ block.feed_forward.out_of.weight.T


def layer_norm(norm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias)


def rms_norm(norm, x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * norm.weight
