"""Agreement against krippendorff, statsmodels, hand-worked cases, and planted truth."""

from __future__ import annotations

from pathlib import Path

import krippendorff
import numpy as np
import numpy.typing as npt
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from annotations.agreement import agreement
from annotations.errors import BeyondError


def test_equal_to_the_packages_on_random_tables() -> None:
    rng = np.random.default_rng(0)
    for votes in (2, 3, 5):
        p = rng.dirichlet([2.0, 0.7, 1.5], size=80)
        table = np.array([rng.multinomial(votes, row) for row in p])
        found = agreement(table)
        for level in ("nominal", "ordinal"):
            peer = krippendorff.alpha(value_counts=table, value_domain=[0, 1, 2], level_of_measurement=level)
            assert found[f"alpha_{level}"].value == pytest.approx(peer, abs=1e-12)
        assert found["fleiss_kappa"].value == pytest.approx(fleiss_kappa(table), abs=1e-12)


def test_unequal_numbers_of_votes() -> None:
    rng = np.random.default_rng(1)
    table = np.array([rng.multinomial(m, [0.5, 0.2, 0.3]) for m in rng.integers(0, 7, 200)])
    found = agreement(table)
    for level in ("nominal", "ordinal"):
        peer = krippendorff.alpha(value_counts=table, value_domain=[0, 1, 2], level_of_measurement=level)
        assert found[f"alpha_{level}"].value == pytest.approx(peer, abs=1e-12)
    assert found["alpha_nominal"].n == int((table.sum(axis=1) >= 2).sum())


def test_ac1_by_hand() -> None:
    """Gwet 2008: 4 questions of 2 raters; 3 agree; shares 5/8 and 3/8, so chance is 2·(5/8)(3/8) = 15/32."""
    table = np.array([[2, 0], [2, 0], [0, 2], [1, 1]])
    assert agreement(table)["ac1"].value == pytest.approx((0.75 - 15 / 32) / (1 - 15 / 32))


@pytest.mark.shared
def test_reals_votes(shared_data: Path) -> None:
    with np.load(shared_data / "real-votes" / "raters.npz") as file:
        counts = file["tensor"].sum(axis=0).astype(np.int64)
        _, image = np.unique(file["info"][:, 0], return_inverse=True)
    found = agreement(counts, clusters=image)
    assert found["alpha_nominal"].value == pytest.approx(0.412, abs=5e-4)
    assert found["alpha_ordinal"].value == pytest.approx(0.517, abs=5e-4)
    assert found["ac1"].value == pytest.approx(0.746, abs=5e-4)
    # Questions of one image are no independent draws: clustering widens the interval.
    alone = agreement(counts)["alpha_nominal"]
    together = found["alpha_nominal"]
    assert together.high - together.low > alone.high - alone.low


def test_intervals_cover() -> None:
    """Questions drawn at random from a known population: the population's coefficient is inside."""
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1.2, 0.5, 0.9], size=20_000)
    population = np.array(agreement(_draw(rng, np.repeat(p, 20, axis=0)))["alpha_nominal"].value)
    names = ["alpha_nominal", "ac1", "fleiss_kappa", "prevalence_2"]
    exact = {name: agreement(_draw(rng, np.repeat(p, 20, axis=0)))[name].value for name in names}
    assert exact["alpha_nominal"] == pytest.approx(population, abs=2e-3)
    inside = dict.fromkeys(names, 0)
    runs = 400
    for _ in range(runs):
        found = agreement(_draw(rng, p[rng.integers(0, len(p), 300)]))
        for name in names:
            inside[name] += found[name].low <= exact[name] <= found[name].high
    for name in names:
        assert 0.92 <= inside[name] / runs <= 0.98, name  # one standard error is 1.1 points


def _draw(rng: np.random.Generator, p: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    cumulative = p.cumsum(axis=1)
    said = (rng.random((len(p), 5, 1)) > cumulative[:, None, :]).sum(axis=2)
    return np.stack([(said == answer).sum(axis=1) for answer in range(3)], axis=1)


def test_clusters_count_as_one() -> None:
    """Every question twice, as one cluster, says what it says once."""
    rng = np.random.default_rng(3)
    table = np.array([rng.multinomial(5, row) for row in rng.dirichlet([1, 1, 1], size=100)])
    once = agreement(table)["ac1"]
    twice = agreement(np.vstack([table, table]), clusters=np.tile(np.arange(100), 2))["ac1"]
    assert (twice.low, twice.value, twice.high) == pytest.approx((once.low, once.value, once.high))


def test_edges() -> None:
    nothing = agreement(np.zeros((3, 3), dtype=int))
    assert np.isnan(nothing["alpha_nominal"].value)
    same = agreement(np.array([[5, 0, 0], [5, 0, 0]]))
    assert np.isnan(same["alpha_nominal"].value)  # no variation, so chance agreement is total
    assert same["ac1"].value == 1.0
    assert same["observed"].value == 1.0
    assert same["observed"].low < 0.5  # two questions prove little
    assert same["prevalence_2"].high > 0.5
    with pytest.raises(BeyondError, match="at least two answers"):
        agreement(np.array([[1], [2]]))
    with pytest.raises(BeyondError, match="clusters"):
        agreement(np.array([[1, 1], [2, 0]]), clusters=np.array([1]))
