"""The meaning of the logits of labels, and the loss of all labels together.

A label with `defined_when` is its probability given that the other label is positive, and is learned where it is. With
`entire_space` the two probabilities are multiplied and the product, of both being positive, is learned on all impressions
(ESMM: Ma et al. 2018, arXiv:1804.07931, equation 3). A product of probabilities is a logit again:

    logit(sigmoid(a) sigmoid(b)) = -log(e^-a + e^-b + e^-(a+b))

The identity is exact. So any loss applies to the product, and no probability near 0 or 1 is ever formed.

If logs kept a share r of the impressions without any label, the odds of a label that is 0 only on those are 1/r times too high.
"offset" adds -log r to its logit in training, so that the logit itself is that of the full log (King & Zeng 2001,
doi:10.1093/oxfordjournals.pan.a004868). A label given another needs no offset where that is positive, since all such
impressions were kept. "weight" weighs the impressions without any label by 1/r, which is right for every label.

Shapes: M impressions, T labels in the order of `names`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.ranking.config import LabelConfig
from models.ranking.losses import listwise, pairwise, pointwise


@dataclass(frozen=True)
class Labels:
    """The labels of a model."""

    configs: Mapping[str, LabelConfig]  # by name, in the order of columns of logits
    kept: float = 1.0  # share r of impressions without any label that the logs contain
    correction: Literal["offset", "weight", "none"] = "none"  # how training corrects for it

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.configs)

    def logits(self, raw_MT: Tensor) -> Tensor:
        """Return the logit of each label where it is defined, (M, T), from the outputs of the towers."""
        columns = dict(zip(self.names, raw_MT.unbind(dim=1), strict=True))
        logits: dict[str, Tensor] = {}
        for name in self._conditions_first():
            config = self.configs[name]
            logits[name] = columns[name]
            if config.entire_space:
                assert config.defined_when is not None
                logits[name] = both(logits[config.defined_when], columns[name])
        return torch.stack([logits[name] for name in self.names], dim=1)

    def targets(self, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return which labels are positive, and where each is defined, (M, T) bool each.

        labels: all labels of the logs, (M,) by name.
        """
        positive = {}
        defined = {}
        for name in self._conditions_first():
            config = self.configs[name]
            own_M = labels[name] > 0
            condition = config.defined_when
            if condition is None:
                positive[name], defined[name] = own_M, torch.ones_like(own_M)
                continue
            holds_M = positive[condition] if condition in positive else labels[condition] > 0
            known_M = defined[condition] if condition in defined else torch.ones_like(own_M)
            positive[name] = own_M & holds_M
            defined[name] = known_M if config.entire_space else known_M & holds_M
        stacked = (torch.stack([by_name[name] for name in self.names], dim=1) for by_name in (positive, defined))
        return next(stacked), next(stacked)

    def loss(self, raw_MT: Tensor, labels: Mapping[str, Tensor], user_M: Tensor, num_users: int) -> Tensor:
        """Return the sum of the loss over impressions and labels, a scalar.

        Args:
            raw_MT: the outputs of the towers.
            labels: all labels of the logs, (M,) by name.
            user_M: the user of each impression, int64 ascending.
            num_users: number of users.
        """
        logits_MT = self.logits(self._as_sampled(raw_MT))
        positive_MT, defined_MT = self.targets(labels)
        weight_M = self._weights(labels)
        total = raw_MT.new_zeros(())
        for column, config in enumerate(self.configs.values()):
            logits_M = logits_MT[:, column]
            positive_M = positive_MT[:, column]
            defined_M = defined_MT[:, column]
            ranking: Tensor | None = None
            match config.loss:
                case "bce" | "focal":
                    pointwise_M = pointwise(config.loss, logits_M, positive_M, config.focusing)
                case "pairwise":
                    pointwise_M = pointwise("bce", logits_M, positive_M)
                    ranking = pairwise(logits_M, positive_M, defined_M, user_M, num_users)
                case "listwise":
                    pointwise_M = pointwise("bce", logits_M, positive_M)
                    ranking = listwise(logits_M, positive_M, defined_M, user_M, num_users)
            loss = (pointwise_M * (defined_M if weight_M is None else defined_M * weight_M)).sum()
            if ranking is not None:
                loss = config.bce_share * loss + (1.0 - config.bce_share) * ranking
            total = total + config.weight * loss
        return total

    def _as_sampled(self, raw_MT: Tensor) -> Tensor:
        """Return the logits for the logs as they are, in which some impressions were dropped."""
        if self.correction != "offset" or self.kept == 1.0:
            return raw_MT
        inflated = [0.0 if config.defined_when else -math.log(self.kept) for config in self.configs.values()]
        return raw_MT + raw_MT.new_tensor(inflated)

    def _weights(self, labels: Mapping[str, Tensor]) -> Tensor | None:
        if self.correction != "weight" or self.kept == 1.0:
            return None
        any_M = torch.stack([label > 0 for label in labels.values()]).any(dim=0)
        return torch.where(any_M, 1.0, 1.0 / self.kept)

    def _conditions_first(self) -> list[str]:
        """Return the names of the labels, each after the label that it depends on."""
        order: list[str] = []
        for name in self.names:
            chain: list[str] = []
            while name in self.configs and name not in order:
                chain.append(name)
                name = self.configs[name].defined_when or ""
            order += reversed(chain)
        return order


@dataclass(frozen=True)
class Rates:
    """The number of training impressions, and by label the number of positive ones."""

    num_impressions: int
    num_positive: Mapping[str, int]


def rate_logits(labels: Labels, rates: Rates) -> Tensor:
    """Return the logits (T,) of the rates of the labels, as outputs of the towers.

    The rate of a conditional label is that where it is defined. One positive and one negative impression are added, so that no
    rate is 0 or 1.
    """
    logits = []
    for name, config in labels.configs.items():
        condition = config.defined_when
        total = rates.num_impressions if condition is None else rates.num_positive[condition]
        num_positive = min(rates.num_positive[name], total)
        of_logs = math.log((num_positive + 1) / (total - num_positive + 1))
        corrected = condition is None and labels.correction != "none"
        logits.append(of_logs + (math.log(labels.kept) if corrected else 0.0))
    return torch.tensor(logits)


def both(a: Tensor, b: Tensor) -> Tensor:
    """Return the logit of sigmoid(a) sigmoid(b)."""
    return -torch.logsumexp(torch.stack((-a, -b, -(a + b))), dim=0)
