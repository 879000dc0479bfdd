"""Conformance checks for plugin authors, usable with or without pytest, and toy problems with closed-form answers.

from pdframe.testing import check_operator, report
assert all(c.passed for c in (checks := check_operator(MyOperator(...)))), report(checks)
"""

from pdframe.testing.checks import Check as Check
from pdframe.testing.checks import report as report
from pdframe.testing.data import check_dataset as check_dataset
from pdframe.testing.data import check_metric as check_metric
from pdframe.testing.data import check_noise as check_noise
from pdframe.testing.operators import check_operator as check_operator
from pdframe.testing.priors import check_prior as check_prior
from pdframe.testing.registered import check_entry as check_entry
from pdframe.testing.solvers import check_solver as check_solver
