"""The claims told on networks: made-up tables whose answers are known, tables with no effect at all, and the
script that fills the table, on a tiny network."""
import sys

import numpy as np, pandas as pd, pytest

from dlmech.run import ParameterError, read_csv
from dlmech.stats import HOLDS, judge_values, OPEN
from dlmech.study.claims import (ARITHMETIC, BARE, causal_means, claim_figure, CLAIMS, CONTRADICTED,
                                 describe_findings, difference, estimate, EVIDENCE, filter_intervals, finding,
                                 findings_grid, NAMED, parts_of, put_claims, read_claims, tell, tell_network,
                                 WITHOUT)
from helpers import run, TOP

LAYERS = np.arange(1, 6)
OF = {c.column + c.how: c for c in CLAIMS}


def network(seeds: int = 3, control: str = '', seed: int = 0, spread: float = .02, **columns) -> pd.DataFrame:
    """Rows of a network whose columns at the layers are given, as a function of the layer's number, with a
    spread over seeds and layers, and an interval over filters of half-width 0.05."""
    rng, rows = np.random.default_rng(seed), []
    for s in range(seeds):
        for n in LAYERS:
            row = dict(network='net', data='cifar10', K=10, control=control, seed=s, layer=n, filters=100,
                       test_images=10_000, learned=.97)
            for name, of in columns.items():
                v = of(n) + spread * rng.standard_normal()
                row |= {name: v, f'{name}_low': v - .05, f'{name}_high': v + .05}
            rows.append(row)
    return pd.DataFrame(rows)


def found(rows: pd.DataFrame) -> dict[str, str]:
    "The finding of each claim by its text."
    told = tell_network(rows)
    return dict(zip(told.claim, told.finding))


NOISE, SNR, SR = OF['noiseslope'].text, OF['snrslope'].text, OF['success_rateslope'].text


@pytest.mark.parametrize('seeds', [1, 3])
def test_noise_that_falls_as_its_null_does_is_arithmetic(seeds):
    alike = network(seeds, noise=lambda n: 18 - 2*n, noise_null=lambda n: 19 - 2*n,
                    noise_excess=lambda n: -1.)
    assert found(alike) == {NOISE: ARITHMETIC}
    faster = network(seeds, noise=lambda n: 18 - 3*n, noise_null=lambda n: 19 - 2*n,
                     noise_excess=lambda n: -1. - n)
    assert found(faster) == {NOISE: EVIDENCE}
    rising = network(seeds, noise=lambda n: 3.*n, noise_null=lambda n: 2.*n, noise_excess=lambda n: 1.*n)
    assert found(rising) == {NOISE: CONTRADICTED}
    flat = network(seeds, noise=lambda n: 3., noise_null=lambda n: 3., noise_excess=lambda n: 0., seed=4)
    assert found(flat) == {NOISE: OPEN}


def test_one_seed_speaks_of_its_own_filters_or_not_at_all():
    rows = network(1, snr=lambda n: 1 + n/5, snr_null=lambda n: 1., snr_excess=lambda n: n/5)
    told = tell_network(rows)
    assert told.finding[told.claim == SNR].tolist() == [EVIDENCE]
    assert told.measured[0].endswith('over 500 filters of one network')
    bare = rows[[c for c in rows if not c.endswith(('_low', '_high'))]]
    assert set(tell_network(bare).finding) == {OPEN}
    assert tell_network(bare).measured[0].endswith('(one training seed: no interval)')
    three = network(3, snr=lambda n: 1 + n/5, snr_null=lambda n: 1., snr_excess=lambda n: n/5)
    assert tell_network(three).measured[0].endswith('over 3 training seeds')


def test_the_success_rate_is_held_against_controls_or_nothing():
    own = network(3, success_rate=lambda n: .5 + .08*n)
    assert found(own) == {SR: BARE}
    falls = network(3, 'untrained', seed=1, success_rate=lambda n: .5 - .02*n)
    assert found(pd.concat([own, falls])) == {SR: EVIDENCE}
    same = network(3, 'untrained', seed=1, success_rate=lambda n: .3 + .08*n)
    assert found(pd.concat([own, same])) == {SR: WITHOUT}
    more = network(3, 'shuffled', seed=2, success_rate=lambda n: .3 + .2*n)
    assert found(pd.concat([own, falls, more])) == {SR: WITHOUT}
    not_learned = more.assign(learned=.1)                     # so it is no control
    assert found(pd.concat([own, falls, not_learned])) == {SR: EVIDENCE}
    told = tell_network(pd.concat([own, falls, not_learned]))
    assert 'shuffled is no control (it learned 0.10)' in told.against[0]
    pair = pd.concat([t[t.seed == 0] for t in (own, falls)])  # one of each: over the test images
    assert found(pair) == {SR: EVIDENCE}


def test_a_filter_that_does_depend_on_its_input_is_no_single_output():
    text = OF['column_sharelast'].text
    assert found(network(column_share=lambda n: .95 - .1*n)) == {text: CONTRADICTED}
    assert found(network(column_share=lambda n: .9)) == {text: EVIDENCE}
    less = pd.concat([network(column_share=lambda n: .8),
                      network(3, 'untrained', 1, column_share=lambda n: .9)])
    assert found(less) == {text: WITHOUT}


def test_a_control_without_the_column_is_not_asked():
    own = network(3, causal_auc_zero=lambda n: .8)
    bare = network(3, 'untrained', 1, success_rate=lambda n: .3)
    assert list(found(pd.concat([own, bare])).values()) == [EVIDENCE]
    some = network(3, 'untrained', 1, causal_auc_zero=lambda n: .5).assign(success_rate=.3)
    some.loc[some.seed > 0, 'causal_auc_zero'] = np.nan        # one pair of seeds: over their filters
    told = tell_network(pd.concat([own, some]))
    assert told.finding.tolist() == [EVIDENCE]
    assert 'filters of one network' in told.against[0]


def test_a_control_is_compared_on_the_layers_that_both_have():
    "The mean of all layers of one against the last ones of the other would be a difference of layers."
    own = network(3, spread=0., causal_auc_zero=lambda n: .4 + .1*n)
    control = network(3, 'untrained', spread=0., causal_auc_zero=lambda n: .4 + .1*n)
    control.loc[control.layer < max(LAYERS), 'causal_auc_zero'] = np.nan
    assert difference(own, control, 'causal_auc_zero', 'mean', 1).effect == pytest.approx(0)
    some = tell_network(own.assign(causal_auc_zero=own.causal_auc_zero.where(own.layer == max(LAYERS))))
    assert some.layers.tolist() == [1]


def test_a_causal_auc_is_held_against_chance(tmp_path):
    rows = network(1, causal_auc_zero=lambda n: .8, causal_auc_mean=lambda n: .5, seed=3)
    assert list(found(rows).values()) == [EVIDENCE, OPEN]
    table = tmp_path/'causal-3.csv'
    assert causal_means(table) == {}
    pd.DataFrame(dict(filter=[0, 1, 2, 3], auc_zero=[.7, .8, .9, np.nan])).to_csv(table, index=False)
    means = causal_means(table)
    assert means['causal_auc_zero'] == pytest.approx(.8)
    assert means['causal_auc_zero_high'] - .8 == pytest.approx(4.303 * .1 / 3**.5, rel=1e-3)


def test_what_is_not_in_the_table_is_not_asked():
    assert found(network(noise=lambda n: 18 - 2*n)) == {}     # an old table, without the null
    assert parts_of(network(1)[lambda t: t.layer == 1].assign(success_rate=.5), CLAIMS[0]) == {}
    assert tell(read_claims(TOP/'there-is-none.csv')).empty
    nothing = tell(pd.DataFrame(columns=['network', 'data', 'K']))
    assert describe_findings(nothing) == 'No network has been measured yet.'
    assert findings_grid(nothing).empty


def test_the_claims_of_a_network_are_corrected_together():
    "A trend whose p is just below 0.05 is told alone, and no longer beside another claim."
    v = judge_values([.12, .28, .2])
    assert .025 < v.p < .05
    rows = network(3, spread=0., success_rate=lambda n: 0.)
    rows['success_rate'] += rows.seed.map({0: .12, 1: .28, 2: .2}) * rows.layer
    assert found(rows) == {SR: BARE}
    rng = np.random.default_rng(0)
    assert found(rows.assign(column_share=.5 + rng.normal(0, .01, len(rows))))[SR] == OPEN


def test_tables_without_an_effect_are_told_as_evidence_as_seldom_as_stated():
    "Five claims, three seeds, a null and a control, nothing in any of them."
    rng, wrong = np.random.default_rng(5), 0
    names = 'success_rate', 'noise', 'noise_null', 'snr', 'snr_null', 'column_share'
    columns = dict.fromkeys(names, lambda n: .5) | dict(noise_excess=lambda n: 0., snr_excess=lambda n: 0.)
    for _ in range(60):
        own, other = (network(3, control, int(rng.integers(10**9)), **columns)
                      for control in ('', 'untrained'))
        findings = found(pd.concat([own, other]))
        assert len(findings) == 5
        wrong += any(f != OPEN for f in findings.values())
    # sentence and test, each at 0.05 on each network: at most one in ten, and three standard errors
    assert wrong / 60 < .1 + 3 * (.1 * .9 / 60)**.5


def test_an_effect_of_three_standard_deviations_is_found():
    hits = [found(network(3, seed=i, spread=.02, snr=lambda n: 1 + .05*n, snr_null=lambda n: 1.,
                          snr_excess=lambda n: .05*n))[SNR] == EVIDENCE for i in range(40)]
    assert np.mean(hits) > .8


def test_estimates_are_those_of_their_definition():
    rows = network(1, spread=0., v=lambda n: 2.*n)
    e = estimate(rows, 'v', 'slope')
    se = .05 / 1.984217                                       # t of 99 degrees of freedom
    assert e.effect == pytest.approx(2)
    assert e.error == pytest.approx(se / 10**.5, rel=1e-4)    # layers' distances from the middle, squared: 10
    assert estimate(rows, 'v', 'mean').error == pytest.approx(se / 5**.5, rel=1e-4)
    assert estimate(rows, 'v', 'last').error == pytest.approx(se, rel=1e-4)
    sr = estimate(rows.assign(success_rate=.9), 'success_rate', 'last')
    assert sr.error == pytest.approx((.9 * .1 / 10_000)**.5)
    assert sr.over == 'test images'
    assert difference(rows, rows[rows.layer > 9], 'v', 'slope', 1).answer == OPEN
    two = difference(network(2, v=lambda n: n), network(3, v=lambda n: .1*n), 'v', 'slope', 1)
    assert (two.n, two.answer) == (2, HOLDS)


def test_intervals_over_filters_are_those_of_scipy():
    from scipy import stats
    rng = np.random.default_rng(1)
    filters = pd.DataFrame(dict(n_clusters=rng.integers(0, 3, 40), noise=rng.normal(9, 2, 40)))
    filters['n_labels'] = filters.n_clusters * 2
    got = filter_intervals(filters)
    known = stats.t.interval(.95, 39, filters.noise.mean(), stats.sem(filters.noise))
    assert (got['noise_low'], got['noise_high']) == pytest.approx(known)
    assert got['cluster_size_low'] == pytest.approx(2)        # every cluster has two labels
    assert 'n_clusters_null_low' not in got


def test_a_finding_needs_the_sentence_and_the_test():
    yes, no, unsure = (judge_values(v) for v in ([1, 1.1, 1.2], [-1, -1.1, -1.2], [1, -1, .5]))
    assert finding(no, yes, None) == CONTRADICTED
    assert finding(yes, no, None, [yes]) == WITHOUT
    assert finding(yes, no, unsure) == CONTRADICTED           # less than its null
    assert finding(unsure, unsure, yes) == OPEN


def test_it_is_told_in_words_and_figures():
    rows = network(noise=lambda n: 18 - 2*n, noise_null=lambda n: 19 - 2*n, noise_excess=lambda n: -1.,
                   success_rate=lambda n: .5 + .08*n)
    told = tell(pd.concat([rows, rows.assign(network='other', data='cifar100')]))
    text = describe_findings(told)
    assert text.startswith('2 claims on 2 networks: net on cifar10 (K = 10, 3 seeds), other on cifar100')
    assert f'**2 {ARITHMETIC}**' in text
    assert f'- *{NOISE}*: **{ARITHMETIC}** on net on cifar10 (-2' in text
    grid = findings_grid(told)
    assert grid.shape == (2, 2)
    assert grid.loc[NOISE].tolist() == [ARITHMETIC] * 2
    axes = claim_figure(rows, 'noise', 'n').axes
    assert [line.get_linestyle() for line in axes[0].lines] == ['-', '--']
    with pytest.raises(ParameterError, match='the table has no nothing'): claim_figure(rows, 'nothing', '')


def test_the_script_measures_fills_the_table_and_goes_on(tmp_path):
    table = tmp_path/'claims.csv'
    command = [sys.executable, TOP/'experiments'/'claims.py', 'tiny', 'tiny-untrained', '--runs',
               tmp_path/'runs', '--table', table]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    got = read_claims(table)
    assert got.groupby(['control', 'seed']).layer.apply(list).to_dict() == {('', 0): [1, 2, 3, 4, 5],
                                                                          ('untrained', 0): [1, 2, 3, 4, 5]}
    layers = read_csv(tmp_path/'runs'/'vgg6-digits-d2-fast1-seed0'/'layers.csv')
    assert np.allclose(got[got.control == ''].noise, layers.noise)
    assert (got.test_images == 359).all()
    made = {f: f.stat().st_mtime_ns for f in (tmp_path/'runs').rglob('*.safetensors')}
    put_claims([dict(network='other', data='x', control='', seed=0, layer=1)], table)
    assert run(*command).returncode == 0
    assert len(read_claims(table)) == 11                      # each row in place of its own, the other kept
    assert {f: f.stat().st_mtime_ns for f in made} == made
    weights = tmp_path/'runs'/'vgg6-digits-d2-fast1-seed0'/'model.safetensors'
    done = run(*command[:3], '--seeds', 4, '--weights', f'4={weights}', '--runs', tmp_path/'more', '--table',
               table)
    assert done.returncode == 0, done.stderr[-2000:]
    got = read_claims(table)
    assert (got.seed == 4).sum() == 5
    assert not list((tmp_path/'more').rglob('train.csv'))     # nothing was trained
    done = run(*command[:2], 'resnet20-cifar10', '--files', tmp_path, '--runs', tmp_path/'more')
    assert 'claims: files: there is no ' in done.stderr
    assert set(NAMED) > {'vgg6', 'vgg16', 'resnet56-cifar10', 'resnet56-cifar100'}
