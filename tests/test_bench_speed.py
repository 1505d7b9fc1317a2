"The tables of speed beside other ways: they compare the same thing, and count what they say they count."
import math, sys
from dataclasses import replace

import pandas as pd, pytest, torch
import torch.nn.functional as F

from dlmech.arch import get_model
from dlmech.filter import Responses
from dlmech.pace import times_in_turn
from dlmech.probe import CERTAIN, curvature_root, Maps, WEIGHT_DECAY
from helpers import TOP

sys.path[:0] = [str(TOP/'bench'), str(TOP)]
import limits, peers  # noqa: E402

from bench import parts  # noqa: E402


@pytest.fixture(scope='module')
def tiny():
    "Three layers of a narrow VGG-16, 24 images of 3 labels."
    torch.manual_seed(0)
    return peers.case_of(get_model('vgg16', 3, 2), peers.random_images(24, 3), 3, [1, 4, 13], 10)


@pytest.mark.parametrize('name', [name for name in peers.PEERS if name != 'dlmech'])
def test_every_peer_finds_the_same_fields(tiny, name):
    if name in ('captum', 'torchlens'): pytest.importorskip(name)
    expected = peers.ours(tiny)
    found = peers.PEERS[name](tiny)
    assert list(found) == tiny.paths
    assert peers.difference(found, expected) < 1e-5
    wrong = {p: M.transpose(1, 2) for p, M in found.items()}
    assert peers.difference(wrong, expected) > 1e-2


def test_fewer_images_and_filters_are_scaled(tiny, monkeypatch):
    monkeypatch.setattr(peers, 'CAPTUM_IMAGES', 6)
    small, scale = peers.fewer(tiny, 'captum')
    assert small.images == 6
    assert scale == pytest.approx(24 / 6 * peers.captum_scale(tiny))
    assert peers.fewer(tiny, 'hooks') == (tiny, 1.)
    part, scale = peers.fewer(tiny, 'published shape')
    assert (part.images, scale) == (6, 4.)


def test_captum_is_scaled_by_the_operations_that_all_filters_take():
    pytest.importorskip('captum')
    c = peers.case_of(get_model('vgg16', 3, 8), peers.random_images(4, 3), 3, [2, 12], 4)
    few, every = (peers.counted_flop(lambda n=n: peers.by_captum(c, n)) for n in (peers.CAPTUM_FILTERS, 0))
    assert peers.captum_scale(c) == pytest.approx(every / few, rel=.02)
    passes = [(C + 2) / (peers.CAPTUM_FILTERS + 3) for C in (8, 64)]
    assert every / few > 1.1 * sum(passes) / 2     # layers do not count alike


def test_what_comes_before_the_epochs_is_done_once():
    t = pd.DataFrame(dict(what=['a', '1', '2'], cpu_s=[1., 5., 7.], wall_s=[1., 6., 9.], ratio=[1., 5., 7.],
                          ratio_low=1., ratio_high=1.)).set_index('what')
    found = peers.of_recipe(t, '1', '2')
    row, n = found.loc[f'published recipe, {peers.PAPER.epochs} epochs'], peers.PAPER.epochs
    assert found.index[0] == 'a'
    assert len(found) == 2
    assert (row.cpu_s, row.wall_s, row.ratio) == (3 + 2*n, 3 + 3*n, 3 + 2*n)
    assert math.isnan(row.ratio_low)


def test_heads_of_both_have_the_same_loss(tiny):
    one = replace(tiny, paths=tiny.paths[1:])
    features, y = peers.hook_features(one)
    ours, theirs = peers.exact(one), peers.by_sklearn(1e-6, peers.hook_features, one)
    for p in one.paths:
        a, b = (peers.loss_of(w[p], features[p].flatten(1), y) for w in (ours, theirs))
        assert a <= b + 1e-5
        assert b <= a + 1e-3


def test_heads_grow_side_by_side(monkeypatch):
    monkeypatch.setattr(peers, 'network_and_images', lambda d, N: (
        get_model('vgg16', 10, d), peers.random_images(N, 10), 'random'))
    t = peers.heads_growth({13: [20, 40]}, 2)
    assert t.images.tolist() == [20, 20, 40, 40]
    assert t.ratio[::2].eq(1).all()
    ours, theirs = t.loss[::2].to_numpy(), t.loss[1::2].to_numpy()
    assert (ours <= theirs + 1e-5).all()


def test_memory_is_what_a_call_needs_besides_what_there_is():
    filled = lambda: torch.ones(2**25).sum()     # 128 MiB
    filled()
    assert 110 < peers.peak_mib(filled) < 200
    assert peers.peak_mib(lambda: None) < 20
    with pytest.raises(ZeroDivisionError): peers.rise(lambda: 1 / 0)
    assert math.isnan(peers.peak_mib(lambda: 1 / 0))


def test_labels_grow_with_an_image_of_each():
    assert peers.growing('K', 10).images == peers.growing('K', 100).images == peers.LABELLED


def test_the_loss_is_the_papers_objective():
    f, y, W = torch.randn(9, 4), torch.arange(9) % 3, torch.randn(3, 4)
    expected = F.cross_entropy(f @ W.T, y) + WEIGHT_DECAY / 2 * W.square().sum()
    assert peers.loss_of(W, f, y) == pytest.approx(float(expected), rel=1e-5)


def test_slopes_are_exponents():
    sizes = pd.Series([1., 2., 4.])
    assert peers.slope(sizes, 3 * sizes**2) == pytest.approx(2)
    assert math.isnan(peers.slope(sizes, sizes * 0))


def test_a_childs_peak_is_measured_and_its_failure_is_no_number():
    assert peers.peak_mib(lambda: torch.zeros(2**24)) > 60
    assert peers.peak_mib(lambda: None) < 30
    assert math.isnan(peers.peak_mib(lambda: 1 / 0))


def test_operations_and_bytes_are_those_of_the_arithmetic():
    a, n = torch.eye(20, dtype=torch.float64), 20
    flop, moved = limits.counted(lambda: a @ (a + 1))
    assert flop == {torch.float64: 2 * n**3}
    assert moved == (2 + 3) * 8 * n**2              # the sum reads one and writes one, the product 2 and 1
    assert limits.counted(lambda: a @ a)[1] == 2 * 8 * n**2  # what is read twice is read once
    assert limits.counted(lambda: torch.linalg.cholesky(a))[0][torch.float64] == pytest.approx(n**3 / 3)
    for f in (lambda: a.clone().addmm_(a, a), lambda: torch.addmm(a, a, a),
              lambda: a[None].clone().baddbmm_(a[None], a[None])):
        assert limits.counted(f)[0] == {torch.float64: 2 * n**3}
    solved = limits.counted(lambda: torch.linalg.solve_triangular(a, a[:, :2], upper=True))[0]
    assert solved[torch.float64] == n**2 * 2


def test_steps_take_turns_and_the_first_is_one():
    calls = []
    t = times_in_turn(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), 2)
    assert calls == ['a', 'b'] * 3
    assert t.what.tolist() == ['a', 'b']
    assert times_in_turn(dict(a=lambda: calls.append('c')), 1, warm=False).shape == (1, 6)
    assert calls.count('c') == 1


def test_steps_take_turns_in_any_order_and_are_held_against_the_first():
    calls = []
    step = lambda name, n: lambda: calls.append(name) or sum(range(n))
    t = parts.shuffled(dict(a=step('a', 10**4), b=step('b', 10**6), c=step('c', 10**4)), 5)
    assert sorted(calls) == sorted('abc' * 6)
    assert len({''.join(calls[i:i+3]) for i in range(0, 18, 3)}) > 1
    assert t.what.tolist() == ['a', 'b', 'c']
    assert t.ratio[0] == 1
    assert t.ratio[1] > 3


def test_a_filter_with_negative_fields_alone_fires_and_a_silent_one_does_not():
    weight = torch.tensor([-1., 0.]).reshape(2, 1, 1, 1).expand(2, 2, 1, 1)
    maps = torch.tensor([[1., 0.]]).reshape(1, 2, 1, 1)
    r = Responses(weight)
    r.add(maps, torch.tensor([0]), torch.tensor([0]))
    assert r.wins.sum((1, 2)).tolist() == [1, 0]
    assert r.top_field[0, 0] == 0
    assert r.top_image[:, 0].tolist() == [0, -1]


def test_the_second_triangle_is_that_of_the_outputs():
    g = torch.Generator().manual_seed(0)
    maps = Maps('a', 30, torch.randn(30, 5, 1, 1, generator=g))
    maps.add(torch.randn(30, 5, 1, 1, generator=g), torch.arange(30) % 3)
    W, x = torch.randn(3, 5, generator=g).double(), maps.x.double() * maps.unit
    p = (x @ W.T).softmax(1)
    expected = (x.T * (p * (1-p)).mean(1)) @ x / 30 + WEIGHT_DECAY * torch.eye(5).double()
    R = curvature_root(maps, WEIGHT_DECAY, W)
    assert (R @ R.T - expected).norm() < .02 * expected.norm()   # of the images with 99 % of it
    assert torch.equal(R, R.tril())


def test_a_triangle_for_which_single_precision_is_not_enough():
    g = torch.Generator().manual_seed(0)
    maps = Maps('a', 30, torch.randn(30, 50, 1, 1, generator=g))   # no curvature along 20
    maps.add(torch.randn(30, 50, 1, 1, generator=g), torch.arange(30) % 3)
    x = maps.x.double() * maps.unit
    expected = x.T @ x * (CERTAIN / 30)
    assert torch.linalg.cholesky_ex(expected.float())[1] > 0
    R = curvature_root(maps, 1e-15)
    assert R.isfinite().all()
    assert (R.diagonal() > 0).all()
    assert (R @ R.T - expected).norm() < 1e-3 * expected.norm()
