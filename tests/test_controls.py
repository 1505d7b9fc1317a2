"""Controls: networks that learned nothing, other thresholds, images drawn again; and the notebook that puts
the claims to the test."""
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

import dlmech.study.controls as controls
from dlmech.arch import get_model
from dlmech.batches import Batches
from dlmech.datasets import get_data
from dlmech.filter import clusters, label_means
from dlmech.measurement import measure_run
from dlmech.model import start, success_rate, train_or_load
from dlmech.probe import FACTS, heads_for
from dlmech.run import clusters_of, generator, ParameterError, read_csv, read_json
from dlmech.stats import FAILS, HOLDS, OPEN
from dlmech.study.controls import (at_threshold, came_back, controls_in, draw_groups, fields_of_groups,
                                   group_count, grouped, layer_claims, learned_by, learned_of,
                                   measure_control, MEMORISE, memorise, MEMORISED, NETWORKS, reproduce,
                                   reproduction_files, resampled, return_rates, rows_of, shown_of, shuffled,
                                   stability, stable_rows, start_control, THRESHOLDS, trend_against, trends,
                                   winner_shares)
from dlmech.trunk import Trunk
from helpers import papermill, TINY, TOP


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return str(tmp_path_factory.mktemp('runs'))

@pytest.fixture(scope='module')
def run(runs):
    r = start_control('trained', **TINY, runs=runs)
    measure_run(r, [1, 2, 3, 4, 5])
    return r


def test_shuffled_labels_say_nothing_of_the_images(runs):
    data = get_data('digits')
    s = shuffled(data, 3)
    for was, now in ((data.train, s.train), (data.valid, s.valid)):
        assert torch.equal(was.images, now.images)
        assert torch.equal(was.labels.bincount(), now.labels.bincount())
        assert not torch.equal(was.labels, now.labels)
    assert torch.equal(s.test.labels, data.test.labels)
    assert torch.equal(shuffled(data, 3).train.labels, s.train.labels)
    assert not torch.equal(shuffled(data, 4).train.labels, s.train.labels)
    got = torch.stack([(s.train.labels == k)[data.train.labels == k].float().mean() for k in range(10)])
    assert got.max() < .25  # of each label about a tenth keep it
    r = start_control('shuffled', shown=20, **TINY | dict(epochs=2), runs=runs)
    assert r.path.parent.name == 'shuffled'
    assert success_rate(train_or_load(r), Batches(r.data.test, 100)) < .3
    assert torch.equal(r.data.train.labels, data.train.labels)  # phases 2 and 3 get the true ones


def test_shuffled_labels_are_learned_by_heart_or_the_table_says_how_far(runs, tmp_path):
    "Without augmentation, until 0.95 of the images shown have the label that was dealt to them."
    asked = TINY | dict(d=4)
    run = start_control('shuffled', shown=50, **asked, runs=runs)
    about = read_json(run.file('control.json'))
    assert about == dict(network='shuffled', shown=50, bound=MEMORISED, learned=learned_by(run))
    images = shown_of(shuffled(run.data, 0).train, 50, 0)
    assert success_rate(train_or_load(run), Batches(images, 50)) == about['learned'] >= MEMORISED
    log = read_csv(run.file('train.csv'))
    assert (log.by_heart[:-1] < MEMORISED).all()  # it ends as soon as it has them
    assert not run.file('checkpoint.safetensors').exists()
    other = start_control('shuffled', shown=50, **asked, seed=1, runs=runs)
    assert not torch.equal(train_or_load(other).fc[-1].weight, train_or_load(run).fc[-1].weight)
    assert np.isnan(learned_by(start_control('untrained', **asked, runs=runs)))
    net = get_model('vgg6', 10, 2)
    short = memorise(net, run.data.train, torch.device('cpu'), 0, tmp_path, replace(MEMORISE, epochs=1))
    assert short < MEMORISED


def test_learning_by_heart_goes_on_where_it_was_cut(tmp_path):
    images, cpu = shown_of(shuffled(get_data('digits')).train, 60, 0), torch.device('cpu')
    def learn(name, epochs):
        (tmp_path/name).mkdir(exist_ok=True)
        net = get_model('vgg6', 10, 2)
        memorise(net, images, cpu, 0, tmp_path/name, replace(MEMORISE, epochs=epochs))
        return net.state_dict(), read_csv(tmp_path/name/'train.csv')
    learn('cut', 2)
    (again, log), (whole, known) = learn('cut', 4), learn('whole', 4)
    assert log.epoch.tolist() == known.epoch.tolist() == [1, 2, 3, 4]
    for k, v in whole.items(): assert torch.allclose(v, again[k]), k


def test_a_control_that_has_learned_nothing_is_none():
    rows = pd.DataFrame(dict(network=['trained', 'untrained', 'shuffled'], learned=[.9, np.nan, .103]))
    assert controls_in(rows) == (['untrained'], ['shuffled'])
    assert controls_in(rows.assign(learned=[.9, np.nan, .96])) == (['untrained', 'shuffled'], [])
    assert learned_of(rows, 'shuffled') == .103


def test_another_threshold_from_the_kept_fields_is_that_of_a_new_run(run, runs):
    kept = measure_run(run)
    new = measure_run(start(**TINY, runs=runs, threshold=.5), [2, 5]).layers.set_index('layer')
    for n in (2, 5):
        row = at_threshold(kept[n], .5)
        assert set(row) == set(new.columns) - {'name', 'success_rate', 'winner_dependence', *FACTS}
        for k, v in row.items(): assert np.isclose(v, new[k][n], equal_nan=True), (n, k)
    assert at_threshold(kept[5], .3)['noise'] != at_threshold(kept[5], .5)['noise']


def test_a_layer_is_measured_again_chunk_by_chunk(run, monkeypatch):
    layer = measure_run(run)[4]
    whole = at_threshold(layer, .4)
    import dlmech.filter
    monkeypatch.setattr(dlmech.filter, 'CHUNK', 300)                                 # three filters at a time
    assert len(controls.chunks(len(layer), 100)) > 1
    assert at_threshold(layer, .4) == pytest.approx(whole, nan_ok=True)


def as_sets(cluster):
    return [{frozenset((row == c).nonzero()[:, 0].tolist()) for c in range(int(row.max()) + 1)}
            for row in cluster]

def test_a_cluster_came_back_if_the_same_set_is_there():
    g = generator(0)
    for K in (2, 3, 6, 10):
        a, b = (clusters(torch.rand(200, K, K, generator=g) < .8) for _ in range(2))
        found = came_back(a, b)
        for f, (sets, other) in enumerate(zip(as_sets(a), as_sets(b))):
            expected = set().union(*(s for s in sets if s in other))
            assert set(found[f].nonzero()[:, 0].tolist()) == expected


def test_drawing_groups_of_one_image_is_drawing_images(run):
    """The bootstrap of fields against its definition: every image's own field, drawn with replacement,
    averaged."""
    net, heads = heads_for(run, [4])
    least = int(run.data.test.labels.bincount().min())
    index = torch.cat([(run.data.test.labels == k).nonzero()[:least, 0] for k in range(10)])
    images = run.data.test.at(index)                                                 # as many of each label
    each = grouped(images, least)
    assert (each.labels.bincount() == 1).all()
    means = label_means(net, heads.paths, Batches(each, 64), len(each.names))['layers.4']
    of_groups = fields_of_groups(means, heads.weight('layers.4'), least)
    times = draw_groups(10, least, 3, seed=5)
    with Trunk(net, heads.paths) as trunk:
        maps = torch.cat([trunk(x)['layers.4'] for x, _ in Batches(images, 64)]).double()
    own = torch.einsum('bchw,jchw->cbj', maps,
                       heads.weight('layers.4').double()).unflatten(1, (10, least))  # sorted by label
    for t in times:
        drawn = torch.stack([own[:, k].repeat_interleave(t[k], 1).mean(1) for k in range(10)], 1)  # (C, K, K)
        assert torch.allclose(resampled(of_groups, t), drawn, rtol=1e-3, atol=1e-4 * drawn.abs().max())


def test_the_bootstrap_of_groups_has_the_variance_of_a_mean():
    g, n, G = generator(1), 600, 50
    x = torch.randn(1, 1, n, 1, generator=g, dtype=torch.float64)  # fields of n images of one label
    of_groups = x.unflatten(2, (G, n // G)).mean(3)
    means = torch.stack([resampled(of_groups, t).squeeze() for t in draw_groups(1, G, 4000, seed=2)])
    assert abs(means.var() / (x.var() / n) - 1) < .5
    assert abs(means.mean() - x.mean()) < 4 * means.std() / 4000**.5
    assert (draw_groups(3, 7, 5).sum(2) == 7).all()


def test_sure_clusters_are_stable_and_coin_flips_are_not():
    K, G = 3, 40
    M = torch.eye(K, dtype=torch.float64)
    M[0, 1] = M[1, 0] = .9  # {0, 1} far above the threshold
    edge = M.clone()
    edge[0, 1] = .3  # {0, 1} hangs on an element at it
    noise = torch.randn(2, K, G, K, generator=generator(0), dtype=torch.float64)
    of_groups = torch.stack([M, edge])[:, :, None].repeat(1, 1, G, 1) + .05 * noise
    table = return_rates(of_groups, torch.full((K, G), 10), draw_groups(K, G, 300))
    sure, other = (table[table['filter'] == f] for f in (0, 1))
    assert sure['size'].tolist() == [2, 1]
    assert (sure.back == 1).all()
    assert .02 < other.back.iloc[0] < .98
    assert other.back.iloc[-1] == 1               # label 2 is on its own in either


def test_stability_counts_the_clusters_of_phase_3(run):
    kept = stability(run, [2, 5], B=10)
    for n in (2, 5):
        table, mine = read_csv(run.tables/f'filters-{n}.csv'), kept[kept.layer == n]
        sizes = {f: [len(c) for c in clusters_of(row)] for f, row in table.iterrows()}
        assert mine.groupby('filter')['size'].apply(list).to_dict() == {f: s for f, s in sizes.items() if s}
    rows = stable_rows(kept)
    assert rows.clusters.sum() == len(kept)
    assert (rows.stable <= rows.clusters).all()
    assert rows.stable.sum() == (kept.back >= .9).sum()


def test_of_few_images_of_a_label_no_stability_is_told(run):
    kept = stability(run, [5], B=3, most=4)
    assert len(kept)
    assert kept.back.isna().all()
    assert stable_rows(kept).stable.isna().all()


def test_a_table_of_other_resamples_is_made_anew(runs, monkeypatch):
    asked, drawn = dict(TINY, runs=str(runs)), []
    monkeypatch.setattr(controls, 'stability', lambda *a: drawn.append(a[2]) or stability(*a))
    for n in (5, 5, 6): assert (measure_control('trained', n, **asked)[1].resamples == n).all()
    assert drawn == [5, 6]


def test_groups_are_of_equal_size_and_no_label_is_without(run):
    s = run.data.test
    G = group_count(s)
    assert G == s.labels.bincount().min()
    assert group_count(s, 4) == 4
    sizes = grouped(s, 4).labels.bincount(minlength=40).reshape(10, 4)
    assert torch.equal(sizes.sum(1), s.labels.bincount())
    assert (sizes.amax(1) - sizes.amin(1) <= 1).all()


def test_a_reproduction_goes_on_where_it_was_cut(runs, tmp_path, monkeypatch):
    asked = dict(seeds=2, networks=['trained', 'untrained'], resamples=5, folder=str(tmp_path), **TINY,
                 runs=runs)
    real, calls = controls.measure_control, []
    def cut(*a, **k):
        if len(calls) == 2: raise KeyboardInterrupt
        calls.append(a)
        return real(*a, **k)
    monkeypatch.setattr(controls, 'measure_control', cut)
    with pytest.raises(KeyboardInterrupt): reproduce(**asked)
    files = reproduction_files(tmp_path, **TINY)
    assert files[0].name == 'reproduction-vgg6-digits-d2-fast1-layers.csv'
    assert set(read_csv(files[0]).network) == {'trained', 'untrained'}
    assert set(read_csv(files[0]).seed) == {0}
    monkeypatch.setattr(controls, 'measure_control', real)
    made = {p: p.stat().st_mtime_ns for p in Path(runs).rglob('control-*.csv')}
    table, kept = reproduce(**asked)
    assert set(table.seed) == set(kept.seed) == {0, 1}
    assert len(table) == 4 * 5 * (len(THRESHOLDS) + 1)
    assert {p: p.stat().st_mtime_ns for p in made} == made
    layers = read_csv(start(**TINY, runs=runs).tables/'layers.csv')  # the rows are those of layers.csv
    columns = ['success_rate', 'snr', 'noise', 'cluster_size']
    mine = rows_of(table)[lambda t: t.seed == 0].sort_values('layer')
    assert np.allclose(mine[columns], layers[columns], atol=1e-5)


def test_what_cannot_be_is_refused():
    for change, said in ((dict(networks=['random']),
                          "network: there is no 'random'; it may be trained, untrained, shuffled"),
                         (dict(seeds=0), 'seeds: 0 is not possible'),
                         (dict(seed=1), "parameters: there is no 'seed'")):
        with pytest.raises(ParameterError) as e: reproduce(**TINY | change)
        assert str(e.value).startswith(said)


def test_a_control_takes_no_weights_that_are_given(runs):
    with pytest.raises(ParameterError, match='weights: a network that is untrained draws its own'):
        weights = TOP/'dlmech'/'zoo'/'vgg6-cifar10-d64-fast-seed0.safetensors'
        start_control('untrained', **TINY | dict(weights=str(weights)), runs=runs)


def known_tables():
    """Three layers of three networks with three seeds each: SR rises in the trained one alone, SNR more in it
    than in the untrained one, the noise falls in all alike; `shuffled` has learned nothing."""
    rows, shift = [], {0: 0., 1: .01, 2: -.01}
    for network, rise in (('trained', 1.), ('untrained', 0.), ('shuffled', 2.)):
        rows += [dict(network=network, images='test', threshold=.3, seed=seed, layer=n, learned=.1,
                      pixels=4 if n < 3 else 1, winner_share=.95 if rise else .7,
                      success_rate=.5 + .1*n*rise + n*more, snr=1 + n*rise + .5*n + n*more,
                      noise=10 - n - n*more*(1 + (network == 'untrained') * (3*seed - 2)))
                 for seed, more in shift.items() for n in (1, 2, 3)]
    return pd.DataFrame(rows)


def test_trends_are_judged_against_the_controls_that_are_some():
    table = known_tables()
    t = trends(table, 'success_rate', 1)
    assert t.index.tolist() == NETWORKS
    assert t.verdict.to_dict() == dict(trained=HOLDS, untrained=OPEN, shuffled=HOLDS)
    assert t.steps['trained'] == '6 of 6'
    assert trend_against(table, 'snr', 1).answer == HOLDS
    assert trend_against(table, 'noise', -1).answer == OPEN
    learned = table.assign(learned=.97)           # with a control that has memorised and rises more
    assert trend_against(learned, 'snr', 1).answer == FAILS


def test_claims_about_known_layers():
    claims = layer_claims(known_tables())
    assert claims.verdict.str.startswith(HOLDS).tolist() == [True, True, False]
    assert claims.verdict[2].startswith(OPEN)
    assert claims['measured'][0].startswith('0.6 → 0.7 → 0.8; slope 0.1 [')
    assert 'beyond untrained' in claims['measured'][0]
    assert 'shuffled is no control: it learned 0.10' in claims['measured'][0]
    assert claims.claim[2] == 'noise per filter falls with the layers, its null not in this table'
    null = known_tables().assign(noise_excess=lambda t: -t.layer * (t.network == 'trained') * (1 + t.seed/50),
                                 snr_excess=0.)
    again = layer_claims(null)
    assert again.claim[2] == 'noise per filter falls with the layers, beyond its null'
    assert again.verdict.str.startswith(HOLDS).tolist() == [True, False, True]
    assert winner_shares(known_tables()).columns.tolist() == [1, 2]  # in layer 3 it is 1 by construction


def test_the_notebook_of_the_claims_runs_on_what_it_is_asked_for(tmp_path):
    "By papermill: three networks, three seeds; learning by heart is done before, on few images."
    asked = TINY | dict(labels='0,3,7')
    for seed in range(3): start_control('shuffled', shown=9, **asked, seed=seed, runs=str(tmp_path/'runs'))
    given = (f'{k}={v}' for k, v in (asked | dict(runs=tmp_path/'runs')).items())
    done = papermill('05_reproduction', tmp_path/'out.ipynb', *given, cwd=tmp_path, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    table = read_csv(tmp_path/'runs'/'reproduction-vgg6-digits-labels0+3+7-d2-fast1-layers.csv')
    assert set(table.network) == set(NETWORKS)
    assert set(table.seed) == {0, 1, 2}
    text = (tmp_path/'out.ipynb').read_text()
    for claim in ('success rate rises', 'SNR rises', 'noise per filter falls', 'error grows about linearly'):
        assert claim in text
