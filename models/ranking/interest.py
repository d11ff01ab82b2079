"""Interest: a vector for each impression from the events of the user's history before it.

    attention   target attention over the encoded events                             DIN, SIM with a search before it
    encoder     the candidate is encoded as the event after its history              BST, HSTU with candidates as targets
    mean        the average of the events                                            YouTube's ranker

A history is encoded once, for all its candidates. The invariant: the interest of a candidate depends neither on events at or
after its own history_end, nor on another candidate or another history.

Shapes: N events, M candidates, D model width, W width of the interest.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.attention.blocks import AttentionContext
from models.attention.candidates import CandidateContext
from models.attention.search import search_by_category, search_by_similarity
from models.attention.target import MeanOfEvents, TargetAttention
from models.encoders.config import EncoderConfig
from models.encoders.encoder import Encoder
from models.ranking.batch import RankingBatch
from models.ranking.interest_config import InterestConfig


class Interest(nn.Module):
    """The encoder of histories, and the candidates' attention to its output. `width`: W."""

    def __init__(self, width: int, max_history: int, encoder: EncoderConfig, config: InterestConfig) -> None:
        super().__init__()
        assert config.kind != "none"
        self.config = config
        self.max_history = max_history
        self.encoder = Encoder(width, max_history, encoder)
        self.attention = TargetAttention(width, max_history, config.attention) if config.kind == "attention" else None
        self.mean = MeanOfEvents()  # without weights: used if there is no target attention
        self.width = width if self.attention is None else self.attention.width_out

    def forward(self, event_ND: Tensor, candidate_MD: Tensor, batch: RankingBatch) -> tuple[Tensor, Tensor | None]:
        """Return the interest (M, W), and the penalty of all attention weights, which is added to the loss, or None.

        event_ND, candidate_MD: vectors in the form of the encoder's input.
        """
        counted = _attended(batch) if self.training and self.encoder.config.attention.penalty else None
        context = AttentionContext(batch.layout, batch.times, batch.times, reach=self.max_history, counted=counted)
        candidates = CandidateContext(batch.candidate_layout, batch.candidate_times, batch.times)
        if self.config.kind == "encoder":
            candidates = replace(candidates, itself=True)
            encoded: tuple[Tensor, Tensor | None] = self.encoder(
                torch.cat((event_ND, candidate_MD)), replace(context, candidates=candidates)
            )
            return encoded
        encoded_ND, penalty = self.encoder(event_ND, context)
        # Under autocast an encoder may end in another precision than that of the vectors.
        encoded_ND = encoded_ND.to(candidate_MD.dtype)
        candidates = self._narrowed(encoded_ND, candidate_MD, batch, candidates)
        if self.attention is None:
            return self.mean(encoded_ND, candidate_MD, candidates), penalty
        seen_MW, more = self.attention(encoded_ND, candidate_MD, candidates)
        penalties = [part for part in (penalty, more) if part is not None]
        return seen_MW, torch.stack(penalties).sum() if penalties else None

    def _narrowed(
        self, encoded_ND: Tensor, candidate_MD: Tensor, batch: RankingBatch, candidates: CandidateContext
    ) -> CandidateContext:
        """Return the context narrowed to the events that the search selects."""
        search = self.config.search
        layout = batch.candidate_layout
        match search.kind:
            case "none":
                return candidates
            case "similarity":
                return candidates.narrowed(search_by_similarity(encoded_ND, candidate_MD, layout, search.num_found))
        assert search.feature is not None
        category_U = _categories(batch, search.feature)
        events = category_U[batch.history_index]
        candidate_category = category_U[batch.candidate_index]
        return candidates.narrowed(
            search_by_category(events, candidate_category, batch.layout.offsets, layout, search.num_found)
        )

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw all weights from `generator` (CPU), in a fixed order."""
        self.encoder.initialize(generator)
        if self.attention is not None:
            self.attention.initialize(generator)


def _attended(batch: RankingBatch) -> Tensor:
    """Return the events from the oldest one on that a candidate attends to, (N,) bool.

    Earlier events only complete the encodings of these.
    """
    layout = batch.candidate_layout
    num_events = torch.full_like(batch.row_ids, batch.layout.num_events)
    first_end = num_events.scatter_reduce(0, batch.history_of, batch.history_end, "amin")
    oldest = torch.repeat_interleave(
        first_end - layout.reach, batch.layout.offsets.diff(), output_size=batch.layout.num_events
    )
    return batch.layout.positions >= oldest


def _categories(batch: RankingBatch, feature: str) -> Tensor:
    """Return the looked-up row of each item's value, (U,) int64: the first row of several values, -1 without any."""
    values = batch.items.values[feature]
    none = torch.iinfo(torch.int64).max
    row_U = values.index.new_full((batch.lookup_ids.numel(),), none)
    row_U = row_U.scatter_reduce(0, values.owner, values.index, "amin")
    return torch.where(row_U == none, -1, row_U)


def interest_of(width: int, max_history: int, encoder: EncoderConfig, config: InterestConfig) -> Interest | None:
    """Build the interest of the settings, or None for a model that does not use histories."""
    return None if config.kind == "none" else Interest(width, max_history, encoder, config)
