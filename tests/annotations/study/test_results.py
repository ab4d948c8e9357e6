"""Results of made-up studies against planted effects, plain means, and statsmodels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

from annotations.errors import BeyondError
from annotations.study.analysis import bootstrap, interval
from annotations.study.answers import StudyAnswers, study_answers
from annotations.study.power import Plan, simulate
from annotations.study.preregistration import Hypothesis
from annotations.study.results import Results, analyse
from tests.annotations.study.made_up import CHANCE, answers, items, plan, study


def joined(found: StudyAnswers) -> pd.DataFrame:
    frame = found.answers.merge(found.items, on="item")
    return frame[frame["role"] == "work"].assign(yes=lambda f: (f["answer"] == "yes").astype(float))


def test_measures_are_the_means_that_they_say() -> None:
    found = study(plan=plan())
    results = analyse(found, plan())
    frame = joined(found)
    wrong = (frame["kind"] == "sham") | (frame["verdict"] == "rejected")
    right = (frame["verdict"] == "accepted") & ~wrong
    for arm in ("none", "feature", "example"):
        mine = frame["arm"] == arm
        for measure, rows, value in (
            ("agreement", mine & (frame["kind"] == "adversarial"), frame["yes"]),
            ("sham_acceptance", mine & (frame["kind"] == "sham"), frame["yes"]),
            ("over_acceptance", mine & wrong, frame["yes"]),
            ("over_rejection", mine & right, 1 - frame["yes"]),
        ):
            share = results.share(arm, measure)  # type: ignore[arg-type]
            assert share.value == pytest.approx(value[rows].mean())
            assert (share.answers, share.raters) == (rows.sum(), 12)
            assert share.low is not None
            assert share.high is not None
            assert share.low <= value[rows].mean() <= share.high
    # Adversarial items that label sets reject are in both measures: 6 of 12, with 4 shams.
    assert results.share("none", "over_acceptance").items == 10
    assert results.raters == {"none": 12, "feature": 12, "example": 12}
    assert (results.answers, results.checks, results.practice) == (36 * 20, 36 * 4, 0)


def test_planted_effects_are_found_and_corrected_as_statsmodels_does() -> None:
    found = study(plan=plan())
    results = analyse(found, plan())
    for arm, versus in (("feature", "none"), ("example", "none"), ("example", "feature")):
        contrast = results.contrast(arm, versus)
        assert contrast is not None
        truth = CHANCE[arm]["adversarial"] - CHANCE[versus]["adversarial"]
        assert contrast.low - 0.03 <= truth <= contrast.high + 0.03
        assert contrast.p is not None
        assert contrast.p < 0.05
        assert contrast.hypothesis is not None
    tested = [c for c in results.contrasts if c.hypothesis]
    corrected = multipletests([c.p for c in tested], method="holm")[1]
    assert [c.p_holm for c in tested] == pytest.approx(list(corrected))
    # Over-acceptance is no hypothesis of the plan, so it is exploratory.
    extra = results.contrast("example", "none", "over_acceptance")
    assert extra is not None
    assert (extra.p_holm, extra.hypothesis) == (None, None)
    assert extra.low > 0


def test_a_hypothesis_of_another_measure_is_tested_in_the_family() -> None:
    guard = Hypothesis(name="G", text="…", measure="over_acceptance", arm="none", versus="example")
    chosen = plan(hypotheses=[*plan().hypotheses[:1], guard])
    results = analyse(study(plan=chosen), chosen)
    tested = {c.hypothesis: c for c in results.contrasts if c.hypothesis}
    assert set(tested) == {"H1", "G"}
    # Turned round, the same contrast.
    assert (tested["G"].arm, tested["G"].versus) == ("example", "none")
    p = [tested["H1"].p, tested["G"].p]
    assert [tested["H1"].p_holm, tested["G"].p_holm] == pytest.approx(
        list(multipletests(p, method="holm")[1])
    )


def test_gee_is_that_of_statsmodels_formulas() -> None:
    found = study(plan=plan())
    frame = joined(found)
    frame = frame[frame["kind"] == "adversarial"].sort_values("rater")
    fit = smf.gee(
        "yes ~ C(arm, Treatment('none'))",
        "rater",
        frame,
        family=sm.families.Binomial(),
        cov_struct=sm.cov_struct.Exchangeable(),
    ).fit()
    ours = {o.arm: o for o in analyse(found, plan()).odds_ratios}
    for name, value in fit.params.items():
        arm = next((a for a in ours if f"T.{a}]" in str(name)), None)
        if arm is not None:
            assert ours[arm].log_odds == pytest.approx(value, abs=1e-4)
            assert (ours[arm].low, ours[arm].high) == pytest.approx(tuple(fit.conf_int().loc[name]), abs=1e-4)
    assert set(ours) == {"feature", "example"}


def test_the_interval_is_that_of_two_way_clustered_errors() -> None:
    """Of statsmodels' least squares on the arm, errors clustered by rater and by item."""
    design = Plan(agreement=(0.4, 0.55, 0.6), raters=25, items=40, rater_sd=0.6, item_sd=1.0)
    for seed in range(5):
        responses = simulate(design, np.random.default_rng(seed))
        means = bootstrap(responses, resamples=4000, seed=seed)
        arm = responses.arm[responses.rater]
        dummies = np.column_stack([np.ones(len(arm)), arm == 1, arm == 2]).astype(float)
        fit = sm.OLS(responses.value, dummies).fit(
            cov_type="cluster",
            cov_kwds={"groups": np.column_stack([responses.rater, responses.item])},
        )
        for number in (1, 2):
            low, high = interval(responses, means, {number: 1.0, 0: -1.0})
            half = float(student.ppf(0.975, 39)) * fit.bse[number]
            assert (low + high) / 2 == pytest.approx(fit.params[number], abs=0.01)
            assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_few_raters_are_covered_too() -> None:
    design = Plan(agreement=(0.35, 0.5, 0.6), raters=5, items=20, rater_sd=0.6, item_sd=1.0)
    inside, runs = 0, 400
    for seed in range(runs):
        responses = simulate(design, np.random.default_rng([5, seed]))
        means = bootstrap(responses, resamples=300, seed=seed)
        low, high = interval(responses, means, {1: 1.0, 0: -1.0})
        inside += low <= 0.15 <= high
    assert 0.93 <= inside / runs <= 0.99


# Exclusions -------------------------------------------------------------------------------------------------


def test_exclusions_are_applied_as_planned_and_counted() -> None:
    asked = items()
    given = answers(asked, CHANCE, plan=plan())
    careless = (given["rater"] == "r-none-0") & (given["role"] == "attention")
    given.loc[careless, "answer"] = given.loc[careless, "answer"].map({"yes": "no", "no": "yes"})
    half = (given["rater"] == "r-none-1") & (given["role"] == "attention")
    given.loc[half, "answer"] = "maybe"  # half right: below 0.7
    given = given[~((given["rater"] == "r-feature-0") & (given["role"] == "attention"))]
    given = given[~((given["rater"] == "r-feature-1") & (given["role"] == "work") & (given["position"] > 3))]
    fast = (given["rater"] == "r-example-0") & (given["role"] == "work")
    given.loc[fast, "seconds"] = 0.2
    given.loc[given.index[(given["rater"] == "r-example-1") & (given["position"] == 1)], "seconds"] = 0.1
    given.loc[given.index[(given["rater"] == "r-example-2") & (given["position"] == 1)], "seconds"] = 500.0
    rules = {
        "attention_floor": 0.7,
        "minimum_attention": 2,
        "minimum_answers": 10,
        "fast_median_seconds": 0.5,
        "fast_answer_seconds": 0.3,
        "slow_answer_seconds": 100,
    }
    chosen = plan(exclusions=rules)
    given["preregistration"] = chosen.sha256
    results = analyse(study_answers(asked, given), chosen)
    assert {(e.reason, e.arm): (e.raters, e.answers) for e in results.excluded} == {
        ("attention", "none"): (2, 40),
        ("few attention checks", "feature"): (1, 20),
        ("few answers", "feature"): (1, 3),
        ("fast rater", "example"): (1, 20),
        ("fast answer", "example"): (0, 1),
        ("slow answer", "example"): (0, 1),
    }
    assert [results.share(arm).raters for arm in results.arms] == [10, 10, 11]
    assert [share.raters for share in results.everyone] == [12, 12, 12]
    kept = study_answers(asked, given).answers
    kept = kept[~kept["rater"].isin(["r-none-0", "r-none-1"]) & (kept["arm"] == "none")]
    frame = kept.merge(asked, on="item")
    frame = frame[frame["kind"] == "adversarial"]
    assert results.share("none").value == pytest.approx((frame["answer"] == "yes").mean())


@pytest.mark.parametrize(("policy", "value"), [("no", 0.5), ("half", 0.625), ("missing", 2 / 3)])
def test_maybe_counts_as_planned(policy: str, value: float) -> None:
    asked = items(adversarial=4, clean=1, sham=1, checks=0)
    rows = [
        {"rater": f"{arm}{r}", "item": item, "arm": arm, "answer": answer}
        for arm in ("none", "feature")
        for r in range(3)
        for item, answer in zip(asked["item"], ["yes", "yes", "no", "maybe", "maybe", "no"])
    ]
    chosen = plan(
        analysis={"maybe": policy, "resamples": 100, "permutations": 99},
        exclusions={"attention_floor": 0, "minimum_attention": 0},
    )
    results = analyse(study_answers(asked, pd.DataFrame(rows)), chosen)
    assert results.share("none").value == pytest.approx(value)
    assert results.maybe == {"none": 6, "feature": 6, "example": 0}
    assert results.share("none", "over_rejection").value == {"no": 0.0, "half": 0.5, "missing": None}[policy]


# Invariance -------------------------------------------------------------------------------------------------


def test_names_and_order_change_nothing() -> None:
    found = study(plan=plan())
    shuffled = found.answers.sample(frac=1, random_state=3)
    shuffled["rater"] = shuffled["rater"].map(lambda name: f"x-{name[::-1]}")
    again = study_answers(found.items.sample(frac=1, random_state=4), shuffled)
    assert analyse(again, plan()).to_json() == analyse(found, plan()).to_json()


def test_results_are_read_back() -> None:
    results = analyse(study(plan=plan()), plan())
    assert Results.model_validate_json(results.to_json()) == results


# Descriptions -----------------------------------------------------------------------------------------------


def test_groups_are_shares_of_their_items() -> None:
    found = study(plan=plan())
    results = analyse(found, plan())
    frame = joined(found)
    kinds = {group.name: group for group in results.by_kind}
    assert set(kinds) == {"adversarial", "clean", "sham"}
    for kind, group in kinds.items():
        for share in group.shares:
            rows = frame[(frame["kind"] == kind) & (frame["arm"] == share.arm)]
            assert share.value == pytest.approx(rows["yes"].mean())
    asked = found.items[found.items["kind"] == "adversarial"].sort_values("confidence")
    assert [(g.low_edge, g.high_edge) for g in results.by_confidence] == [
        (asked["confidence"].iloc[a], asked["confidence"].iloc[b]) for a, b in ((0, 3), (4, 7), (8, 11))
    ]
    assert [group.class_index for group in results.by_class] == [0, 1, 2, 3, 4]
    assert sum(s.answers for g in results.by_class for s in g.shares) == 36 * 12
    times = {t.arm: t for t in results.times}
    mine = frame.loc[frame["arm"] == "none", "seconds"]
    assert times["none"].median == pytest.approx(mine.median(), abs=1e-6)


# Edges ------------------------------------------------------------------------------------------------------


def only(arms: dict[str, int], answer: str | None = None) -> StudyAnswers:
    """A study with so many raters in each arm, all giving one answer if told so."""
    found = study(plan=plan())
    keep = pd.concat(
        [
            found.answers[found.answers["rater"].isin([f"r-{arm}-{i}" for i in range(n)])]
            for arm, n in arms.items()
        ]
    )
    if answer is not None:
        keep.loc[keep["role"] == "work", "answer"] = answer
    return study_answers(found.items, keep)


def test_an_empty_arm_is_said_and_the_others_analysed() -> None:
    results = analyse(only({"none": 4, "feature": 4}), plan())
    assert any("Nobody answered in the arm example" in note for note in results.notes)
    assert any("H2 (example against none) cannot be tested" in note for note in results.notes)
    assert [(c.arm, c.versus) for c in results.contrasts if c.measure == "agreement"] == [("feature", "none")]
    assert results.share("example").value is None
    # The two hypotheses that cannot be tested still count in the correction.
    contrast = results.contrast("feature", "none")
    assert contrast is not None
    assert contrast.p is not None
    assert contrast.p_holm == pytest.approx(min(1.0, 3 * contrast.p))


def test_one_rater_has_a_share_and_no_interval() -> None:
    results = analyse(only({"feature": 1}), plan())
    share = results.share("feature")
    assert share.value is not None
    assert (share.low, share.method) == (None, "none")
    assert results.contrasts == ()
    assert any("has one rater" in note for note in results.notes)


def test_raters_who_say_yes_to_everything_are_kept_and_said() -> None:
    results = analyse(only({"none": 4, "feature": 4, "example": 4}, "yes"), plan())
    assert any("12 raters answered yes to everything" in note for note in results.notes)
    share = results.share("none")
    assert (share.value, share.high, share.method) == (1.0, 1.0, "exact")
    assert share.low == pytest.approx(0.025 ** (1 / 4))
    contrast = results.contrast("feature", "none")
    assert contrast is not None
    assert contrast.value == 0.0
    assert contrast.low < 0 < contrast.high
    assert any("all answers" in note for note in results.notes)


def test_everybody_excluded() -> None:
    chosen = plan(exclusions={"minimum_answers": 1000})
    found = study(plan=chosen)
    results = analyse(found, chosen)
    assert all(share.value is None for share in results.measures["agreement"])
    assert sum(e.raters for e in results.excluded) == 36
    assert any("is excluded" in note for note in results.notes)


def mixed_packs() -> None:
    found = study(plan=plan())
    given = found.answers.copy()
    given.loc[:9, "pack"] = "b" * 64
    analyse(study_answers(found.items, given), plan())


def other_plan() -> None:
    analyse(study(plan=plan()), plan(title="Another"))


def nothing() -> None:
    found = study(plan=plan())
    analyse(study_answers(found.items, found.answers[found.answers["role"] == "attention"]), plan())


def odd_arm() -> None:
    analyse(study(plan=plan()), plan(arms=["none", "feature"], hypotheses=[]))


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (mixed_packs, "answers of 2 packs are mixed"),
        (other_plan, "another preregistration"),
        (nothing, "no answer to analyse"),
        (odd_arm, "another preregistration"),
    ],
)
def test_what_does_not_belong_together_is_refused(attempt: Callable[[], None], words: str) -> None:
    with pytest.raises(BeyondError, match=words) as error:
        attempt()
    assert "\n" not in str(error.value)


def test_made_up_answers_are_said_first() -> None:
    assert "made up for a test" in analyse(study(plan=plan()), plan()).notes[0]
    real = plan(made_up=False)
    assert not analyse(study(plan=real, made_up=False), real).made_up
    assert analyse(study(plan=real, made_up=True), real).made_up
