"One call from a measurement to a smaller network: its steps, the network as it was, bad input refused."
import copy

import pytest, timm, torch, torch.nn.functional as F, torchvision
from torch import nn

import dlmech
from dlmech.batches import Batches
from dlmech.model import success_rate
from dlmech.pruning.compact import cut_out, macs, macs_by_layer, parameters_of
from dlmech.pruning.prune import answer_changes, macs_left, remove_and_repair, repaired_weight, Shares
from dlmech.pruning.repair import calibration_batches
from dlmech.pruning.scores import keep_top_filters, remove, SCORES, unit_stats
from dlmech.run import DlmechError, ParameterError
from helpers import blobs, linked_net


@pytest.fixture(scope='module')
def measured_net():
    net, train = linked_net()
    return net, dlmech.measure(net, train, fields_on=train, layers=['3', '6', '9']), train


@pytest.mark.parametrize('given', [{}, dict(keep=.25, score='joint field'),
                                   dict(layers=['6', '3'], repair='none'),
                                   dict(keep=.75, score='Wanda', repair='label means'),
                                   dict(layers=['9'], score='random')])
def test_it_is_its_steps(measured_net, given):
    "Evenly over the layers, the choice, the repair and the cutting are those of their modules."
    net, m, train = measured_net
    small, table = dlmech.prune(net, m, train, score_on=blobs(40, 4, seed=1), even=True, **given)
    layers = sorted(given.get('layers', ['3', '6', '9']))
    stats_of = unit_stats(net, m, layers, [train])
    score = SCORES[given.get('score', 'greedy OBS')]
    left = dict(zip(table.layer, table.kept))
    assert left['network'] == round(given.get('keep', .5) * sum(map(len, stats_of.values())))
    keep = keep_top_filters(stats_of, score, {p: 1 - left[p] / len(s) for p, s in stats_of.items()})
    sets = calibration_batches(train, None, 'cpu')
    slow = remove_and_repair(net, stats_of, keep, given.get('repair', 'ridge'), sets)
    with torch.no_grad(): assert torch.allclose(small(train[0]), slow.net(train[0]), atol=1e-4)
    assert table.layer.tolist() == [*layers, 'network']
    assert table.filters.tolist()[:-1] == [{'3': 8, '6': 12, '9': 20}[path] for path in layers]
    assert max(abs(left[p] / len(s) - given.get('keep', .5)) for p, s in stats_of.items()) < .1
    last = table.iloc[-1]
    assert (last.parameters_before, last.parameters_after) == (parameters_of(net), parameters_of(small))
    assert (last.macs_before, last.macs_after) == (macs(net, train[0]), macs(small, train[0]))
    assert (table.macs_after < table.macs_before).all()
    assert (table.left_whole == '').all()


def test_the_network_row_says_what_it_brings_on_images_it_never_saw(measured_net):
    net, m, train = measured_net
    test = blobs(60, 4, seed=1)
    small, table = dlmech.prune(net, m, train, score_on=test)
    last = table.iloc[-1]
    batches = Batches(test, 30)
    assert last.success_rate_before == pytest.approx(success_rate(net, batches))
    assert last.success_rate_after == pytest.approx(success_rate(small, batches))
    assert (last.filter(like='ms_') > 0).all()
    assert table.success_rate_after.isna().tolist() == [True, True, True, False]
    held = dlmech.prune(net, m, train)[1].iloc[-1]                 # a tenth of the training images
    assert held.success_rate_before * 12 == pytest.approx(round(held.success_rate_before * 12))


def test_a_number_of_multiply_adds_is_kept_to(measured_net):
    net, m, train = measured_net
    target = int(.6 * macs(net, train[0]))
    small, table = dlmech.prune(net, m, train, keep=target)
    assert .4 * macs(net, train[0]) < macs(small, train[0]) <= target
    assert len(set((table.kept / table.filters)[:-1].round(2))) > 1   # not evenly
    whole, _ = dlmech.prune(net, m, train, keep=macs(net, train[0]))
    assert macs(whole, train[0]) == macs(net, train[0])


def test_a_latency_that_all_networks_keep_removes_nothing(measured_net):
    net, m, train = measured_net
    _, table = dlmech.prune(net, m, train, keep='1e9 ms')
    assert (table.kept == table.filters).all()


def test_filters_go_where_they_are_missed_least():
    "The cost is that of a slow solve, and a layer with copies of its filters loses these first."
    net, train = linked_net()
    with torch.no_grad():
        for t in (net[8].weight, net[8].bias): t[10:] = t[:10]
    m = dlmech.measure(net, train, fields_on=train, layers=['6', '9'])
    stats_of = unit_stats(net, m, ['6', '9'], [train])
    shares = Shares(net, stats_of, SCORES['greedy OBS'], train[0][:2])
    assert shares.lost['9'][10] < .01 < shares.lost['6'][6]
    for _ in range(10): assert shares.step(by_macs=False)
    assert shares.kept['9'] <= 12
    while shares.step(by_macs=True): pass
    assert shares.kept == {'6': 1, '9': 1}


class Blocks(nn.Module):
    "A stream to which the first block adds a thousand times as much as the second."
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.much, self.little = (nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
                                                nn.Conv2d(8, 6, 3, padding=1)) for _ in range(2))
        self.little[2].weight.data /= 1000
        self.fc.weight.data *= 30
    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.much(x)
        return self.fc((x + self.little(x)).mean((2, 3)))


def test_in_a_residual_network_filters_go_where_the_answers_miss_them_least():
    "The second block's readers lose the same share of their outputs, which nobody sees."
    torch.manual_seed(0)
    net, train = Blocks().eval(), blobs(80, 4)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    m = dlmech.measure(net, train, fields_on=train, layers=['much.1', 'little.1'])
    stats_of = unit_stats(net, m, ['much.1', 'little.1'], [train])
    orders = {path: SCORES['greedy OBS'](stats).argsort() for path, stats in stats_of.items()}
    changes = answer_changes(net, stats_of, orders, train[0])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    n, change = changes['much.1'][1]
    with torch.no_grad():                                           # the slow way
        p, other = net(train[0]).double().softmax(1), copy.deepcopy(net)
        other.much[2].weight[:] = repaired_weight(stats_of['much.1'], orders['much.1'][:n])
        q = other(train[0]).double().softmax(1)
    assert change == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3)
    assert all(b < 1e-3 * a for (_, a), (_, b) in zip(changes['much.1'], changes['little.1']))
    _, table = dlmech.prune(net, m, train, keep=.6)
    assert table.kept.tolist()[:2] == [8, 2]


def test_multiply_adds_are_counted_as_the_cut_network_has_them(measured_net):
    net, m, train = measured_net
    stats_of = unit_stats(net, m, ['3', '6', '9'], [train])
    keep = keep_top_filters(stats_of, SCORES['Wanda'], .5)
    small, _ = cut_out(remove(net, stats_of, keep), train[0][:8])
    kept = {p: int(k.sum()) for p, k in keep.items()}
    assert macs_left(macs_by_layer(net, train[0]), stats_of, kept) == pytest.approx(macs(small, train[0]))


def test_a_layers_row_counts_the_layer_that_makes_its_filters(measured_net):
    net, m, train = measured_net
    row = dlmech.prune(net, m, train, layers=['3', '6'], even=True)[1].set_index('layer').loc['6']
    assert (row.parameters_before, row.parameters_after) == (12*8*9 + 12, 6*4*9 + 6)
    assert (row.macs_before, row.macs_after) == (4*4*12*8*9, 4*4*6*4*9)


def test_all_kept_is_the_same_network(measured_net):
    net, m, train = measured_net
    small, table = dlmech.prune(net, m, train, keep=1)
    with torch.no_grad(): assert torch.allclose(small(train[0]), net(train[0]), atol=1e-5)
    assert (table.kept == table.filters).all()
    assert (table.macs_after == table.macs_before).all()


def test_the_network_stays_as_it_is_and_one_filter_at_least(measured_net):
    net, m, train = measured_net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.zero_grad()
    net[0].train()   # as in the middle of a training
    modes = [module.training for module in net.modules()]
    small, table = dlmech.prune(net, m, train, keep=1e-9)
    assert [module.training for module in net.modules()] == modes
    assert not small.training
    net.eval()
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
    (dict(repair='all'), "there is no 'all'; it may be ridge, label means, none"),
    *((dict(keep=k), 'cannot be reached; with one filter left') for k in (2, '1e-9 ms')),
    (dict(keep=1.5), 'it may be a share above 0'), (dict(keep='-1 ms'), 'a latency, as'),
    (dict(images=1), 'images: 1 is not possible'),
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


def test_a_calibration_set_without_some_label_is_refused(measured_net):
    net, m, (x, y) = measured_net
    with pytest.raises(DlmechError, match='label 3 has no image'):
        dlmech.prune(net, m, (x[y < 3], y[y < 3]), score_on=blobs(40, 4, seed=1))


class Depthwise(nn.Module):
    "A block as in EfficientNet-Lite: widened, depthwise, narrowed; and a convolution in two groups."
    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.ReLU6())
        self.narrow, self.two = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 3, groups=2)
        self.fc = nn.Linear(8, 4)
    def forward(self, x): return self.fc(self.two(self.narrow(self.deep(self.wide(x)))).mean((2, 3)))


def test_depthwise_filters_go_together_and_other_groups_stay_whole():
    torch.manual_seed(0)
    net, train = Depthwise().eval(), blobs(80, 4)
    m = dlmech.measure(net, train, fields_on=train, layers=['wide', 'deep', 'narrow', 'two'])
    small, table = dlmech.prune(net, m, train, keep=.5)
    shapes = [small.get_submodule(p).weight.shape for p in ('wide.0', 'deep.0', 'narrow')]
    n = shapes[0][0]
    assert shapes == [(n, 3, 1, 1), (n, 1, 3, 3), (8, n, 1, 1)]
    assert small.deep[0].groups == n < 12
    why = table.set_index('layer').left_whole
    assert why['deep'] == 'the filters of wide.0 are there already'
    assert 'cannot be removed one by one' in why['narrow']
    assert small(train[0]).shape == (80, 4)


def test_tied_weights_are_left_whole():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    net[5].weight = net[3].weight
    train = blobs(80, 4)
    m = dlmech.measure(net, train, fields_on=train, layers=['2', '4', '6'])
    small, table = dlmech.prune(net, m, train, keep=.5)
    assert table.kept.tolist()[:2] == [8, 8]
    assert all(table.left_whole[:2] != '')
    assert small[3].weight.shape == (8, 8)


def test_a_default_measurement_of_a_resnet_says_how_layers_within_blocks_are_found():
    net, train = torchvision.models.resnet18(num_classes=4).eval(), blobs(40, 4)
    with pytest.raises(DlmechError, match=r"nothing can be removed: .*; measure\(…, layers='all'\) finds"):
        dlmech.prune(net, dlmech.measure(net, train, fields_on=train, heads='ridge'), train)
    paths = ['layer1.0.bn1', 'layer2.0.bn1']
    every = dlmech.measure(net, train, fields_on=train, layers=paths, heads='ridge')
    small, table = dlmech.prune(net, every, train, keep=.5)
    assert table.kept.iloc[-1] == round(.5 * table.filters.iloc[-1])
    assert small(train[0][:2]).shape == (2, 4)


def test_a_timm_network_with_depthwise_layers_is_pruned_and_kept_to_its_budget():
    net, train = timm.create_model('mobilenetv2_050', num_classes=4).eval(), blobs(40, 4)
    paths = [f'blocks.{i}.{j}.bn1' for i, j in ((1, 1), (2, 1), (3, 1))]
    m = dlmech.measure(net, train, fields_on=train, layers=paths, heads='ridge')
    whole = macs(net, train[0])
    small, table = dlmech.prune(net, m, train, keep=int(.95 * whole))
    assert .93 * whole < macs(small, train[0]) <= .95 * whole
    assert table.macs_after.iloc[-1] == macs(small, train[0])


def test_an_fc_layer_that_is_merged_is_left_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    train = blobs(80, 4)
    m = dlmech.measure(net, train, fields_on=train, layers=['1', '4'], heads='ridge')
    _, table = dlmech.prune(net, m, train, keep=.5)
    assert table.left_whole[1] == '4 is one with the FC layer behind it and has no filters of its own'
    with pytest.raises(DlmechError, match='is one with the FC layer behind it'):
        dlmech.prune(net, m, train, layers=['4'])


def test_filters_that_an_fc_layer_reads_at_several_positions_are_refused_in_a_sentence():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        def forward(self, x):
            x = self.a(x.flatten(2).transpose(1, 2)).relu()
            return self.c(self.b(x).relu().mean(1))
    net, train = Tokens().eval(), blobs(40, 4)
    m = dlmech.measure(net, train, fields_on=train, layers=['a'], heads='ridge')
    with pytest.raises(DlmechError, match=r'b reads \(256, 6\) of each image; only filters'):
        dlmech.prune(net, m, train)


def test_a_network_that_answers_with_a_dict_is_pruned():
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x): return dict(logits=self.net(x))
    net, train = linked_net()
    named = Named(net).eval()
    m = dlmech.measure(named, train, fields_on=train, layers=['net.3', 'net.6'])
    small, _ = dlmech.prune(named, m, train, layers=['net.3'])
    assert small(train[0])['logits'].shape == (120, 4)


def test_a_network_is_pruned_without_a_measurement(measured_net):
    net, m, (x, y) = measured_net
    by_path = dict(keep=.5, score_on=(x.flip(0) + 1, y.flip(0)))
    small, table = dlmech.prune(net, None, (x, y), layers=['3', '6'], **by_path)
    measured, other = dlmech.prune(net, m, (x, y), layers=['3', '6'], **by_path)
    assert table.kept.tolist() == other.kept.tolist()
    with torch.no_grad(): assert torch.equal(small(x), measured(x))
    missing = torch.arange(len(y)) % 3   # no label has to be there
    _, every = dlmech.prune(net, None, (x, missing), score_on=(x, missing))
    assert every.layer.tolist() == ['0', '4', '8', 'network']
    assert every.kept.iloc[-1] < every.filters.iloc[-1]


@pytest.mark.parametrize('wrong, says', [
    (dict(score='noise'), 'score: .*measured.* random'),
    (dict(repair='label means'), 'repair: .*ridge, zero'),
    (dict(layers=[3]), 'layers: there is no 3'), (dict(layers=['nine']), "layers: there is no 'nine'")])
def test_what_asks_for_a_measurement_is_refused_without_one(measured_net, wrong, says):
    net, _, data = measured_net
    with pytest.raises(ParameterError, match=says): dlmech.prune(net, None, data, **wrong)


def test_the_order_in_which_layers_are_named_has_no_say(measured_net):
    net, _, (x, y) = measured_net
    ways = [dlmech.prune(net, None, (x, y), layers=layers)[0] for layers in (['3', '6'], ['6', '3'])]
    with torch.no_grad(): assert torch.equal(ways[0](x), ways[1](x))


class Several(nn.Module):
    "Its layers are made last to first; a second head, one that is never called, tokens."
    def __init__(self):
        super().__init__()
        self.aux, self.fc = nn.Linear(9, 4), nn.Linear(12, 4)
        self.embed, self.embedding = nn.Linear(12, 6), nn.Linear(6, 3)
        self.token, self.back = nn.Linear(12, 10), nn.Linear(10, 12)
        self.b, self.a = nn.Conv2d(8, 12, 3), nn.Conv2d(3, 8, 3)
    def forward(self, x):
        z = self.b(self.a(x).relu()).relu()
        t = z.flatten(2).transpose(1, 2)
        z = (t + self.back(self.token(t).relu())).mean(1)
        return dict(logits=self.fc(z).log_softmax(1), embedding=self.embedding(self.embed(z).relu()))


def test_a_network_of_several_answers_is_pruned_where_it_can_be():
    torch.manual_seed(0)
    net, (x, y) = Several(), (torch.randn(40, 3, 8, 8), torch.arange(40) % 4)
    small, table = dlmech.prune(net, None, (x, y))
    why = table.set_index('layer').left_whole
    assert list(why.index) == ['a', 'b', 'token', 'back', 'embed', 'network']
    assert why['a'] == ''
    assert why['embed'] == 'the answer does not depend on what embedding reads'
    assert 'back reads (16, 10) of each image' in why['token']
    assert len(small.a.weight) == 4
    with pytest.raises(DlmechError, match='does not depend'):
        dlmech.prune(net, None, (x, y), layers=['embed'])


def test_a_label_beyond_the_outputs_is_refused_without_a_measurement(measured_net):
    net, _, (x, y) = measured_net
    with pytest.raises(DlmechError, match='label'): dlmech.prune(net, None, (x, y + 3))


def test_a_layer_that_standardises_its_weights_is_not_cut_in_silence():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            of, w = (1, 2, 3), self.weight
            return F.conv2d(x, (w - w.mean(of, keepdim=True)) / w.std(of, keepdim=True), self.bias)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(96, 4))
    data = torch.randn(40, 3, 8, 8), torch.arange(40) % 4
    with pytest.raises(DlmechError, match='not one that can be cut'):
        dlmech.prune(net, None, data, layers=['0'])
