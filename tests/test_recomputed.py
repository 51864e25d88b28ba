"""The package's verdicts against those that `recomputed_verdicts` computes again from the raw JSON of the records."""

from __future__ import annotations

import math

import pytest
from recomputed_verdicts import CASES, REGIME

from peftbook.core.records import default_store
from peftbook.evidence.results import study_quantities, study_verdict


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_follows_from_the_raw_records(name):
    """Another implementation of the rule finds the same outcome, numbers and printed digits, or misses a record too."""
    compute, form, tolerance = CASES[name]
    told = study_verdict(name, default_store())
    if told.outcome == "not yet run":
        with pytest.raises(AssertionError, match="0 records agree"):
            compute()
        return
    outcome, numbers = compute()
    quantities = study_quantities(name, default_store())
    assert told.outcome == ("fails in this regime" if outcome == "refuted" and name in REGIME else outcome)
    for quantity, ends in numbers.items():
        known = quantities[quantity]
        assert quantity in told.quantities
        for mine, printed in zip(ends, (known.value, known.low, known.high), strict=True):
            assert mine == printed or math.isclose(mine, printed, rel_tol=tolerance, abs_tol=1e-9), quantity
            if form and mine is not None:
                assert format(mine, form).replace("-", "−").replace("%", " %") in told.sentence
