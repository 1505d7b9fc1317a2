"AFCC against its definition done the slow way; masks that stay; fields of test images and bad input refused."
import copy, warnings

import numpy as np, pytest, torch
from torch import nn

import dlmech
from dlmech.layers import hooked
from dlmech.measurement import measure_run
from dlmech.model import start, train_or_load
from dlmech.pruning.afcc import (afcc_masks, check_measurement, dilute, Diluted, holding, labels_of, masked,
                                 random_afcc, random_labels, rescue, retrain, shared)
from dlmech.pruning.links import weights_of
from dlmech.run import DlmechError, ParameterError, read_csv
from helpers import blobs, linked_net


@pytest.fixture(scope='module')
def measured_net():
    net, images = linked_net()
    return net, dlmech.measure(net, images, images, layers=['3', '6', '9']), images


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    r = start(arch='vgg6', dataset='digits', d=4, layer='all', runs=str(tmp_path_factory.mktemp('runs')))
    train_or_load(r)
    return r


# ---- masks

def slow_labels(M, threshold):
    "The labels in a cluster of one filter's matrix, from the definition, sharing no code."
    top = M.max()
    B = [[v / top > threshold for v in row] for row in M] if top > 0 else [[False]*len(M) for _ in M]
    free, labels = [i for i in range(len(M)) if B[i][i]], set()
    while free:
        cluster = [free[0]]
        for label in free[1:]:
            if all(B[label][c] and B[c][label] for c in cluster): cluster.append(label)
        labels |= set(cluster)
        free = [label for label in free if label not in cluster]
    return labels


def slow_mask(weight, of_next, of_this):
    "AFCC, a weight at a time."
    mask, spread = np.zeros(weight.shape, bool), weight.shape[1] // len(of_this)
    for g in range(weight.shape[0]):
        for i in range(weight.shape[1]): mask[g, i] = bool(of_next[g] & of_this[i // spread])
    return mask


def test_masks_are_those_of_the_definition(measured_net):
    net, found, _ = measured_net
    masks, table = afcc_masks(net, found, ['3', '6', '9', 'output'])
    of = {p: [slow_labels(M, .3) for M in found[p].fields.numpy()] for p in ('3', '6', '9')}
    of['output'] = [{j} for j in range(4)]
    for (a, b), target in zip((('3', '6'), ('6', '9'), ('9', 'output')), ('4', '8', '10')):
        if table.set_index('target').rescued[target]: continue
        assert (masks[target].numpy() == slow_mask(net.get_submodule(target).weight, of[b], of[a])).all()
    assert set(masks) == {'4', '8', '10'}
    assert 0 < table.kept.sum() < table.kernels.sum()
    assert (table.rescued == '').sum() >= 2


def test_a_runs_masks_come_from_training_images_whatever_it_says(run):
    assert run.params.images == 'test'
    m = measure_run(run.averaged_over('train'), [4, 5])
    masks, _ = afcc_masks(train_or_load(run), m, [4, 5, 'output'])
    table = read_csv(run.path/'train'/'filters-5.csv')
    assert (masks['fc.1'].T == labels_of(table, 10)).all()
    assert not (run.path/'filters-5.csv').exists()
    assert run.averaged_over('train').params.images == 'train'
    assert run.params.images == 'test'


def test_random_afcc_keeps_what_random_labels_share(run):
    has = [random_labels(64, 10, 2, seed=s) for s in (0, 1)]
    assert (has[0].sum(1) == 2).all()
    assert not torch.equal(*has)
    assert torch.equal(has[0], random_labels(64, 10, 2, seed=0))
    m = measure_run(run.averaged_over('train'), [4, 5])
    masks, table = random_afcc(train_or_load(run), m, [4, 5, 'output'], n=2)
    assert abs(table.dilution.iloc[-1] - .8) < 1e-6
    expected = 1 - (8*7) / (10*9)  # two pairs of ten labels meet
    assert abs((1 - table.dilution.iloc[0]) - expected) < .15


# ---- masks stay

@pytest.mark.parametrize('what', ['beside', 'all'])
def test_masked_weights_are_zero_at_every_pass_and_nothing_else_moves(measured_net, what):
    net, found, (x, y) = measured_net
    masks, table = afcc_masks(net, found, ['6', '9'])
    d = masked(net, masks, table)
    before, seen = copy.deepcopy(d.net.state_dict()), []
    module = d.net.get_submodule('8')
    def count(m, args, out): seen.append(int((m.weight[~masks['8']] != 0).sum()))
    with hooked([(module, count)]): retrain(d, list(zip(x.split(20), y.split(20))), 2, what, lr=.1)
    assert len(seen) == 12
    assert sum(seen) == 0
    assert (module.weight[~masks['8']] == 0).all()
    moved = {k.split('.')[0] for k, v in d.net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == ({'4', '8'} if what == 'beside' else {'0', '1', '4', '8', '10'})
    assert not d.net.training
    assert all(p.requires_grad for p in d.net.parameters())
    assert not any(m._forward_pre_hooks for m in d.net.modules())


def test_dilute_leaves_the_model_as_it_is(measured_net):
    net, found, images = measured_net
    before = copy.deepcopy(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        d = dilute(net, found, ['6', '9'], train=images, epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert 0 < d.dilution < 1
    assert d.table.dilution.iloc[0] == pytest.approx(1 - d.table.kept.iloc[0] / d.table.kernels.iloc[0])


def test_masks_hold_in_somebody_elses_training_loop():
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    mask = torch.rand(5, 6) < .5
    opt = torch.optim.Adam(net.parameters(), .1, weight_decay=.1)
    with holding(net, {'0': mask}):
        for _ in range(5):
            opt.zero_grad()
            net(torch.randn(8, 6)).pow(2).sum().backward()
            opt.step()
    assert (net[0].weight[~mask] == 0).all()
    assert (net[0].weight[mask] != 0).all()


# ---- bad input

@pytest.mark.parametrize('layers, sentence', [
    (['3', '9'], 'are not neighbours: 9 reads the filters of 4'),
    (['3'], 'neighbours in order are needed'),
    (['output', '3'], 'neighbours in order are needed'),
    (['3', '4'], "this network has no layer '4'; it may be"),
])
def test_wrong_layers_end_with_one_sentence(measured_net, layers, sentence):
    net, found, _ = measured_net
    with pytest.raises(DlmechError) as e: afcc_masks(net, found, layers)
    assert sentence in str(e.value)
    assert '\n' not in str(e.value)


def test_what_was_not_measured_ends_with_one_sentence(measured_net):
    net, found, images = measured_net
    for nothing in (None, found.layers):
        with pytest.raises(ParameterError, match='measure the network first'):
            dilute(net, nothing, ['3', '6'])
    with pytest.raises(ParameterError, match='a measurement keeps no images'): dilute(net, found, ['3', '6'])
    other = copy.deepcopy(net)
    other[4] = nn.Conv2d(8, 6, 3)
    other[8] = nn.Linear(6, 20)
    with pytest.raises(DlmechError, match='it is not the one that was measured'):
        afcc_masks(other, found, ['3', '6'])
    with pytest.raises(DlmechError, match='was not measured'): weights_of(net, 'layers.4')
    assert weights_of(net, '3@1x1') == weights_of(net, '3') == '0'  # measured in pooled maps
    with pytest.raises(DlmechError, match='so AFCC would keep nothing'):
        afcc_masks(net, found, ['3', '6'], {'6': torch.zeros(12, 4, dtype=torch.bool)})


def test_a_label_that_would_be_cut_off_is_said_and_kept(measured_net):
    net, found, images = measured_net
    labels = {'9': torch.eye(4).bool().repeat(5, 1)}
    labels['9'][:, 2] = False
    with pytest.warns(UserWarning, match='no filter has label 2; it would be cut off'):
        d = dilute(net, found, ['9', 'output'], labels=labels, epochs=0)
    diagonal = found['9'].fields.diagonal(dim1=1, dim2=2)[:, 2]
    # as many as the label with fewest has
    assert set(d.masks['10'][2].nonzero()[:, 0].tolist()) == set(diagonal.topk(5).indices.tolist())


@pytest.mark.parametrize('seed', range(20))
def test_after_the_rescue_every_label_is_reached(seed):
    g = torch.Generator().manual_seed(seed)
    G, F_, K = (int(v) for v in torch.randint(2, 9, (3,), generator=g))
    of_next = torch.rand(G, K, generator=g) < .3
    of_this = torch.rand(F_, K, generator=g) < .15
    alive = torch.rand(F_, generator=g) < .7
    alive[0] = True
    mask = shared(of_next, of_this)
    before = mask.clone()
    rescue(mask, of_next, torch.randn(F_, K, generator=g), alive)
    for label in range(K):
        if of_next[:, label].any(): assert (mask[of_next[:, label]] & alive).any()
    assert (mask | before == mask).all()  # nothing that was kept is lost


# ---- fields of test images

@pytest.fixture(scope='module')
def honest_and_not():
    "A network, its measurement over training and over test images, and both sets."
    net, train = linked_net()
    test = blobs(40, 4, seed=1)
    paths = ['3', '6', '9']
    over_test = dlmech.measure(net, train, test, layers=paths)
    return net, dlmech.measure(net, train, fields_on=train, layers=paths), over_test, train, test


def test_dilute_refuses_fields_of_test_images(honest_and_not):
    net, over_train, over_test, train, test = honest_and_not
    layers = ['6', '9', 'output']
    for given in (dict(train=train), dict(epochs=0), dict(train=test), dict(epochs=0, score_on=test)):
        with pytest.raises(DlmechError, match='^fields: .*measure again with the training images') as e:
            dilute(net, over_test, layers, **given)
        assert '\n' not in str(e.value)
    for f in (afcc_masks, random_afcc):
        with pytest.raises(DlmechError, match='^fields: '): f(net, over_test, layers)
        with pytest.raises(DlmechError, match='^fields: '): f(net, over_train, layers, score_on=train)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert dilute(net, over_train, layers, train=train, epochs=1, score_on=test).dilution > 0


def test_a_run_over_test_images_is_refused_and_one_over_training_images_retrains_on_them(run):
    net, layers = train_or_load(run), [4, 5, 'output']
    with pytest.raises(DlmechError, match='^fields: '): dilute(net, measure_run(run, [4, 5]), layers)
    with pytest.raises(ParameterError, match='measure the network first'): dilute(net, run, layers)
    m = measure_run(run.averaged_over('train'), [4, 5])
    d, again = (dilute(net, m, layers, epochs=1, score_on=run.data.test) for _ in range(2))
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in d.net.state_dict().items())
    untrained = dilute(net, m, layers, epochs=0)
    assert not torch.equal(d.net.fc[1].weight, untrained.net.fc[1].weight)


def test_heads_from_elsewhere_ask_for_the_training_images(honest_and_not):
    net, _, _, train, test = honest_and_not
    heads = dlmech.own_head(net, '9', train[0][:2])
    m = dlmech.measure(net, train, fields_on=test, heads=heads)
    check_measurement(m)  # nobody says which images are training images
    with pytest.raises(DlmechError, match='^fields: '): check_measurement(m, train=train)


def test_nothing_masked_is_no_dilution():
    assert Diluted(nn.Identity(), {}).dilution == 0
