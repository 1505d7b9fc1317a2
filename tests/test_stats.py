"""Intervals and lines against scipy, every rule by which a claim holds, and how often each rule is wrong:
data with no effect and with a known one, drawn by seed."""
import numpy as np, pandas as pd, pytest
from scipy import stats

from dlmech.run import DlmechError
from dlmech.stats import (all_of, comparison_verdict, corrected, describe_answer, describe_effect,
                          describe_growth, describe_mean, describe_verdicts, FAILS, fit_line, fit_power,
                          grows_linearly, hardly_depends, HOLDS, holm, interval, judge, judge_values, MARGIN,
                          n_to_decide, OPEN, rank_correlation, slopes, t_power, trend, with_controls)

KS = np.repeat([3, 5, 10, 20, 40, 60, 80, 100], 3)


# ---- against other implementations

def test_the_line_is_that_of_another_implementation():
    rng = np.random.default_rng(0)
    for n in (3, 5, 24):
        x = rng.choice([3, 5, 10, 20, 40, 60, 80, 100], n, replace=n > 8).astype(float)
        y = .05 + .004*x + .02*rng.standard_normal(n)
        line, known, t = fit_line(x, y), stats.linregress(x, y), stats.t.ppf(.975, n-2)
        assert np.allclose([line.a, line.b, line.r2, line.b_within, line.a_within],
                           [known.intercept, known.slope, known.rvalue**2, t*known.stderr,
                            t*known.intercept_stderr], rtol=1e-5)
    v = rng.standard_normal(7)
    assert np.isclose(interval(v)[1], stats.t.interval(.95, 6, v.mean(), stats.sem(v))[1] - v.mean())


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        line = fit_line(KS, .05 + .004*KS + .03*rng.standard_normal(len(KS)))
        inside += abs(line.b - .004) < line.b_within
    assert .92 < inside / 400 < .98


def test_the_power_is_that_of_another_fit_and_its_interval_holds_it():
    from scipy.optimize import curve_fit
    rng, inside = np.random.default_rng(2), 0
    for i in range(200):
        y = .1 * KS**.4 + .05*rng.standard_normal(len(KS))
        f = fit_power(KS, y)
        inside += f.low <= .4 <= f.high
        if i < 5:
            (a, b), _ = curve_fit(lambda K, a, b: a * K**b, KS, y, (.1, .4))
            assert np.allclose([f.a, f.b], [a, b], atol=2e-3)
    assert .91 < inside / 200 < .985


def test_too_few_points_are_an_error():
    for x, y in (([3, 5], [0, 1]), ([3, 3, 3], [0, 1, 2])):
        with pytest.raises(DlmechError, match='at least three points'): fit_line(x, y)
        with pytest.raises(DlmechError, match='at least three points'): fit_power(x, y)
    with pytest.raises(DlmechError, match='at least two layers'):
        trend(pd.DataFrame(dict(seed=[0], layer=[1], v=[1.])), 'v', 1)


def test_a_mean_is_described_with_its_interval():
    assert describe_mean([1, 2, 3]) == '2.000 ± 2.484'
    assert describe_mean([.5]) == '0.500'
    assert describe_mean([np.nan, np.nan]) == 'none'
    assert np.isnan(interval([.5])[1])


def test_a_verdict_is_the_t_test_of_scipy():
    rng = np.random.default_rng(3)
    for n in (2, 3, 8):
        v = rng.standard_normal(n) + .5
        found, known = judge_values(v, null=.2), stats.ttest_1samp(v, .2)
        assert np.isclose(found.p, known.pvalue)
        assert np.allclose([found.low, found.high], known.confidence_interval(.95))
    assert [rank_correlation(v) for v in ([1, 2, 5], [3, 2, 1], [1, 1, 1])] == [1, -1, 0]
    assert np.isclose(rank_correlation([1, 3, 2, 2]), stats.spearmanr(range(4), [1, 3, 2, 2]).statistic)


def test_the_correction_is_holms():
    ps = [.01, .04, .03, .005]
    assert np.allclose(holm(ps), [.03, .06, .06, .02])                     # printed in many books
    assert holm([]).tolist() == []
    assert np.allclose(holm([.5, .9]), [1, 1])
    assert np.allclose(holm([.02, np.nan, .03]), [.04, np.nan, .04], equal_nan=True)


# ---- what each rule says

def test_an_interval_decides():
    assert [judge(e, .01, 30, 'filters', null=1.).answer for e in (1.1, .9, 1.01)] == [HOLDS, FAILS, OPEN]
    assert [judge(e, .01, 30, 'filters', null=1., sign=-1).answer for e in (1.1, .9)] == [FAILS, HOLDS]
    assert judge(9., .01, 1, 'training seeds').answer == OPEN              # one seed decides nothing
    assert judge(1., 0., 3, 'training seeds').answer == HOLDS
    assert judge(0., 0., 3, 'training seeds').answer == OPEN
    assert describe_effect(judge_values([.5])) == '0.5 (one training seed: no interval)'
    assert describe_answer(judge_values([.5])) == f'{OPEN} (one training seed; 2 would be the least)'
    assert describe_effect(judge_values([1, 2, 3], 'draws')).endswith('over 3 draws')
    v = judge_values([.1, .3, -.1, .2])
    assert describe_answer(v) == f'{OPEN} ({n_to_decide(v.effect / np.std([.1, .3, -.1, .2], ddof=1))} '\
                                 'training seeds would)'


def test_every_part_of_a_claim_must_hold():
    up, down, unsure, one = (judge_values(v) for v in ([1, 1.1, 1.2], [-1, -1.1, -1.2], [1, -1, .5], [1]))
    for parts, answer in (([up, up], HOLDS), ([up, unsure], OPEN), ([unsure, down], FAILS),
                          ([up, one], OPEN), ([one, one], OPEN)):
        assert all_of(parts).answer == answer
    assert all_of([up, unsure]).needed == unsure.needed
    assert all_of([up, up]).p == up.p                                      # no correction to hold
    assert np.isclose(all_of([up, down]).p, 2 * down.p)                    # but to fail
    assert np.isnan(all_of([one, one]).p)


def test_claims_told_together_are_corrected():
    v = judge(2.4, 1., 1000, 'filters')
    assert v.answer == HOLDS
    assert {w.answer for w in corrected({i: v for i in range(4)}).values()} == {OPEN}
    none = judge_values([1.])
    assert corrected(dict(a=v, b=none))['a'].answer == HOLDS               # what is no test does not count


def test_a_trend_runs_over_seeds():
    def of(*seeds):
        return pd.DataFrame([dict(seed=s, layer=n, v=v) for s, row in enumerate(seeds)
                             for n, v in enumerate(row, 1)])
    rising = of([1, 2, 3], [0, 1, 2.5], [1, 2, 2.8])
    assert np.allclose(slopes(rising, 'v'), [1, 1.25, .9])
    assert trend(rising, 'v', 1)['verdict'] == HOLDS
    assert trend(rising, 'v', -1)['verdict'] == FAILS
    assert trend(rising, 'v', 1)['steps'] == '6 of 6'
    assert trend(of([1, 2, 3]), 'v', 1)['verdict'] == OPEN
    assert trend(of([1, 2, 3], [3, 2, 1], [1, 3, 2]), 'v', 1)['verdict'] == OPEN


def test_a_control_that_shows_the_same_takes_the_claim_away():
    own = pd.Series([.3, .31, .33])
    assert with_controls(dict(trained=own)).answer == HOLDS
    less, same, more = own - [.2, .21, .19], own + [.01, -.01, .005], own + [.2, .21, .19]
    assert with_controls(dict(trained=own, untrained=less)).answer == HOLDS
    assert with_controls(dict(trained=own, untrained=less, shuffled=same)).answer == OPEN
    assert with_controls(dict(trained=own, untrained=less, shuffled=more)).answer == FAILS
    assert with_controls(dict(trained=-own, untrained=less - 1), -1).answer == FAILS
    assert with_controls(dict(trained=own, untrained=less[:1])).answer == OPEN  # one pair of seeds
    assert len(with_controls(dict(trained=own, untrained=less.rename(lambda s: s + 9))).parts) == 1


def test_growth_is_linear_if_it_is_straight_and_nothing_else():
    K = np.array([3, 5, 10, 20, 40, 100])
    assert grows_linearly(K, .01 + .005*K).answer == HOLDS
    assert grows_linearly(K, .005*K).answer == HOLDS                       # a power of exponent 1
    assert grows_linearly(K, .1 + .1*np.log(K)).answer == FAILS
    assert grows_linearly(K, .1 * K**.5).answer == FAILS
    assert grows_linearly(K, .9 - .005*K).answer == FAILS                  # straight, but down
    unsure = grows_linearly(K, .02 + .003*K + .06 * np.array([1, -1, 1, -1, 1, -1]))
    assert unsure.answer == OPEN
    assert 'points would decide' in describe_growth(unsure)
    assert 'in AICc the line is ' in describe_growth(unsure)


def test_a_value_hardly_depends_on_K_if_its_exponent_is_surely_small():
    noise = .01 * np.resize([1, -1, 0, 1, 0, -1, -1], len(KS))
    for e, answer in ((0, HOLDS), (.05, HOLDS), (.2, FAILS), (-.2, FAILS)):
        assert hardly_depends(KS, KS**e + noise).answer == answer
    assert hardly_depends(KS, KS**.2 + noise, falls_only=True).answer == HOLDS
    assert hardly_depends(KS, KS**-.2 + noise, falls_only=True).answer == FAILS
    assert hardly_depends(KS, KS**MARGIN + noise).answer == OPEN           # at the margin itself
    assert hardly_depends(KS, noise).answer == OPEN                        # an excess that is none
    assert hardly_depends([3, 10, 100], [1, 2, 1]).answer == OPEN          # 0.1 did not ask for an interval
    assert hardly_depends(KS, 2. + 0*KS).answer == HOLDS


def test_a_list_of_claims_is_told_in_a_sentence():
    claims = pd.DataFrame([['A', HOLDS], ['B', f'{OPEN} (7 draws would)'], ['C', OPEN], ['D', FAILS]],
                          columns=['claim', 'verdict'])
    assert describe_verdicts(claims) == ('Of 4 claims **1 holds** (A), **1 fails** (D), **2 are not decided '
                                         'at this size** (B; C).')
    assert describe_verdicts(claims[1:2]) == 'Of 1 claims **1 is not decided at this size** (B).'


def test_a_difference_counts_if_it_exceeds_its_interval():
    told = [comparison_verdict(d, .01, 2) for d in (.011, .01, 0, -.01, -.011)]
    assert told == ['ahead', 'undecided', 'undecided', 'undecided', 'behind']
    assert comparison_verdict(.5, float('nan'), 1) == 'one run'


# ---- how often each rule is wrong, and how often it finds what is there

RUNS = 600
TOLERANCE = 3 * (.05 * .95 / RUNS)**.5  # three standard errors of a rate of 0.05


def rates(rule, n: int = RUNS, seed: int = 0) -> dict[str, float]:
    "How often a rule gives each answer, on data that it draws from a generator."
    rng = np.random.default_rng(seed)
    answers = [rule(rng) for _ in range(n)]
    return {a: answers.count(a) / n for a in (HOLDS, FAILS, OPEN)}


def layered(rng, slope: float, seeds: int = 3, layers: int = 5) -> pd.DataFrame:
    "Layers of some seeds: a slope, seeds that differ in level, and noise at every layer."
    v = .5*rng.standard_normal((seeds, 1)) + .1*rng.standard_normal((seeds, layers)) + slope*np.arange(layers)
    return pd.DataFrame([dict(seed=s, layer=n, v=v[s, n]) for s in range(seeds) for n in range(layers)])


@pytest.mark.parametrize('n', [2, 3, 10])
def test_a_mean_without_an_effect_is_told_wrongly_as_often_as_stated(n):
    found = rates(lambda rng: judge_values(rng.standard_normal(n)).answer)
    assert found[HOLDS] + found[FAILS] < .05 + TOLERANCE
    assert found[OPEN] > .95 - TOLERANCE


@pytest.mark.parametrize('delta', [.5, 1., 2.])
def test_the_n_that_would_decide_finds_the_effect_four_times_in_five(delta):
    n = n_to_decide(delta)
    assert t_power(delta, n) >= .8 > t_power(delta, n - 1)
    found = rates(lambda rng: judge_values(delta + rng.standard_normal(n)).answer)
    assert abs(found[HOLDS] - t_power(delta, n)) < 4 * (.8 * .2 / RUNS)**.5
    assert found[FAILS] < .01


def test_a_trend_that_is_none_is_told_wrongly_as_often_as_stated_and_one_that_is_is_found():
    """0.1 counted steps: three seeds without a trend were `in part` once in eight; here a twentieth, both
    sides together."""
    none = rates(lambda rng: trend(layered(rng, 0.), 'v', 1)['verdict'], 300)
    assert none[HOLDS] + none[FAILS] < .05 + TOLERANCE * 2**.5
    assert rates(lambda rng: trend(layered(rng, 0., seeds=1), 'v', 1)['verdict'], 50)[OPEN] == 1
    some = rates(lambda rng: trend(layered(rng, .2), 'v', 1)['verdict'], 100)
    assert some[HOLDS] > .9
    assert rates(lambda rng: trend(layered(rng, .2), 'v', -1)['verdict'], 100)[FAILS] > .9


def against(rng, more: float, control: float) -> str:
    "A trained network's slope over 3 seeds beside those of two controls."
    def slope(mean): return pd.Series(mean + .02*rng.standard_normal(3))
    return with_controls(dict(trained=slope(more), untrained=slope(control), shuffled=slope(control))).answer


def test_a_trend_that_controls_show_as_well_is_not_told_as_learning():
    same = rates(lambda rng: against(rng, .3, .3))
    assert same[HOLDS] < .025 + TOLERANCE
    assert same[HOLDS] + same[FAILS] < .05 + TOLERANCE
    assert rates(lambda rng: against(rng, .3, .1), 200)[HOLDS] > .8
    assert rates(lambda rng: against(rng, .1, .3), 200)[FAILS] > .8


def test_many_claims_without_an_effect_are_told_wrongly_as_often_as_one():
    def any_told(rng) -> str:
        told = corrected({i: judge_values(rng.standard_normal(5)) for i in range(8)})
        return HOLDS if {v.answer for v in told.values()} != {OPEN} else OPEN
    assert rates(any_told)[HOLDS] < .05 + TOLERANCE
    def alone(rng) -> str:
        told = [judge_values(rng.standard_normal(5)).answer for _ in range(8)]
        return HOLDS if set(told) != {OPEN} else OPEN
    assert rates(alone, 200)[HOLDS] > .2                                    # why they are corrected


def grown(curve, noise: float):
    "A rule's data: the curve at every K, three draws."
    return lambda rng: grows_linearly(KS, curve(KS) + noise*rng.standard_normal(len(KS))).answer


def test_growth_is_told_linear_if_it_is_and_not_if_another_curve_made_it():
    n = 150
    assert rates(grown(lambda K: .2 + 0*K, .03), n)[HOLDS] < .025 + .04            # no growth
    for noise in (.01, .05, .1):
        assert rates(grown(lambda K: .1*np.log(K), noise), n)[HOLDS] < .05
        assert rates(grown(lambda K: .06*K**.5, noise), n)[HOLDS] < .05
        assert rates(grown(lambda K: .05 + .005*K, noise), n)[FAILS] < .05
    assert rates(grown(lambda K: .1*np.log(K), .03), n)[FAILS] > .9
    assert rates(grown(lambda K: .06*K**.5, .02), n)[FAILS] > .9
    assert rates(grown(lambda K: .1 + .005*K, .02), n)[HOLDS] > .9


def test_sameness_is_told_as_often_as_it_may_be_at_the_margin_and_found_within():
    def rule(exponent, noise, **how):
        return lambda rng: hardly_depends(KS, 1.2*KS**exponent + noise*rng.standard_normal(len(KS)),
                                          **how).answer
    n = 200
    for edge in (-MARGIN, MARGIN):
        at = rates(rule(edge, .1), n)
        assert at[HOLDS] < .025 + .04
        assert at[FAILS] < .025 + .04
    assert rates(rule(0., .1), n)[HOLDS] > .9
    assert rates(rule(.3, .1), n)[FAILS] > .9
    assert rates(rule(0., 2.), n)[HOLDS] < .05                                     # noise is no sameness
    assert rates(rule(-MARGIN, .1, falls_only=True), n)[HOLDS] < .025 + .04
    assert rates(rule(.3, .1, falls_only=True), n)[HOLDS] > .9
