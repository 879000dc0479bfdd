"""A fingerprint sees all of what a solve depends on, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from pdframe.core.checkpoint import fingerprint


def test_fingerprints_see_content_and_not_identity():
    net = torch.nn.Linear(2, 2)
    copy = torch.nn.Linear(2, 2)
    copy.load_state_dict(net.state_dict())
    assert fingerprint(net, {"a": 1}) == fingerprint(copy, {"a": 1})
    with torch.no_grad():
        copy.weight[0, 0] += 1
    assert fingerprint(net) != fingerprint(copy)
    assert fingerprint(torch.zeros(2, 3)) != fingerprint(torch.zeros(3, 2)) != fingerprint(torch.zeros(3, 2).double())


def test_fingerprints_see_the_middle_of_a_long_array():
    """NumPy prints a thousand values and more with an ellipsis."""
    long = np.zeros((1000, 3))
    changed = long.copy()
    changed[500] = 1.0
    assert repr(long) == repr(changed)
    assert fingerprint(long) == fingerprint(long.copy()) != fingerprint(changed)
