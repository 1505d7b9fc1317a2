"One call from a measurement to a smaller network: its steps, the network as it was, bad input refused."
import pytest, torch
from torch import nn

import dlmech
from dlmech.pruning.compact import cut_out, macs, parameters_of
from dlmech.pruning.scores import keep_top_filters, remove, SCORES, unit_stats
from dlmech.run import DlmechError, ParameterError
from helpers import blobs, linked_net


@pytest.fixture(scope='module')
def measured_net():
    net, train = linked_net()
    return net, dlmech.measure(net, train, fields_on=train, layers=['3', '6', '9']), train


@pytest.mark.parametrize('given', [{}, dict(keep=.25), dict(layers=['6', '3'], fill='zero'),
                                   dict(keep=.75, score='Wanda'), dict(layers=['9'], score='random')])
def test_it_is_its_steps(measured_net, given):
    net, m, train = measured_net
    small, table = dlmech.prune(net, m, train, **given)
    layers = sorted(given.get('layers', ['3', '6', '9']))
    stats_of = unit_stats(net, m, layers, [train])
    keep = keep_top_filters(stats_of, SCORES[given.get('score', 'joint field')], 1 - given.get('keep', .5))
    slow, _ = cut_out(remove(net, stats_of, keep, given.get('fill', 'mean')), train[0][:8])
    with torch.no_grad(): assert torch.allclose(small(train[0]), slow(train[0]), atol=1e-5)
    assert table.layer.tolist() == [*layers, 'network']
    assert table.kept.tolist()[:-1] == [int(kept.sum()) for kept in keep.values()]
    assert table.kept.iloc[-1] == table.kept.iloc[:-1].sum()
    assert table.filters.tolist()[:-1] == [{'3': 8, '6': 12, '9': 20}[path] for path in layers]
    last = table.iloc[-1]
    assert (last.parameters_before, last.parameters_after) == (parameters_of(net), parameters_of(small))
    assert (last.macs_before, last.macs_after) == (macs(net, train[0]), macs(small, train[0]))
    assert (table.macs_after < table.macs_before).all()
    assert (table.parameters_after < table.parameters_before).all()
    assert (table.left_whole == '').all()


def test_a_layers_row_counts_the_layer_that_makes_its_filters(measured_net):
    net, m, train = measured_net
    row = dlmech.prune(net, m, train, layers=['3', '6'])[1].set_index('layer').loc['6']
    assert (row.parameters_before, row.parameters_after) == (12*8*9 + 12, 6*4*9 + 6)
    assert (row.macs_before, row.macs_after) == (4*4*12*8*9, 4*4*6*4*9)


def test_all_kept_is_the_same_network(measured_net):
    net, m, train = measured_net
    small, table = dlmech.prune(net, m, train, keep=1)
    with torch.no_grad(): assert torch.equal(small(train[0]), net(train[0]))
    assert (table.kept == table.filters).all()
    assert (table.macs_after == table.macs_before).all()


def test_the_network_stays_as_it_is_and_one_filter_at_least(measured_net):
    net, m, train = measured_net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.zero_grad()
    small, table = dlmech.prune(net, m, train, keep=1e-9)
    assert table.kept.tolist() == [1, 1, 1, 3]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert small(train[0]).shape == (120, 4)


class Residual(nn.Module):
    "A block around which its input goes, and two convolutions in a row."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.c, self.fc = nn.Conv2d(5, 6, 3, padding=2), nn.Linear(6, 4)
    def forward(self, x):
        x = self.a(x).relu()
        return self.fc((x + self.c(self.b(x).relu())).mean((2, 3)))


def test_layers_that_cannot_be_cut_are_left_whole_and_it_is_said():
    torch.manual_seed(0)
    net, train = Residual(), blobs(80, 4)
    m = dlmech.measure(net, train, fields_on=train, layers=['a', 'b', 'c'])
    small, table = dlmech.prune(net, m, train, keep=.4)
    assert table.layer.tolist() == ['a', 'b', 'c', 'network']
    assert table.kept.tolist() == [6, 2, 6, 14]
    assert [bool(why) for why in table.left_whole] == [True, False, True, False]
    assert 'read in more than one place' in table.left_whole[0]
    assert table.parameters_after[0] == table.parameters_before[0] == 6*3*9 + 6
    assert small(train[0]).shape == (80, 4)
    with pytest.raises(DlmechError, match='cannot be removed one by one'):
        dlmech.prune(net, m, train, layers=['a', 'b'])
    alone = dlmech.measure(net, train, fields_on=train, layers=['a'])
    with pytest.raises(DlmechError, match='^layers: nothing can be removed: the filters of a are read'):
        dlmech.prune(net, alone, train)


def test_fields_of_test_images_are_refused():
    "What README's first lines once led to."
    net, train = linked_net()
    test = blobs(40, 4, seed=1)
    found = dlmech.measure(net, train, test)
    for given in ({}, dict(score_on=test)):
        for data in (train, test):
            with pytest.raises(DlmechError, match='^fields: .*measure again with the training images') as e:
                dlmech.prune(net, found, data, **given)
            assert '\n' not in str(e.value)
    m = dlmech.measure(net, train, fields_on=train)
    small, _ = dlmech.prune(net, m, train, score_on=test)
    assert parameters_of(small) < parameters_of(net)
    with pytest.raises(DlmechError, match='^fields: 100%'): dlmech.prune(net, m, train, score_on=train)


@pytest.mark.parametrize('given, sentence', [
    *((dict(keep=k), 'it may be a share above 0, up to 1') for k in (0, 1.01, -1, float('nan'), 'half')),
    (dict(score='Taylr'), "there is no 'Taylr'; it may be noise"),
    (dict(fill='one'), "there is no 'one'; it may be zero, mean"),
    (dict(layers=[9]), 'has no layer 9'),
    (dict(layers=[]), 'nothing can be removed'),
])
def test_bad_input_ends_with_one_sentence(measured_net, given, sentence):
    net, m, train = measured_net
    with pytest.raises(DlmechError, match=sentence) as e: dlmech.prune(net, m, train, **given)
    assert '\n' not in str(e.value)


def test_it_needs_a_measurement(measured_net):
    net, m, train = measured_net
    with pytest.raises(ParameterError, match='measure the network first'): dlmech.prune(net, m.layers, train)
