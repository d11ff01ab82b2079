"""What of a user's history bears on a candidate: a vector for each impression, from the events before it.

    attention   target attention over what the encoder made of the events            DIN, SIM with a search before it
    encoder     the candidate is encoded as the event after its history              BST, HSTU with candidates as targets
    mean        the average of the events                                            YouTube's ranker

A history is encoded once, for all its candidates. The invariant: nothing at or after a candidate's own history_end changes what it
gets, nor does another candidate or another history.

Shapes: N events, M candidates, D model width, W width of the interest.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.search import search_by_category, search_by_similarity
from models.attention.target import TargetAttention, mean_of_events
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from models.ranking.batch import RankingBatch
from models.ranking.interest_config import InterestConfig


class Interest(nn.Module):
    """The encoder of histories, and how candidates meet what it makes of them. width: of what it says of each candidate."""

    def __init__(self, width: int, max_history: int, encoder: EncoderConfig, config: InterestConfig) -> None:
        super().__init__()
        assert config.kind != "none"
        self.config, self.max_history = config, max_history
        self.encoder = Encoder(width, max_history, encoder)
        self.attention = TargetAttention(width, max_history, config.attention) if config.kind == "attention" else None
        self.width = width if self.attention is None else self.attention.width_out

    def forward(self, event_ND: Tensor, candidate_MD: Tensor, batch: RankingBatch) -> tuple[Tensor, Tensor | None]:
        """(M, W), and the penalty of all attention weights, to be added to the loss, or none.

        event_ND, candidate_MD: vectors as the encoder takes them.
        """
        counted = _attended(batch) if self.training and self.encoder.config.attention.penalty else None
        context = AttentionContext(batch.layout, batch.times, batch.times, reach=self.max_history, counted=counted)
        candidates = CandidateContext(batch.candidate_layout, batch.candidate_times, batch.times)
        if self.config.kind == "encoder":
            candidates = replace(candidates, itself=True)
            beside: tuple[Tensor, Tensor | None] = self.encoder(
                torch.cat((event_ND, candidate_MD)), replace(context, candidates=candidates)
            )
            return beside
        encoded_ND, penalty = self.encoder(event_ND, context)
        # Under autocast an encoder may end in another precision than that of the vectors.
        encoded_ND = encoded_ND.to(candidate_MD.dtype)
        candidates = self._found(encoded_ND, candidate_MD, batch, candidates)
        if self.attention is None:
            return mean_of_events(encoded_ND, candidates), penalty
        seen_MW, more = self.attention(encoded_ND, candidate_MD, candidates)
        penalties = [part for part in (penalty, more) if part is not None]
        return seen_MW, torch.stack(penalties).sum() if penalties else None

    def _found(
        self, encoded_ND: Tensor, candidate_MD: Tensor, batch: RankingBatch, candidates: CandidateContext
    ) -> CandidateContext:
        """The context narrowed to what the search finds."""
        search, layout = self.config.search, batch.candidate_layout
        match search.kind:
            case "none":
                return candidates
            case "similarity":
                return candidates.narrowed(search_by_similarity(encoded_ND, candidate_MD, layout, search.num_found))
        assert search.feature is not None
        category_U = _categories(batch, search.feature)
        events, wanted = category_U[batch.history_index], category_U[batch.candidate_index]
        return candidates.narrowed(search_by_category(events, wanted, batch.layout.offsets, layout, search.num_found))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order."""
        self.encoder.initialize(generator)
        if self.attention is not None:
            self.attention.initialize(generator)


def _attended(batch: RankingBatch) -> Tensor:
    """(N,) bool: the events from the oldest one on that a candidate attends to. Those before only complete their encodings."""
    layout = batch.candidate_layout
    num_events = torch.full_like(batch.row_ids, batch.layout.num_events)
    first_end = num_events.scatter_reduce(0, batch.history_of, batch.history_end, "amin")
    oldest = torch.repeat_interleave(
        first_end - layout.reach, batch.layout.offsets.diff(), output_size=batch.layout.num_events
    )
    return batch.layout.positions >= oldest


def _categories(batch: RankingBatch, feature: str) -> Tensor:
    """(U,) int64: of each item the looked-up row of its value, of several the first row, -1 without any."""
    values, none = batch.items.values[feature], torch.iinfo(torch.int64).max
    row_U = values.index.new_full((batch.lookup_ids.numel(),), none)
    row_U = row_U.scatter_reduce(0, values.owner, values.index, "amin")
    return torch.where(row_U == none, -1, row_U)


def interest_of(width: int, max_history: int, encoder: EncoderConfig, config: InterestConfig) -> Interest | None:
    """What the settings name; none for a model that does not look at histories."""
    return None if config.kind == "none" else Interest(width, max_history, encoder, config)
