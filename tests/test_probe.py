"Heads that mean one thing: the minimum of the papers' objective, from any start, in bounded memory."
import json, shutil

import numpy as np, pandas as pd, pytest, torch
from scipy.optimize import minimize
from torch import nn

import dlmech
from dlmech import probe
from dlmech.batches import Batches
from dlmech.filter import fields, find_clusters, label_means, normalised
from dlmech.measurement import measure_run
from dlmech.model import start
from dlmech.probe import (cached_maps, centred, exact_heads, GRADIENT, groups, heads_for, joined, Maps,
                          solve_head, WEIGHT_DECAY)
from dlmech.run import DlmechError, DlmechWarning, read_csv, read_tensors
from helpers import blobs, killed, small_net, TINY


def maps_of(x: torch.Tensor, y: torch.Tensor, path: str = 'a') -> Maps:
    "Maps (N, C, h, w) and labels as a layer's."
    maps = Maps(path, len(x), x)
    maps.add(x, y)
    return maps


def correlated(n: int, K: int, shape=(6, 2, 2), seed: int = 0) -> Maps:
    "Positive maps with a few strong common directions, as a layer's are; labels that overlap."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    mixed = torch.randn(n, 24, generator=g) @ torch.randn(24, 24, generator=g)
    centres = torch.randn(K, 24, generator=g)[y]
    return maps_of((mixed + 2 * centres).relu().reshape(n, *shape), y)


def test_two_starts_find_the_same_fields_and_clusters(trained_digits):
    net, _, data = trained_digits
    paths = ['layers.3', 'layers.4', 'layers.5']
    maps = cached_maps(net, dict.fromkeys(paths, 2000), Batches(data.train, 100, shuffle=True, shift=4), 2)
    means = label_means(net, paths, Batches(data.test, 100), 10)
    for p in paths:
        assert maps[p].n == 2000
        begin = torch.randn(10, *maps[p].shape, generator=torch.Generator().manual_seed(3))
        one, other = (fields(means[p], solve_head(maps[p], 10, s).weight(p)) for s in (None, begin))
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()
        assert find_clusters(normalised(one)).cluster.equal(find_clusters(normalised(other)).cluster)


def test_it_is_the_minimum_that_scipy_finds():
    maps, K = correlated(300, 4), 4
    heads = solve_head(maps, K)
    about, W = heads.about['a'], heads.weight('a').double().flatten(1)
    assert about['head_gradient'] <= GRADIENT
    assert about['head_evaluations'] > 5
    assert about['head_images'] == 300
    X, y = (maps.x.double() * maps.unit).numpy(), maps.y.numpy()
    def loss(w):
        w = w.reshape(K, -1)
        z = X @ w.T
        z -= z.max(1, keepdims=True)
        log = z - np.log(np.exp(z).sum(1, keepdims=True))
        error = np.exp(log)
        error[np.arange(len(y)), y] -= 1
        value = -log[np.arange(len(y)), y].mean() + WEIGHT_DECAY / 2 * (w**2).sum()
        return value, (error.T @ X / len(y) + WEIGHT_DECAY * w).ravel()
    found = minimize(loss, np.zeros(W.numel()), jac=True, method='L-BFGS-B',
                     options=dict(maxiter=5000, ftol=1e-15, gtol=1e-10)).x
    assert (W - torch.from_numpy(found).reshape(W.shape)).norm() <= 2 * GRADIENT * W.norm()
    assert loss(W.numpy().ravel())[0] <= loss(found)[0] + 1e-9


def test_fewer_images_than_inputs_have_the_same_minimum(monkeypatch):
    "It is looked for in the span of the images' maps, and is that of the whole space."
    wide = correlated(11, 3)                     # 24 inputs
    within = solve_head(wide, 3)
    monkeypatch.setattr(probe, '_solve_within', lambda maps, W, decay: (W, 0))
    direct = solve_head(wide, 3)
    for heads in (within, direct): assert heads.about['a']['head_gradient'] <= GRADIENT
    assert (within.weight('a') - direct.weight('a')).norm() <= 2 * GRADIENT * direct.weight('a').norm()


def test_every_way_there_ends_at_the_same_head(monkeypatch):
    "From an eighth of the images or from zero; by Newton's steps, or without them by L-BFGS alone."
    maps = correlated(600, 4)
    usual = solve_head(maps, 4)
    monkeypatch.setattr(probe, 'COARSE', 100)    # six images are no start
    from_zero = solve_head(maps, 4)
    monkeypatch.setattr(probe, '_newton', lambda descent: None)
    without = solve_head(maps, 4)
    assert len({heads.about['a']['head_evaluations'] for heads in (usual, from_zero, without)}) == 3
    for heads in (usual, from_zero, without):
        assert heads.about['a']['head_gradient'] <= GRADIENT
        assert (heads.weight('a') - usual.weight('a')).norm() <= 2 * GRADIENT * usual.weight('a').norm()


def test_products_with_the_curvature_are_those_of_autograd(monkeypatch):
    maps, g = correlated(60, 3), torch.Generator().manual_seed(1)
    W, V = (torch.randn(3, 24, generator=g).double() / 10 for _ in range(2))
    x, y = maps.x.double() * maps.unit, maps.y
    loss = lambda W: nn.functional.cross_entropy(x @ W.T, y) + WEIGHT_DECAY / 2 * W.square().sum()
    expected = torch.autograd.functional.hvp(loss, W, V)[1]
    nearly = probe.Curvature(maps, W, WEIGHT_DECAY)
    assert len(nearly.maps.x) < 60               # who adds next to nothing is left out
    assert (nearly(V) - expected).norm() < .05 * expected.norm()
    monkeypatch.setattr(probe, 'CURVED', 1.)
    assert torch.allclose(probe.Curvature(maps, W, WEIGHT_DECAY)(V), expected, rtol=1e-4, atol=1e-5)


def test_its_weights_sum_to_zero_and_others_are_projected():
    assert solve_head(correlated(200, 3), 3).weight('a').sum(0).abs().max() < 1e-5
    weight = torch.randn(4, 3, 2, 2) + 1
    assert centred(weight).sum(0).abs().max() < 1e-5
    assert torch.allclose(centred(weight) - centred(weight + 7), torch.zeros(()), atol=1e-5)
    given = probe.heads_of({'5': torch.randn(4, 8, 5, 5) + .1})
    m = dlmech.measure(small_net(), blobs(40, 4), blobs(40, 4, 1), heads=given)
    assert m['5'].head.sum(0).abs().max() < 1e-5
    assert m.layers.heads.tolist() == ['given']
    assert m.layers.projected.tolist() == [True]
    solved = dlmech.measure(small_net(), blobs(40, 4), blobs(40, 4, 1), layers=['5'])
    assert solved.layers.heads.tolist() == ['exact']
    assert solved.layers.head_images.tolist() == [40]
    assert solved.layers.projected.tolist() == [False]


def test_what_is_not_solved_is_said(monkeypatch):
    monkeypatch.setattr(probe, 'EVALUATIONS', 3)
    about = solve_head(correlated(200, 3), 3).about['a']
    assert about['head_evaluations'] == 3
    assert about['head_gradient'] > GRADIENT


def test_memory_is_bounded(monkeypatch):
    "Of a layer that does not fit, as many images as do; layers that do not fit together, one after another."
    net, data, passes = small_net().eval(), Batches(blobs(200, 4), 20, shuffle=True), []
    cache = probe.cached_maps
    def watched(net, room, *args):
        passes.append({p: cache(net, room, *args)[p].x.numel() * 2 for p in room})
        return cache(net, room, *args)
    monkeypatch.setattr(probe, 'cached_maps', watched)
    monkeypatch.setattr(probe, 'PASS_BYTES', 40_000)
    heads = joined(exact_heads(net, ['3', '5'], data, 4, bound=30_000))   # 6x7x7 and 8x5x5 numbers an image
    assert [list(room) for room in passes] == [['3'], ['5']]
    assert all(29_000 < n <= 30_000 for room in passes for n in room.values())
    assert {p: a['head_images'] for p, a in heads.about.items()} == {'3': 51, '5': 75}
    assert groups(dict(a=3, b=3, c=9, d=1), 6) == [['a', 'b'], ['c'], ['d']]


def test_maps_that_are_no_numbers_are_refused():
    net = small_net()
    nn.init.constant_(net[4].weight, float('nan'))
    with pytest.raises(DlmechError, match='^5: its maps are not all finite numbers'):
        list(exact_heads(net, ['5'], Batches(blobs(40, 4), 20), 4))
    assert not any(m._forward_hooks for m in net.modules())


def test_large_and_tiny_maps_keep_their_head():
    "Half precision ends at 65,504 and at 6e-8; maps are kept in units."
    x, y = correlated(200, 3).x.float().reshape(200, 6, 2, 2), torch.arange(200) % 3
    for size in (1e9, 1e-9):
        maps = maps_of(x * size, y)
        assert maps.x.isfinite().all()
        assert ((maps.x.float() * maps.unit).reshape(x.shape) / size - x).abs().max() < 1e-3 * x.max()
    assert solve_head(maps_of(x * .1, y), 3).about['a']['head_gradient'] <= GRADIENT


def test_a_dead_layer_has_the_head_zero():
    heads = solve_head(maps_of(torch.zeros(20, 2, 1, 1), torch.arange(20) % 3), 3)
    assert heads.weight('a').abs().max() == 0


JOB = '''
import sys
from dlmech.model import start
from dlmech.probe import heads_for
heads_for(start(arch='vgg6', dataset='digits', d=2, epochs=1, runs=sys.argv[1]), [3, 4, 5])
'''


def test_heads_go_on_layer_by_layer(tmp_path):
    "Killed after the second head of three: two lie there and stay, one is found, all get their row."
    killed(JOB, tmp_path, after=(2, 'dlmech.probe', 'write_heads'))
    folder, = tmp_path.iterdir()
    there = {p.name: p.stat().st_mtime_ns for p in folder.glob('head-*')}
    assert sorted(there) == ['head-3.safetensors', 'head-4.safetensors']
    assert not (folder/'probe.csv').exists()
    run = start(**TINY, layer='all', runs=str(tmp_path))
    net, heads = heads_for(run, [3, 4, 5])
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob('head-*') if p.name in there} == there
    table = read_csv(folder/'probe.csv')
    assert table.layer.tolist() == [3, 4, 5]
    assert (table.head_gradient <= GRADIENT).all()
    assert (table.head_images >= probe.HEAD_IMAGES).all()
    assert read_tensors(folder/'head-5.safetensors')[0]['weight'].equal(heads.weight('layers.5'))
    assert not (table.train_success_rate < .2).any()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small run with ridge heads."
    run = start(**TINY, layer=5, heads='ridge', runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(run)
    return run


def test_other_heads_have_a_folder_of_their_own(run):
    assert run.path.name == 'vgg6-digits-d2-fast1-seed0-ridge'
    assert json.loads((run.path/'config.json').read_text())['heads'] == 'ridge'
    row = dlmech.open(run.path).layers.iloc[0]
    assert (row.heads, row.projected, row.head_images) == ('ridge', False, len(run.data.train))


@pytest.mark.parametrize('recipe, name', [('fast', 'vgg6-digits-d2-fast1-seed0'),
                                          ('ridge', 'vgg6-digits-d2-ridge1-seed0')])
def test_a_folder_of_the_last_version_opens_and_is_left_alone(run, tmp_path, recipe, name):
    "Its config.json has no heads, its tables say nothing of them."
    old = shutil.copytree(run.path, tmp_path/name)
    config = json.loads((old/'config.json').read_text()) | dict(recipe=recipe)
    for key in ('heads', 'format', 'data_digest'): del config[key]
    (old/'config.json').write_text(json.dumps(config))
    table = pd.read_csv(old/'layers.csv').drop(columns=list(probe.FACTS))
    table.to_csv(old/'layers.csv', index=False)
    shutil.rmtree(old/'.manifest')
    with pytest.warns(DlmechWarning, match='was made before digests were kept'): m = dlmech.open(old)
    pd.testing.assert_frame_equal(m.layers, table, check_dtype=False)
    assert m.source.run.params.heads == recipe
    assert m[5].fields.shape == (16, 10, 10)
    assert m.net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    if recipe == 'fast':
        with pytest.raises(DlmechError, match='holds fast heads of dlmech 0.1') as e:
            start(**TINY, layer=5, runs=str(tmp_path))
        assert '\n' not in str(e.value)


def test_the_papers_heads_come_close(trained_digits):
    "20 epochs of the papers' SGD are near the minimum, nearer than 2; their clusters are mostly the same."
    net, _, data = trained_digits
    batches = Batches(data.train, 100, shuffle=True)
    exact = joined(exact_heads(net, ['layers.5'], batches, 10)).weight('layers.5')
    far = []
    for epochs in (2, 20):
        r = probe.ProbeRecipe(epochs, 100, .01, .975, WEIGHT_DECAY, .975)
        heads = probe.train_heads(net, ['layers.5'], batches, 10, r)
        assert heads.about['layers.5']['heads'] == 'paper'
        far.append(float((centred(heads.weight('layers.5')) - exact).norm() / exact.norm()))
    assert far[1] < far[0]
    assert far[1] < .9
