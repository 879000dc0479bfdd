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


def test_arrays_count_to_nine_decimals_of_their_largest_number():
    angles = np.linspace(0, 6, 40)
    sines = 1000 * np.sin(angles)
    assert fingerprint(sines) == fingerprint(np.nextafter(sines, np.inf))  # as another processor may have it
    assert fingerprint(sines) != fingerprint(sines + 1e-4) and fingerprint(sines) != fingerprint(2 * sines)
    assert fingerprint(np.array([1e-10])) != fingerprint(np.array([2e-10]))
    assert fingerprint(np.zeros(3)) == fingerprint(-np.zeros(3)) != fingerprint(np.zeros(3, dtype=int))
