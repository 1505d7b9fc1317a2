"Scores against brute force; removing as setting maps to zero; fields of test images and bad input refused."
import copy

import pytest, torch, torch.nn.functional as F
from torch import nn

import dlmech
from dlmech.arch import translated
from dlmech.batches import Batches
from dlmech.filter import find_clusters, normalised
from dlmech.pruning.compact import cut_out
from dlmech.pruning.scores import (joint_field, keep_top, keep_top_filters, keep_top_n, KERNELS, label_signal,
                                   magnitude_masks, remove, SAMPLE, SCORES, split, unit_stats)
from dlmech.run import DlmechError, ParameterError
from helpers import blobs, linked_net


@pytest.fixture(scope='module')
def measured_net():
    net, images = linked_net()
    return net, dlmech.measure(net, images, images, layers=['3', '6', '9']), images


def test_unit_stats_are_those_of_brute_force(measured_net):
    net, found, (x, y) = measured_net
    stats = unit_stats(net, found, ['6'], [(x[:60], y[:60]), (x[60:], y[60:])])['6']
    A = net[:7](x).detach().requires_grad_()                                            # (B, 12, 2, 2)
    loss = F.cross_entropy(net[7:](A), y, reduction='sum')
    grad, = torch.autograd.grad(loss, A)
    slow = (A * grad).sum((2, 3)).abs().mean(0).detach()
    assert torch.allclose(stats.taylor.float(), slow, rtol=1e-4, atol=1e-7)
    square = A.detach().flatten(1).pow(2).mean(0)
    assert torch.allclose(stats.mean_square.float(), square, rtol=1e-4, atol=1e-7)
    means = torch.stack([A[y == label].mean(0) for label in range(4)]).detach().flatten(1)  # (K, 48)
    signal, W = label_signal(stats), net[8].weight.detach()
    for f in (0, 7):
        at = slice(4*f, 4*f+4)
        out = (means - means.mean(0))[:, at] @ W[:, at].T                                      # (K, G)
        assert torch.allclose(signal[:, f].float(), out.pow(2).sum(0), rtol=1e-3, atol=1e-9)


class Block(nn.Module):
    "A residual block, whose last convolution makes what a BatchNorm multiplies before it is added."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3), nn.Linear(3, 4)
        self.bn = nn.BatchNorm2d(3)
    def forward(self, x):
        x = x[:, :, 1:-1, 1:-1] + self.bn(self.b(self.a(x).relu()))
        return self.fc(x.mean((2, 3)))


def test_the_gain_behind_the_last_layer_of_a_residual_block_counts():
    torch.manual_seed(0)
    net, (x, y) = Block().eval(), blobs(40, 4)
    net.bn.running_var.copy_(torch.tensor([1., 4., 9.]))
    with torch.no_grad(): net.bn.weight.copy_(torch.tensor([-2., 1., 0.]))
    found = dlmech.measure(net, (x, y), (x, y), layers=['a'])
    stats = unit_stats(net, found, ['a'], [(x, y)])['a']
    assert torch.allclose(stats.reader_gain, torch.tensor([2., .5, 0.]), atol=1e-4)
    assert (label_signal(stats)[2] == 0).all()


@pytest.mark.parametrize('layer, positions', [('3', 16), ('6', 1)])
def test_a_sample_has_its_rows_whatever_the_positions_of_the_reader(measured_net, layer, positions):
    "At most ten of an image; an FC layer has one row an image."
    net, found, (x, y) = measured_net
    x, y = x.repeat(25, 1, 1, 1), y.repeat(25)
    batches = list(zip(x.split(250), y.split(250)))
    sample = unit_stats(net, found, [layer], batches)[layer].sample
    assert SAMPLE <= len(sample) < SAMPLE + len(batches)


def test_the_joint_field_lets_go_what_leaves_least_missing_among_what_stays(measured_net):
    net, found, (x, y) = measured_net
    stats_of = unit_stats(net, found, ['3', '6'], [(x, y)])
    def slow(given, removed):
        return float(given(removed).pow(2).sum())  # the squared sum of what the removed gave
    def removal_order(given, C):
        order = []
        while len(order) < C:
            order.append(min((c for c in range(C) if c not in order), key=lambda c: slow(given, [*order, c])))
        return order
    def given_by(upto, rest, outputs):
        A = net[:upto](x).detach()
        means = torch.stack([A[y == label].mean(0) for label in range(4)]).double()
        def given(removed):
            left = torch.zeros_like(means)
            left[:, removed] = means[:, removed]
            return (F.conv2d(left, rest.weight.double(), padding=1) if isinstance(rest, nn.Conv2d)
                    else left.flatten(1) @ rest.weight.double().T)[:, outputs]
        return given
    with torch.no_grad():
        last = removal_order(given_by(7, net[8], slice(None)), 12)
        keep = keep_top_filters(stats_of, SCORES['joint field'], .5)
        assert joint_field(stats_of['6']).argsort().tolist() == last
        assert keep['6'].tolist() == [c in last[6:] for c in range(12)]
        # what is given to filters that are gone does not count
        first = removal_order(given_by(4, net[4], keep['6']), 8)
        assert keep['3'].tolist() == [c in first[4:] for c in range(8)]
        alone = removal_order(given_by(4, net[4], slice(None)), 8)
        assert joint_field(stats_of['3']).argsort().tolist() == alone


def test_thinet_samples_what_the_reader_is_given(measured_net):
    net, found, (x, y) = measured_net
    stats_of = unit_stats(net, found, ['3', '6'], [(x[:60], y[:60]), (x[60:], y[60:])])
    with torch.no_grad():
        conv_out, fc_in = net[4](net[:4](x)) - net[4].bias[:, None, None], net[:7](x).flatten(2)
    stats = stats_of['3']
    # each row is some position's; there are fewer than 2,000
    out = torch.einsum('ncr,gcr->ng', stats.sample, net[4].weight.detach().flatten(2))
    every = conv_out.permute(0, 2, 3, 1).flatten(0, 2)
    assert len(out) == 120*16
    assert max(float((every - o).abs().sum(1).min()) for o in out[::200]) < 1e-4
    assert max(float((fc_in - s).abs().sum((1, 2)).min()) for s in stats_of['6'].sample[::20]) < 1e-5
    gone = torch.zeros(8)
    gone[SCORES['ThiNet'](stats).argsort()[:3]] = 1
    W = net[4].weight.detach().flatten(2)
    missing = lambda gone: float(torch.einsum('ncr,gcr,c->ng', stats.sample, W, gone).pow(2).sum())
    assert missing(gone) < missing(gone.flip(0))
    assert missing(gone) < missing(torch.ones(8))


def test_removing_is_setting_the_maps_to_zero(measured_net):
    net, found, (x, y) = measured_net
    stats_of = unit_stats(net, found, ['3', '6'], [(x, y)])
    keep = {p: keep_top(SCORES['label contrast'](stats), .5) for p, stats in stats_of.items()}
    assert [int(v.sum()) for v in keep.values()] == [4, 6]
    d = remove(net, stats_of, keep)
    with torch.no_grad():
        slow = net[7:](net[4:7](net[:4](x) * keep['3'][:, None, None]) * keep['6'][:, None, None])
        assert torch.allclose(d.net(x), slow, atol=1e-5)
        assert torch.allclose(cut_out(d, x)[0](x), slow, atol=1e-5)
    front, back = split(net, '4', x[:2])
    with torch.no_grad(): assert torch.allclose(back(front(x)), net(x), atol=1e-6)


def test_a_split_network_still_translates_its_images():
    net, (x, _) = linked_net()
    translated(net)
    front, back = split(net, '4', x[:2])
    with torch.no_grad(): assert torch.equal(back(front(x)), net(x))


def test_a_network_is_split_where_everything_passes_through_one_value():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, x): return self.b(self.a(x).relu()) + x
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.c = Block(), Block(), nn.Linear(2, 3)
        def forward(self, x):
            left, right = self.second(self.first(x)).chunk(2, 1)
            return self.c(left) + right.sum(1, keepdim=True)
    net, x = Halves(), torch.randn(5, 4)
    for path, before in [('first.b', lambda x: x), ('second.a', net.first), ('second.b', net.first),
                         ('c', lambda x: net.second(net.first(x)))]:
        front, back = split(net, path, x[:2])
        with torch.no_grad():
            assert torch.equal(front(x), before(x))
            assert torch.equal(back(front(x)), net(x))


@pytest.mark.parametrize('count', ['size', 'shape', 'size at the end'])
def test_how_many_images_there_are_goes_around_no_waist(count):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        def forward(self, x):
            n = x.size(0) if count == 'size' else x.shape[0]
            z = self.b(self.a(x).relu())
            return self.c(z.view(x.size(0) if 'end' in count else n, -1))
    net, x = Counting(), torch.randn(5, 4)
    front, back = split(net, 'c', x[:2])
    with torch.no_grad():
        assert torch.equal(front(x), net.b(net.a(x).relu()))
        assert torch.equal(back(front(x)), net(x))
        assert len(back(front(x[:3]))) == 3


class Odd(nn.Module):
    "Networks in which a number goes around, or a value is changed in place."
    def __init__(self, how: str):
        super().__init__()
        self.how, self.a, self.b, self.fc = how, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
    def forward(self, x):
        if self.how == 'whole shape':
            n, width = x.shape
            return self.fc(self.b(self.a(x).relu()).view(n, width))
        if self.how == 'first row':
            row = x.T[0][:, None]
            return self.fc(self.b(row + self.a(x)).relu()) + row
        if self.how == 'of the weights':
            k = self.fc.weight.shape[0]
            return self.fc(self.b(self.a(x).relu()))[:, :k]
        if self.how == 'crops':
            n = x.size(0)
            x = torch.stack([x, x + 1], 1).flatten(0, 1)
            return self.fc(self.b(self.a(x).relu()).view(n, 2, -1).mean(1))
        z = self.a(x)
        return self.fc(self.b(F.leaky_relu_(z, .1)) + z)


@pytest.mark.parametrize('how', ['whole shape', 'first row', 'of the weights', 'crops', 'in place'])
@pytest.mark.parametrize('path', ['b', 'fc'])
def test_the_two_parts_of_a_network_answer_as_it_does(how, path):
    net, x = Odd(how), torch.randn(5, 4)
    front, back = split(net, path, x[:2])
    with torch.no_grad():
        kept = front(x)
        for _ in range(3): assert torch.allclose(back(kept), net(x), atol=1e-6)


@pytest.mark.parametrize('fraction', [-.1, 1, 2])
def test_a_wrong_fraction_ends_with_one_sentence(fraction):
    with pytest.raises(ParameterError, match='it may be from 0 to below 1'): keep_top(torch.rand(5), fraction)


# ---- every score against its formula, term by term

def test_scores_of_the_fields_are_their_formulas(measured_net):
    net, found, (x, y) = measured_net
    stats, K = unit_stats(net, found, ['6'], [(x, y)])['6'], 4
    names = 'noise', 'filter SNR', 'largest field', 'label contrast', 'normalised contrast', 'coverage'
    said = {name: SCORES[name](stats).tolist() for name in names}
    clusters = find_clusters(normalised(stats.fields), .3)
    on = torch.stack([M.diagonal() - M.mean(0) for M in stats.fields])                         # (C, K)
    for f, M in enumerate(stats.fields):
        B = clusters.clipped[f].int()
        blocks = int((clusters.sizes[f]**2).sum())
        other = int(B.sum() - B.trace())
        rank = [int((on[:, label] > on[f, label]).sum()) for label in range(K)]
        slow = {'noise': blocks - int(B.sum()) if B.any() else -torch.inf,
                'filter SNR': (K-1) * int(B.trace()) / max(other, .5), 'largest field': float(M.max()),
                'label contrast': float(M.trace() - M.sum()/K),
                'normalised contrast': float((M.trace() - M.sum()/K) / M.max()) if M.max() > 0 else 0.,
                'coverage': -(min(rank) + sum(rank)/K/len(stats))}
        for name, value in slow.items(): assert said[name][f] == pytest.approx(value, rel=1e-9), name


def test_scores_of_weights_are_their_formulas(measured_net):
    net, found, (x, y) = measured_net
    stats_of, W = unit_stats(net, found, ['3', '6'], [(x, y)]), net[8].weight.detach()
    A = net[:7](x).detach().flatten(1)                                                         # (B, 48)
    names = 'weight norm', 'BatchNorm scale', 'Wanda'
    said = {name: SCORES[name](stats_of['6']).tolist() for name in names}
    kernels = {name: KERNELS[name](stats_of['6']) for name in ('kernel norm', 'Wanda')}
    for f in range(12):
        at = slice(4*f, 4*f+4)
        assert said['weight norm'][f] == pytest.approx(float(net[4].weight[f].detach().norm()), rel=1e-5)
        assert said['BatchNorm scale'][f] == 1  # there is none
        each = (W[:, at].abs() * A[:, at].pow(2).mean(0).sqrt()).sum(1)                        # (G,)
        assert said['Wanda'][f] == pytest.approx(float(each.sum()), rel=1e-4)
        assert torch.allclose(kernels['Wanda'][:, f].float(), each, rtol=1e-4)
        assert torch.allclose(kernels['kernel norm'][:, f].float(), W[:, at].norm(dim=1), rtol=1e-5)
    assert torch.equal(SCORES['BatchNorm scale'](stats_of['3']).float(), net[1].weight.detach().abs())


@pytest.mark.parametrize('name, score', [*SCORES.items(), *KERNELS.items()])
def test_a_score_is_a_number_for_each(measured_net, name, score):
    net, found, (x, y) = measured_net
    stats = unit_stats(net, found, ['6'], [(x, y)])['6']
    given = score(stats)
    assert given.shape == ((20, 12) if name in KERNELS and KERNELS[name] is score else (12,))
    assert given.dtype == torch.float64


def test_random_scores_are_drawn_by_seed(measured_net):
    net, found, (x, y) = measured_net
    stats = unit_stats(net, found, ['6'], [(x, y)])['6']
    for scores in (SCORES, KERNELS):
        assert torch.equal(scores['random'](stats), scores['random'](stats, seed=0))
        assert not torch.equal(scores['random'](stats), scores['random'](stats, seed=1))


def test_what_is_largest_stays():
    score = torch.tensor([.3, .1, .2, .1])
    assert keep_top(score, .5).tolist() == [True, False, True, False]
    assert keep_top(score, .25).tolist() == [True, False, True, True]  # among equals the higher number stays
    assert keep_top(score, .99).tolist() == [True, False, False, False]  # one at least
    assert keep_top_n(score.reshape(2, 2), 3).tolist() == [[True, True], [True, False]]  # here the first
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([[6., -5, 0], [0, 1, 4]])
        net[2].weight[:] = torch.tensor([[1., 3], [0, -2]])
    by_layer = magnitude_masks(net, {'0': 2, '2': 2})
    assert [m.tolist() for m in by_layer.values()] == [[[True, True, False], [False]*3],
                                                       [[False, True], [False, True]]]
    together = magnitude_masks(net, {'0': 2, '2': 2}, everywhere=True)
    assert [m.tolist() for m in together.values()] == [[[True, True, False], [False, False, True]],
                                                       [[False, True], [False, False]]]


# ---- bad input

def test_unit_stats_refuse_fields_of_test_images():
    net, train = linked_net()
    test = blobs(40, 4, seed=1)
    over_test = dlmech.measure(net, train, test)
    for batches in (Batches(train), Batches(test), [train]):
        with pytest.raises(DlmechError, match='^fields: .*measure again with the training images') as e:
            unit_stats(net, over_test, ['3'], batches)
        assert '\n' not in str(e.value)
    over_train = dlmech.measure(net, train, fields_on=train)
    with pytest.raises(DlmechError, match='^fields: 100%'):
        unit_stats(net, over_train, ['3'], Batches(train), score_on=train)
    assert len(unit_stats(net, over_train, ['3'], Batches(train), score_on=test)['3']) == 8


def test_filters_of_another_network_are_refused(measured_net):
    net, found, (x, y) = measured_net
    other = copy.deepcopy(net)
    other[4], other[8] = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(24, 20)
    with pytest.raises(DlmechError, match='12 filters were measured, the network has 6'):
        unit_stats(other, found, ['6'], [(x, y)])
    with pytest.raises(DlmechError, match='cannot be removed one by one'):
        unit_stats(nn.Sequential(*net[:8], nn.LayerNorm(48), net[8:]), found, ['6'], [(x, y)])
