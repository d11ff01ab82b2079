"""What the logits of labels mean, and the loss of all labels together.

A label that is `defined_when` another is its probability given that the other is positive, learned where it is. With `entire_space`
the two probabilities are multiplied and the product, of both being positive, is learned on all impressions (ESMM: Ma et al. 2018,
arXiv:1804.07931, equation 3). A product of probabilities is a logit again:

    logit(sigmoid(a) sigmoid(b)) = -log(e^-a + e^-b + e^-(a+b))

exactly, so that any loss applies to it and no probability near 0 or 1 is ever formed.

Where logs kept a share r of the impressions without any label, the odds of a label that is 0 only on those are 1/r times too high.
"offset" adds -log r to its logit in training, so that the logit itself is that of the full log (King & Zeng 2001,
doi:10.1093/oxfordjournals.pan.a004868); a label given another needs nothing where that is positive, since all such impressions were
kept. "weight" weighs the impressions without any label by 1/r, which is right for every label.

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
    """The labels of a model. configs: by name, in the order of columns of logits.

    kept: the share r of impressions without any label that the logs have, for which training is corrected as `correction` says.
    """

    configs: Mapping[str, LabelConfig]
    kept: float = 1.0
    correction: Literal["offset", "weight", "none"] = "none"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.configs)

    def logits(self, raw_MT: Tensor) -> Tensor:
        """(M, T): of each label where it is defined, from what the towers say."""
        columns = dict(zip(self.names, raw_MT.unbind(dim=1), strict=True))
        found: dict[str, Tensor] = {}
        for name in self._conditions_first():
            config = self.configs[name]
            found[name] = columns[name]
            if config.entire_space:
                assert config.defined_when is not None
                found[name] = both(found[config.defined_when], columns[name])
        return torch.stack([found[name] for name in self.names], dim=1)

    def targets(self, labels: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(M, T) bool twice: which labels are positive, and where each is defined. labels: all of the logs, (M,) by name."""
        positive, defined = {}, {}
        for name in self._conditions_first():
            config = self.configs[name]
            own_M, condition = labels[name] > 0, config.defined_when
            if condition is None:
                positive[name], defined[name] = own_M, torch.ones_like(own_M)
                continue
            holds_M = positive[condition] if condition in positive else labels[condition] > 0
            known_M = defined[condition] if condition in defined else torch.ones_like(own_M)
            positive[name] = own_M & holds_M
            defined[name] = known_M if config.entire_space else known_M & holds_M
        stacked = (torch.stack([found[name] for name in self.names], dim=1) for found in (positive, defined))
        return next(stacked), next(stacked)

    def loss(self, raw_MT: Tensor, labels: Mapping[str, Tensor], user_M: Tensor, num_users: int) -> Tensor:
        """The sum over impressions and labels, a scalar. user_M: (M,) int64 ascending, whose each impression is."""
        logits_MT = self.logits(self._as_sampled(raw_MT))
        positive_MT, defined_MT = self.targets(labels)
        weight_M = self._weights(labels)
        total = raw_MT.new_zeros(())
        for column, config in enumerate(self.configs.values()):
            logits_M, positive_M = logits_MT[:, column], positive_MT[:, column]
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
        """What the towers would say of the logs as they are, of which some impressions were dropped."""
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
        """The names, each after the label that it is given."""
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
    """Of training: how many impressions there are, and by label how many of them are positive."""

    num_impressions: int
    num_positive: Mapping[str, int]


def rate_logits(labels: Labels, rates: Rates) -> Tensor:
    """(T,): what the towers would say if all impressions were alike. Of labels given another, that of those where it is positive.

    One positive and one negative impression are added, so that no rate is 0 or 1.
    """
    found = []
    for name, config in labels.configs.items():
        condition = config.defined_when
        total = rates.num_impressions if condition is None else rates.num_positive[condition]
        num_positive = min(rates.num_positive[name], total)
        of_logs = math.log((num_positive + 1) / (total - num_positive + 1))
        corrected = condition is None and labels.correction != "none"
        found.append(of_logs + (math.log(labels.kept) if corrected else 0.0))
    return torch.tensor(found)


def both(a: Tensor, b: Tensor) -> Tensor:
    """The logit of sigmoid(a) sigmoid(b)."""
    return -torch.logsumexp(torch.stack((-a, -b, -(a + b))), dim=0)
