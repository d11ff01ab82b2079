"""Published rankers as default settings. Imports no torch.

docs/attention.md lists how each deviates from its paper.
"""

from typing import Any, Literal

RankerKind = Literal["din", "bst", "hstu", "sim", "pooled", "logistic"]

# No encoder blocks: candidates attend to the vectors of the events themselves.
_PLAIN_EVENTS = {"num_blocks": 0, "positions": "none", "final_norm": False, "dropout": 0.0}

# The settings of each ranker that differ from the fields' own defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # Zhou et al. 2018, arXiv:1706.06978
    "din": {
        "encoder": _PLAIN_EVENTS,
        "interest": {"attention": {"score": "activation_unit", "projection": False, "normalisation": "none"}},
        "experts": {"hidden": [200, 80], "activation": "dice"},
    },
    # Chen et al. 2019, arXiv:1905.06874
    "bst": {
        "encoder": {
            "num_blocks": 1,
            "positions": "none",
            "norm_place": "post",
            "final_norm": False,
            "feed_forward_multiple": 4,
            "attention": {"num_heads": 8, "bias": "time"},
        },
        "interest": {"kind": "encoder"},
        "experts": {"hidden": [256, 128]},
    },
    # Zhai et al. 2024, arXiv:2402.17152
    "hstu": {
        "encoder": {"kind": "hstu", "positions": "none"},
        "interest": {"kind": "encoder"},
    },
    # Pi et al. 2020, arXiv:2006.05639
    "sim": {
        "encoder": _PLAIN_EVENTS,
        "interest": {"attention": {"num_heads": 4, "bias": "time"}, "search": {"kind": "similarity"}},
        "experts": {"hidden": [200, 80], "activation": "dice"},
    },
    # Covington et al. 2016, https://doi.org/10.1145/2959100.2959190
    "pooled": {
        "encoder": _PLAIN_EVENTS,
        "interest": {"kind": "mean"},
    },
    "logistic": {
        "interest": {"kind": "none"},
        "experts": {"hidden": []},
    },
}
