"""Drawing what a data set does not give: validation and test images out of those for training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitrarium.configs.errors import UserError


def draw_splits(
    splits: np.ndarray,
    labels: np.ndarray,
    shares: Mapping[str, float],
    seed: int,
    groups: np.ndarray | None = None,
) -> None:
    """Move a share of each class from train to other splits, at least one image each while train keeps one.

    The draw of a class depends on the seed, the class and the number of its images (or groups) alone.

    Args:
        splits: (N,) array of split names, changed in place.
        labels: (N,) class of each image.
        shares: for each split to draw the share of the training images of a class.
        seed: of the draw.
        groups: (N,) what images are of, such as a patient; the images of one stay together, and shares are of groups.

    Raises:
        UserError: a share outside (0, 1), or shares that leave nothing to train on.
    """
    for name, share in shares.items():
        if not 0 < share < 1:
            raise UserError(f"{name}_fraction is {share}", "give a share between 0 and 1")
    if sum(shares.values()) >= 1:
        fractions = " and ".join(f"{name}_fraction" for name in shares)
        raise UserError(f"{fractions} leave nothing to train on", "give shares that sum to less than 1")
    for c in np.unique(labels):
        members = np.flatnonzero((labels == c) & (splits == "train"))
        if groups is not None:
            members = np.unique(groups[members])
        members = members[np.random.default_rng([seed, int(c)]).permutation(len(members))]
        spare, count = len(members) - 1, len(members)
        for name, share in sorted(shares.items()):
            take = min(max(1, round(count * share)), spare)
            chosen = members[:take]
            splits[chosen if groups is None else (splits == "train") & np.isin(groups, chosen)] = name
            members, spare = members[take:], spare - take
