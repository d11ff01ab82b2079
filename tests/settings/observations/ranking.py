"""The loss of a ranking model by plain formulas, for the settings' tests."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cluster.config.run_config import Config
from models.ranking.losses import listwise, pairwise
from tests.settings.lab import Lab
from tests.settings.observations.models import Model, model_of

Formula = Callable[[Lab, Config], float]
OfLogits = Callable[[Model, Tensor], Tensor]  # of one label's logits, (M,)


def by_logits(loss_of: OfLogits) -> Formula:
    """Return the mean loss over the first batch's impressions, from the logits of the only label, click."""

    def by_hand(lab: Lab, config: Config) -> float:
        model = model_of(lab, config)
        logits_M = model.built.model.logits(model.rows, model.batch).detach()[:, 0]
        return float(loss_of(model, logits_M)) / model.batch.num_targets

    return by_hand


def _clicks(model: Model) -> Tensor:
    clicks: Tensor = model.batch.labels["click"]
    return clicks


def plain(model: Model, logits_M: Tensor) -> Tensor:
    """Return the binary cross-entropy."""
    return F.binary_cross_entropy_with_logits(logits_M, _clicks(model), reduction="sum")


def focal(gamma: float) -> OfLogits:
    """Return binary cross-entropies times the probability of the other answer to the power of gamma."""

    def loss_of(model: Model, logits_M: Tensor) -> Tensor:
        losses_M = F.binary_cross_entropy_with_logits(logits_M, _clicks(model), reduction="none")
        return (losses_M * (1.0 - torch.exp(-losses_M)) ** gamma).sum()

    return loss_of


def ranked(kind: str, bce_share: float) -> OfLogits:
    """Return a share of binary cross-entropy added to the loss of a user's impressions together."""

    def loss_of(model: Model, logits_M: Tensor) -> Tensor:
        batch, together = model.batch, pairwise if kind == "pairwise" else listwise
        positive_M = _clicks(model) > 0
        beside = together(logits_M, positive_M, torch.ones_like(positive_M), batch.history_of, batch.num_histories)
        return bce_share * plain(model, logits_M) + (1.0 - bce_share) * beside

    return loss_of


def reweighed(kept: float) -> OfLogits:
    """Return binary cross-entropies where impressions without a label count for those that the log dropped."""

    def loss_of(model: Model, logits_M: Tensor) -> Tensor:
        weights_M = torch.where(_clicks(model) > 0, 1.0, 1.0 / kept)
        return F.binary_cross_entropy_with_logits(logits_M, _clicks(model), weights_M, reduction="sum")

    return loss_of


def of_clicked_conversions(lab: Lab, config: Config) -> float:
    """Return the mean loss where conversions are learned of clicked impressions only."""
    model = model_of(lab, config)
    logits_MT = model.built.model.logits(model.rows, model.batch).detach()
    converted, clicked = model.batch.labels["conversion"], _clicks(model) > 0
    of_conversions = F.binary_cross_entropy_with_logits(logits_MT[clicked, 1], converted[clicked], reduction="sum")
    return float(plain(model, logits_MT[:, 0]) + of_conversions) / model.batch.num_targets
