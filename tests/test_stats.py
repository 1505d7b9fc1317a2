"Intervals and lines against scipy, and every rule by which a claim holds."
import numpy as np, pandas as pd, pytest

from dlmech.run import DlmechError
from dlmech.stats import (comparison_verdict, describe_mean, describe_verdicts, fit_line, grows_linearly,
                          hardly_depends, HOLDS, interval, NOT, one_output, PART, small_clusters, t_factor,
                          trend_verdict, with_controls)


def test_the_line_is_that_of_another_implementation():
    stats = pytest.importorskip('scipy.stats')                                     # scikit-learn brings it
    rng = np.random.default_rng(0)
    for n in (3, 5, 24):
        x = rng.choice([3, 5, 10, 20, 40, 60, 80, 100], n, replace=n > 8).astype(float)
        y = .05 + .004*x + .02*rng.standard_normal(n)
        line, known, t = fit_line(x, y), stats.linregress(x, y), stats.t.ppf(.975, n-2)
        assert np.allclose([line.a, line.b, line.r2, line.b_within, line.a_within],
                           [known.intercept, known.slope, known.rvalue**2, t*known.stderr,
                            t*known.intercept_stderr], rtol=1e-5)
    for n in range(1, 40):
        assert np.isclose(t_factor(n), stats.t.ppf(.975, n), rtol=1e-5)
        assert np.isclose(t_factor(n, .5), stats.t.ppf(.75, n), rtol=1e-5)
    v = rng.standard_normal(7)
    assert np.isclose(interval(v)[1], stats.t.interval(.95, 6, v.mean(), stats.sem(v))[1] - v.mean(),
                      rtol=1e-5)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng, K, inside = np.random.default_rng(1), np.repeat([3, 5, 10, 20, 40, 60, 80, 100], 3), 0
    for _ in range(400):
        line = fit_line(K, .05 + .004*K + .03*rng.standard_normal(len(K)))
        inside += abs(line.b - .004) < line.b_within
    assert .92 < inside / 400 < .98


def test_too_few_points_are_an_error():
    for x, y in (([3, 5], [0, 1]), ([3, 3, 3], [0, 1, 2])):
        with pytest.raises(DlmechError, match='at least three points'): fit_line(x, y)


def test_a_mean_is_described_with_its_interval():
    assert describe_mean([1, 2, 3]) == '2.000 ± 2.484'
    assert describe_mean([.5]) == '0.500'
    assert describe_mean([np.nan, np.nan]) == 'none'
    assert np.isnan(interval([.5])[1])


def test_a_trend_is_asked_of_every_step_and_every_seed():
    up = [[1, 2, 3], [0, 1, 5]]
    assert trend_verdict(up, 1) == HOLDS
    assert trend_verdict(up, -1) == NOT
    assert trend_verdict([[1, 2, 3], [0, 0, 5]], 1) == PART      # a step that stays is none
    assert trend_verdict([[1, 2, 3], [1, 2, 1]], 1) == NOT       # one seed ends where it began
    assert trend_verdict([[1, np.nan, 3]], 1) == PART
    assert trend_verdict([[1, 2, np.nan]], 1) == NOT


def test_growth_is_linear_if_it_is_sure_straight_and_no_logarithm():
    K = np.array([3, 5, 10, 20, 40, 100])
    noise = np.array([1, -1, 1, -1, 1, -1])
    assert grows_linearly(K, .01 + .005*K)[2] == HOLDS
    assert grows_linearly(K, np.log(K))[2] == PART               # it grows, but the other curve fits better
    line, log, verdict = grows_linearly(K, .004*K + .08*noise)
    assert line.b - line.b_within > 0
    assert line.r2 > log.r2
    assert line.r2 < .9
    assert verdict == PART
    assert grows_linearly(K, .0005*K + .1*noise)[2] == NOT       # the slope's interval holds 0


def test_an_exponent_is_judged_by_its_size_and_the_snr_by_its_fall():
    K = np.array([3, 10, 30, 100])
    for e, verdict in ((.09, HOLDS), (.11, PART), (.24, PART), (.26, NOT)):
        assert hardly_depends(K, K**e)[2] == verdict
        assert hardly_depends(K, K**-e)[2] == verdict
        assert hardly_depends(K, K**-e, falls_only=True)[2] == verdict
        assert hardly_depends(K, K**e, falls_only=True)[2] == HOLDS
    assert hardly_depends([3, 10, 100], [1, 2, 1])[2] == HOLDS   # no trend, if no fit either


def test_clusters_are_small_and_winners_alone_in_every_seed_and_layer():
    assert [small_clusters(v) for v in ([2.9, 1], [2.9, 3], [4.9, 1], [5, 1])] == [HOLDS, PART, PART, NOT]
    assert [one_output(v) for v in ([.9, 1], [.89, 1], [.5, 1], [.49, 1])] == [HOLDS, PART, PART, NOT]


def test_a_verdict_says_which_controls_show_the_same():
    of = pd.Series(dict(trained=PART, untrained=PART, shuffled=PART))
    assert with_controls(of) == 'holds in part, and without learning too (untrained, shuffled)'
    assert with_controls(dict(trained=HOLDS, untrained=PART)) == HOLDS
    assert with_controls(dict(trained=NOT, untrained=NOT)) == NOT
    claims = pd.DataFrame([['A', with_controls(of)], ['B', HOLDS], ['C', PART]], columns=['claim', 'verdict'])
    assert describe_verdicts(claims) == ('Of 3 claims **1 holds** (B), **2 hold in part** (A, and without '
                                         'learning too (untrained, shuffled); C).')


def test_a_difference_counts_if_it_exceeds_its_interval():
    assert [comparison_verdict(d, .01, 2) for d in (.011, .01, 0, -.01, -.011)] == ['ahead', 'level', 'level',
                                                                                    'level', 'behind']
    assert comparison_verdict(.5, float('nan'), 1) == 'one run'
