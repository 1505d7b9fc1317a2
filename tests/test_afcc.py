"""AFCC against its definition done the slow way; masks that stay; compaction that changes no output; scores
against brute force; one sentence for bad input."""
import copy, os, signal, subprocess, sys, time, warnings

import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn

import dlmech
from dlmech.afcc import (Link, afcc_masks, dilute, holding, labels_of, link_between, links, masked,
                         random_afcc,
                         random_labels, rescue, retrain, shared, weights_of)
from dlmech.compact import (compact, cut_out, cuttable, exported, forms_of, load_compact, macs, put,
                            save_compact, select, sizes, to_onnx)
from dlmech.arch import translated
from dlmech.compare import TABLES, gather, results
from dlmech.filter import averaged_over
from dlmech.model import start, trained
from dlmech.run import DlmechError, ParameterError, read_csv
from dlmech.scores import SCORES, facts, joint_field, keep_best, keepers, label_signal, remove, split
from test_network import blobs
from test_notebooks import papermill


def net_and_images(K=4):
    """A network with every kind of link: two convolutions, a flattened map, nodes; trained a little, so that
    it has clusters."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
                        nn.MaxPool2d(4), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12*4, 20), nn.ReLU(), nn.Linear(20, K))
    x, y = blobs(120, K)
    opt = torch.optim.SGD(net.parameters(), .02, momentum=.9)
    for _ in range(12):
        opt.zero_grad()
        F.cross_entropy(net(x), y).backward()
        opt.step()
    return net.eval(), (x, y)


@pytest.fixture(scope='module')
def measured_net():
    net, images = net_and_images()
    return net, dlmech.measure(net, images, images, layers=['3', '6', '9']), images


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    r = start(arch='vgg6', dataset='digits', d=4, layer='all', runs=str(tmp_path_factory.mktemp('runs')))
    trained(r)
    return r


# ---- masks

def slow_labels(M, threshold):
    "The labels in a cluster of one filter's matrix, from the definition, sharing no code."
    top = M.max()
    B = [[v / top > threshold for v in row] for row in M] if top > 0 else [[False]*len(M) for _ in M]
    free, labels = [i for i in range(len(M)) if B[i][i]], set()
    while free:
        cluster = [free[0]]
        for l in free[1:]:
            if all(B[l][c] and B[c][l] for c in cluster): cluster.append(l)
        labels |= set(cluster)
        free = [l for l in free if l not in cluster]
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
    of = {p: [slow_labels(m, .3) for m in found.fields(p).numpy()]
          for p in ('3', '6', '9')} | {'output': [{j} for j in range(4)]}
    for (a, b), target in zip((('3', '6'), ('6', '9'), ('9', 'output')), ('4', '8', '10')):
        if table.set_index('target').rescued[target]: continue
        assert (masks[target].numpy() == slow_mask(net.get_submodule(target).weight, of[b], of[a])).all()
    assert set(masks) == {'4', '8', '10'}
    assert 0 < table.kept.sum() < table.kernels.sum()
    assert (table.rescued == '').sum() >= 2


def test_a_runs_masks_come_from_training_images_whatever_it_says(run):
    net = trained(run)
    assert run.params.images == 'test'
    masks, _ = afcc_masks(net, run, [4, 5, 'output'])
    table = read_csv(run.path/'train'/'filters-5.csv')
    assert (masks['fc.1'].T == labels_of(table, 10)).all()
    assert not (run.path/'filters-5.csv').exists()
    assert averaged_over(run, 'train').params.images == 'train'
    assert run.params.images == 'test'


def test_random_afcc_keeps_what_random_labels_share(run):
    has = [random_labels(64, 10, 2, seed=s) for s in (0, 1)]
    assert (has[0].sum(1) == 2).all()
    assert not torch.equal(*has)
    assert torch.equal(has[0], random_labels(64, 10, 2, seed=0))
    masks, table = random_afcc(trained(run), run, [4, 5, 'output'], n=2)
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
    hook = module.register_forward_hook(lambda m, args,
                                        out: seen.append(int((m.weight[~masks['8']] != 0).sum())))
    retrain(d, list(zip(x.split(20), y.split(20))), 2, what, lr=.1)
    hook.remove()
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


# ---- whose filters a layer reads

class Odd(nn.Module):
    "Functional calls, a view, an addition, a permutation, a layer used twice."
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 6, 3, groups=2)
        self.d = nn.Conv2d(4, 5, 3)
        self.e = nn.Linear(5*9, 7)
        self.f = nn.Linear(7, 7)
        self.twice = nn.Linear(7, 7)
        self.g = nn.Linear(7, 3)
    def forward(self, x):
        x = F.relu(self.a(x))
        x = F.max_pool2d(x + self.b(x), 3)
        self.c(x)
        x = F.relu(self.d(x)).view(x.size(0), -1)
        x = self.f(torch.sigmoid(self.e(x)))
        return self.g(self.twice(self.twice(x)).flip(1))


def test_links_of_an_odd_network():
    found = links(Odd())
    assert found['b'] == Link('a', 'b', ['relu'], 1, False)
    assert found['e'].spread == 9
    assert found['e'].source == 'd'
    assert found['f'].between == ['sigmoid']
    for path, said in dict(a='the images themselves', d='add', c='grouped convolution', twice='used 2 times',
                           g='flip').items():
        assert said in found[path], found[path]


def test_tied_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    assert 'tied weights' in links(net)['2']
    with pytest.raises(DlmechError, match='tied weights'): link_between(net, '1', '3')


def test_control_flow_is_refused():
    class Fickle(nn.Module):
        def forward(self, x): return x if x.sum() > 0 else -x
    with pytest.raises(DlmechError, match='cannot be traced by torch.fx'): links(Fickle())


# ---- bad input

@pytest.mark.parametrize('layers, said', [
    (['3', '9'], 'are not neighbours: 9 reads the filters of 4'),
    (['3'], 'neighbours in order are needed'),
    (['output', '3'], 'neighbours in order are needed'),
    (['3', '4'], "this measurement has no layer '4'; it may be"),
])
def test_wrong_layers_end_with_one_sentence(measured_net, layers, said):
    net, found, _ = measured_net
    with pytest.raises(DlmechError) as e: afcc_masks(net, found, layers)
    assert said in str(e.value)
    assert '\n' not in str(e.value)


def test_what_was_not_measured_ends_with_one_sentence(measured_net):
    net, found, images = measured_net
    with pytest.raises(ParameterError, match='measure the network first'): dilute(net, None, ['3', '6'])
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
    diagonal = found.fields('9').diagonal(dim1=1, dim2=2)[:, 2]
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
    for l in range(K):
        if of_next[:, l].any(): assert (mask[of_next[:, l]] & alive).any()
    assert (mask | before == mask).all()  # nothing that was kept is lost


# ---- compaction

def random_net(seed):
    """Convolutions with and without padding, bias, BatchNorm, PReLU, average pooling, ending in FC layers;
    and images for it."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    pick = lambda *choices: choices[int(torch.randint(0, len(choices), (1,), generator=g))]
    c, parts = 3, []
    for n in (6, 10, 8):
        bias = pick(True, False)
        parts.append(nn.Conv2d(c, n, 3, padding=pick(0, 1, 'same'), bias=bias,
                               padding_mode=pick('zeros', 'zeros', 'circular')))
        if pick(True, False) or not bias: parts.append(nn.BatchNorm2d(n))
        parts.append(pick(nn.ReLU(inplace=True), nn.PReLU(n), nn.GELU(), nn.LeakyReLU()))
        if pick(True, False): parts.append(pick(nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(2)))
        c = n
    body = nn.Sequential(*parts)
    x = torch.randn(6, 3, 20, 20, generator=g)
    with torch.no_grad(): n = body(x).flatten(1).shape[1]
    net = nn.Sequential(*parts, nn.Flatten(), nn.Linear(n, 9), nn.Tanh(), nn.Linear(9, 4))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(.5, 2)
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    return net.eval(), x


def random_masks(net, seed, kept):
    "Random kernels stay; some filters lose all they read, some all that reads them."
    g, masks = torch.Generator().manual_seed(seed), {}
    for path, link in links(net).items():
        if not isinstance(link, Link): continue
        w = net.get_submodule(path).weight
        F_ = len(net.get_submodule(link.source).weight)
        m = torch.rand(len(w), F_, generator=g) < kept
        m[torch.rand(len(w), generator=g) < .3] = False
        m[:, torch.rand(F_, generator=g) < .3] = False
        masks[path] = m.repeat_interleave(link.spread, 1) if w.ndim == 2 else m[:, :, None, None].expand_as(w)
    return masks


@pytest.mark.parametrize('seed', range(12))
def test_the_compact_network_computes_what_the_masked_one_does(seed, tmp_path):
    net, x = random_net(seed)
    d = masked(net, random_masks(net, seed, kept=(.3, .6, .02)[seed % 3]))
    before = copy.deepcopy(d.net.state_dict())
    small, cut, chosen = compact(d, x)
    with torch.no_grad(): assert (small(x) - d.net(x)).abs().max() < 1e-4
    assert sizes(small, x)['parameters'] < sizes(net, x)['parameters']
    assert len(cut)
    assert all(torch.equal(v, before[k]) for k, v in d.net.state_dict().items())
    save_compact(tmp_path/'net.safetensors', small)
    again = load_compact(tmp_path/'net.safetensors', random_net(seed)[0])
    with torch.no_grad(): assert torch.equal(again(x), small(x))


def test_a_constant_filter_before_a_padded_convolution_is_exact_at_the_border():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.ReLU(),
                        nn.Flatten(), nn.Linear(4*36, 3)).eval()
    with torch.no_grad():
        net[0].weight[:3] = 0
        net[0].bias[:3] = torch.tensor([.5, 1., 2.])
    x = torch.randn(4, 3, 6, 6)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert (small[:4](x) - net[:4](x)).abs().max() < 1e-5
    assert small[0].out_channels == 3
    assert cut.folded.tolist() == [2]                           # one of three stays and carries the others


@pytest.mark.parametrize('form', ['2 blocks', '2 groups', 'CSR'])
def test_every_form_saves_loads_and_computes_the_same(form, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                        nn.Flatten(), nn.Linear(6*16, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    x, path = torch.randn(5, 3, 8, 8), '6' if form == 'CSR' else '2'
    with torch.no_grad():
        if form == 'CSR': net[6].weight[torch.rand(30, 96) < .95] = 0
        else:
            net[2].weight[:3, 4:] = 0
            net[2].weight[3:, :4] = 0
            net[2].weight[:] = net[2].weight[[0, 3, 1, 4, 2, 5]]
            if form == '2 groups': net[2].weight[0, 0] = 0
    new, order = forms_of(net.get_submodule(path))[form]
    other = copy.deepcopy(net)
    if form != 'CSR':
        select(other, [l for l in cuttable(other) if l.source == path][0], torch.as_tensor(order))
    put(other, path, new)
    with torch.no_grad(): assert (other(x) - net(x)).abs().max() < 1e-5
    save_compact(tmp_path/'f.safetensors', other)
    with torch.no_grad(): assert torch.equal(load_compact(tmp_path/'f.safetensors', net)(x), other(x))
    with torch.no_grad(): assert (exported(other, x).module()(x[:2]) - net(x[:2])).abs().max() < 1e-5
    assert macs(other, x) < macs(net, x)


def test_what_cannot_be_cut_is_left():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(),
                        nn.Linear(32, 3)).eval()
    with torch.no_grad(): net[3].weight[:, 1] = 0
    x = torch.randn(2, 3, 8, 8)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert torch.equal(small(x), net(x))
    assert len(cut) == 0
    assert small[0].out_channels == 4


def test_a_residual_network_is_cut_within_its_blocks():
    import torchvision
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3).eval()
    with torch.no_grad(): net.layer1[0].conv2.weight[:, :40] = 0
    x = torch.randn(2, 3, 64, 64)
    small, cut = cut_out(net, x)
    with torch.no_grad(): assert (small(x) - net(x)).abs().max() < 1e-4
    assert cut.layer.tolist() == ['layer1.0.conv1']
    assert small.layer1[0].conv1.out_channels == 24


def test_onnx_computes_the_same(tmp_path):
    pytest.importorskip('onnxscript', reason='onnxscript is not installed (extra onnx)')
    ort = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (extra onnx)')
    net, x = random_net(3)
    small, *_ = compact(masked(net, random_masks(net, 3, .5)), x)
    to_onnx(small, x, tmp_path/'net.onnx')
    out, = ort.InferenceSession(tmp_path/'net.onnx').run(None, {'images': x[:3].numpy()})
    with torch.no_grad(): assert abs(out - small(x[:3]).numpy()).max() < 1e-4


def test_a_file_that_is_no_compact_network_is_refused(tmp_path):
    net, x = random_net(0)
    dlmech.run.write_tensors(tmp_path/'plain.safetensors', net.state_dict())
    with pytest.raises(DlmechError, match='holds no compact network'):
        load_compact(tmp_path/'plain.safetensors', net)


# ---- scores

def test_facts_are_those_of_brute_force(measured_net):
    net, found, (x, y) = measured_net
    k = facts(net, found, ['6'], [(x[:60], y[:60]), (x[60:], y[60:])])['6']
    A = net[:7](x).detach().requires_grad_()                                                   # (B, 12, 2, 2)
    loss = F.cross_entropy(net[7:](A), y, reduction='sum')
    grad, = torch.autograd.grad(loss, A)
    assert torch.allclose(k.taylor.float(), (A * grad).sum((2, 3)).abs().mean(0).detach(), rtol=1e-4,
                          atol=1e-7)
    assert torch.allclose(k.square.float(), A.detach().flatten(1).pow(2).mean(0), rtol=1e-4, atol=1e-7)
    means = torch.stack([A[y == l].mean(0) for l in range(4)]).detach().flatten(1)             # (K, 48)
    signal, W = label_signal(k), net[8].weight.detach()
    for f in (0, 7):
        at = slice(4*f, 4*f+4)
        out = (means - means.mean(0))[:, at] @ W[:, at].T                                      # (K, G)
        assert torch.allclose(signal[:, f].float(), out.pow(2).sum(0), rtol=1e-3, atol=1e-9)


def test_the_joint_field_lets_go_what_leaves_least_missing_among_what_stays(measured_net):
    net, found, (x, y) = measured_net
    known = facts(net, found, ['3', '6'], [(x, y)])
    def slow(given, removed):
        return float(given(removed).pow(2).sum())  # the squared sum of what the removed gave
    def turns(given, C):
        order = []
        while len(order) < C:
            order.append(min((c for c in range(C) if c not in order), key=lambda c: slow(given, [*order, c])))
        return order
    def given_by(upto, rest, outputs):
        A = net[:upto](x).detach()
        means = torch.stack([A[y == l].mean(0) for l in range(4)]).double()
        def given(removed):
            left = torch.zeros_like(means)
            left[:, removed] = means[:, removed]
            return (F.conv2d(left, rest.weight.double(), padding=1) if isinstance(rest, nn.Conv2d)
                    else left.flatten(1) @ rest.weight.double().T)[:, outputs]
        return given
    with torch.no_grad():
        last = turns(given_by(7, net[8], slice(None)), 12)
        keep = keep_best(known, SCORES['joint field'], .5)
        assert joint_field(known['6']).argsort().tolist() == last
        assert keep['6'].tolist() == [c in last[6:] for c in range(12)]
        first = turns(given_by(4, net[4], keep['6']),
                      8)  # what is given to filters that are gone does not count
        assert keep['3'].tolist() == [c in first[4:] for c in range(8)]
        assert joint_field(known['3']).argsort().tolist() == turns(given_by(4, net[4], slice(None)), 8)


def test_thinet_samples_what_the_reader_is_given(measured_net):
    net, found, (x, y) = measured_net
    known = facts(net, found, ['3', '6'], [(x[:60], y[:60]), (x[60:], y[60:])])
    with torch.no_grad():
        conv_out, fc_in = net[4](net[:4](x)) - net[4].bias[:, None, None], net[:7](x).flatten(2)
    k = known['3']
    out = torch.einsum('ncr,gcr->ng', k.sample,
                       # each row is some position's; there are fewer than 2,000
                       net[4].weight.detach().flatten(2))
    every = conv_out.permute(0, 2, 3, 1).flatten(0, 2)
    assert len(out) == 120*16
    assert max(float((every - o).abs().sum(1).min()) for o in out[::200]) < 1e-4
    assert max(float((fc_in - s).abs().sum((1, 2)).min()) for s in known['6'].sample[::20]) < 1e-5
    gone = torch.zeros(8)
    gone[SCORES['ThiNet'](k).argsort()[:3]] = 1
    missing = lambda gone: float(torch.einsum('ncr,gcr,c->ng', k.sample, net[4].weight.detach().flatten(2),
                                              gone).pow(2).sum())
    assert missing(gone) < missing(gone.flip(0))
    assert missing(gone) < missing(torch.ones(8))


def test_removing_is_setting_the_maps_to_zero(measured_net):
    net, found, (x, y) = measured_net
    known = facts(net, found, ['3', '6'], [(x, y)])
    keep = {p: keepers(SCORES['label contrast'](k), .5) for p, k in known.items()}
    assert [int(v.sum()) for v in keep.values()] == [4, 6]
    d = remove(net, known, keep)
    with torch.no_grad():
        slow = net[7:](net[4:7](net[:4](x) * keep['3'][:, None, None]) * keep['6'][:, None, None])
        assert torch.allclose(d.net(x), slow, atol=1e-5)
        assert torch.allclose(cut_out(d, x)[0](x), slow, atol=1e-5)
    front, back = split(net, '4')
    with torch.no_grad(): assert torch.allclose(back(front(x)), net(x), atol=1e-6)


def test_a_split_network_still_translates_its_images():
    net, (x, _) = net_and_images()
    translated(net)
    front, back = split(net, '4')
    with torch.no_grad(): assert torch.equal(back(front(x)), net(x))


def test_a_network_with_a_way_around_is_not_split():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, x): return self.b(self.a(x)) + x
    with pytest.raises(DlmechError, match='goes around it'): split(Around(), 'b')


@pytest.mark.parametrize('fraction', [-.1, 1, 2])
def test_a_wrong_fraction_ends_with_one_sentence(fraction):
    with pytest.raises(ParameterError, match='it may be from 0 to below 1'): keepers(torch.rand(5), fraction)


# ---- comparisons

def test_a_killed_comparison_goes_on_where_it_was(run):
    code = (f'from dlmech.compare import *; from dlmech.model import start\n'
            f"run = start(arch='vgg6', dataset='digits', d=4, layer='all', runs={str(run.path.parent)!r})\n"
            f"removal_table(Ready(run, [4, 5]), ['noise', 'random', 'Wanda'], (.25, .5, .75), epochs=(0, 1))")
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    path = run.file('removal.csv')
    p = subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if path.exists() and len(pd.read_csv(path)) >= 4: break
        if p.poll() is not None: break
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.wait()
    there = pd.read_csv(path)
    assert 4 <= len(there) < 1 + 3*3*3
    subprocess.run([sys.executable, '-c', code], env=env, check=True, stderr=subprocess.DEVNULL)
    table = pd.read_csv(path)
    assert len(table) == 1 + 3*3*3
    assert table[:len(there)].equals(there)
    assert not table.duplicated(['score', 'fraction', 'fill', 'epochs']).any()


def test_the_notebook_says_what_is_wrong(tmp_path):
    done = papermill('04_dilution', tmp_path/'out.ipynb', 'layer=1', f'runs={tmp_path}/runs')
    assert done.returncode == 1
    assert 'ParameterError: layer: from 2 on' in done.stderr


def test_tables_of_other_runs_stay_when_new_ones_are_shipped(run, tmp_path):
    for name, way in (('a', 'dense'), ('b', 'AFCC')):
        other = copy.copy(run)
        other.path = tmp_path/name
        other.path.mkdir()
        pd.DataFrame([dict(layers='4+5+output', way=way, dilution=0.,
                           test_success_rate=.5)]).to_csv(other.path/'scratch.csv', index=False)
        tables = gather([other], tmp_path/'results')
    assert set(tables) == {'scratch'}
    assert pd.read_csv(tmp_path/'results'/'afcc-scratch.csv').run.tolist() == ['a', 'b']


def test_shipped_tables_are_whole():
    for name in TABLES:
        try: table = results(name)
        except DlmechError as e:
            assert f'there are no results of {name}' in str(e)
            continue
        assert table.filter(like='test_').stack().between(0, 1).all()
        assert not table.duplicated([c for c in ('run', 'layers', 'score', 'rule', 'way', 'fraction',
                                                 'threshold', 'amount', 'fill', 'epochs', 'whole')
                                                 if c in table]).any()
        if by := dict(removal='score', dilution='rule', scratch='way', end='way').get(name):
            dense = table[(table[by] == 'dense') & (table.get('epochs', 0) == 0)]
            assert sorted(zip(dense.run, dense.layers)) == sorted(set(zip(table.run, table.layers)))
    with pytest.raises(ParameterError, match="there is no 'speed'; it may be removal"): results('speed')


def test_the_compact_network_lies_in_memory_as_the_dense_one(tmp_path):
    for layout in (torch.channels_last, torch.contiguous_format):
        net, (x, _) = net_and_images()
        net = net.to(memory_format=layout).eval()
        d = masked(net, {'8': torch.arange(48).expand(20, 48) >= 8,
                         '4': (torch.arange(8) > 1)[None, :, None, None].expand(12, 8, 3, 3)})
        small, _ = cut_out(d.net, x)
        save_compact(tmp_path/'small.safetensors', small)
        for made in (small, load_compact(tmp_path/'small.safetensors', net)):
            for i in (0, 4):
                assert made[i].weight.is_contiguous(memory_format=layout)
                assert len(made[i].weight) == {0: 6, 4: 10}[i]
            assert torch.allclose(made(x), d.net(x), atol=1e-5)
