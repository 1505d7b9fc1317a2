"The causal test: from the layer on it says what the whole network says, and it finds what is built in."
import numpy as np, pandas as pd, pytest, torch
from torch import nn

import dlmech
from dlmech.arch import get_model
from dlmech.causal import (auc, causal, causal_files, causal_row, cooperation, crossover, measure_falls,
                           other_images, read_falls, Silencer, Tail)
from dlmech.datasets import get_data
from dlmech.layers import find_layers
from dlmech.probe import heads_of
from dlmech.run import DlmechError, ParameterError
from dlmech.silence import even_batches, only
from dlmech.trunk import Trunk
from helpers import blobs, same_state, small_net, state

SIDE = {'vit_tiny_patch16_224': 32, 'resnet18': 64, 'mobilenet_v3_small': 64}


def made(source: str, name: str) -> nn.Module:
    "A network of somebody's, untrained, its BatchNorms and its last layer not at their start values."
    torch.manual_seed(0)
    if source == 'timm':
        net = pytest.importorskip('timm').create_model(name, num_classes=4, img_size=32)
    elif source == 'torchvision':
        net = getattr(pytest.importorskip('torchvision').models, name)(num_classes=4)
    else: net = get_model(name, 4, d=4 if 'vgg' in name else 64)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            torch.nn.init.normal_(m.get_buffer('running_mean'), 0, .1)
            torch.nn.init.uniform_(m.get_buffer('running_var'), .5, 1.5)
    return net


def silence(units: torch.Tensor):
    "Unit 1 at zero."
    units[:, 1] = 0


# ---- exactness

@pytest.mark.parametrize('source, name', [('ours', 'vgg6'), ('ours', 'vgg16'), ('ours', 'resnet20'),
                                          ('torchvision', 'resnet18'), ('torchvision', 'mobilenet_v3_small'),
                                          ('timm', 'vit_tiny_patch16_224')])
def test_from_the_layer_on_it_says_what_the_whole_network_says(source, name):
    net, side = made(source, name), SIDE.get(name, 32)
    x, at = torch.randn(3, 3, side, side), torch.tensor([2, 0, 0])
    before, paths = state(net), find_layers(net, x[:1])
    assert len(paths) > 4
    for path in paths[::4] + paths[-1:]:
        with Trunk(net, [path]) as trunk: C = trunk(x)[path].shape[1]
        with only(net, path, torch.arange(C) != 1): whole = net(x[at])
        tail = Tail(net, path, x, C)
        assert tail.whole == ''
        assert torch.allclose(tail(at, silence), whole, rtol=1e-5, atol=1e-5)
    assert same_state(before, state(net))
    assert not any('forward' in vars(m) for m in net.modules())


def test_a_layer_within_a_block_is_cut_as_well():
    net, x = made('torchvision', 'resnet18').eval(), torch.randn(3, 3, 64, 64)
    for path, C in (('layer2.0.downsample.1', 128), ('layer2.0.conv2', 128), ('layer3.1.bn1', 256)):
        with only(net, path, torch.arange(C) != 1): whole = net(x)
        tail = Tail(net, path, x, C)
        assert tail.whole == ''
        assert torch.allclose(tail(torch.arange(3), silence), whole, rtol=1e-5, atol=1e-5)


class Counted(nn.Module):
    "A convolution that counts the images that it sees."
    def __init__(self):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(3, 6, 3), 0
    def forward(self, x):
        self.seen += len(x)
        return self.conv(x)


def test_nothing_before_the_layer_is_computed_again():
    torch.manual_seed(0)
    first = Counted()
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5*144, 4))
    tail = Tail(net, '3', torch.randn(10, 3, 16, 16), 5)
    seen = first.seen
    for _ in range(4): tail(torch.arange(10))
    assert first.seen == seen
    assert tail.whole == ''


@pytest.mark.parametrize('groups', [[[0], [3], [7]], [[0, 3], [1, 2, 7]]])
def test_units_are_silenced_together_where_that_is_asked_for(groups):
    net, (x, y) = small_net(), blobs(12, 4)
    found = measure_falls(net, '3', [(x, y)], 4, 6, [[c for c in g if c < 6] for g in groups if g[0] < 6])
    with only(net, '3', torch.ones(6, dtype=torch.bool)): before = net(x).log_softmax(1)[range(12), y]
    for g, zero in zip(groups, found.zero):
        with only(net, '3', ~torch.isin(torch.arange(6), torch.tensor(g))):
            fall = before - net(x).log_softmax(1)[range(12), y]
        mean = torch.stack([fall[y == k].mean() for k in range(4)]).double()
        assert torch.allclose(zero, mean, atol=1e-5)


def test_to_the_mean_is_what_a_hook_that_puts_the_mean_there_says():
    net, (x, y) = small_net().eval(), blobs(12, 4)
    found = measure_falls(net, '3', [(x[:5], y[:5]), (x[5:], y[5:])], 4, 6)
    log_p = lambda: net(x).log_softmax(1)[range(12), y]
    def mean(m, args, out):
        out = out.clone()
        out[:, 2] = out[:, 2].mean(0)
        return out
    with torch.no_grad():
        before = log_p()
        handle = net.get_submodule('3').register_forward_hook(mean)
        fall = before - log_p()
        handle.remove()
    by_label = torch.stack([fall[y == k].mean() for k in range(4)]).double()
    assert torch.allclose(found.mean[2], by_label, atol=1e-5)
    assert (found.mean[2] - found.zero[2]).abs().max() > 1e-3


# ---- networks that cannot be cut

class Branching(nn.Module):
    "It goes another way where the first layer's answer is large, so one image decides for the batch."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)
    def forward(self, x):
        h = self.a(x).relu()
        for _ in range(int(x[0].mean() > 0) + 1): h = self.b(h)
        return self.fc(self.a2(h).mean((2, 3)))
    def a2(self, h): return h


class Twice(Branching):
    "It asks its layer twice."
    def forward(self, x): return self.fc(self.b(self.b(self.a(x).relu())).mean((2, 3)))


class Drawing(Branching):
    "It adds noise, another at every call."
    def forward(self, x): return self.fc(self.b(self.a(x) + torch.rand(1, 6, 1, 1)).mean((2, 3)))


def test_a_layer_that_is_asked_twice_is_silenced_both_times_in_the_whole_network():
    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(4, 3, 8, 8)
    tail = Tail(net, 'b', x, 6)
    assert 'another order' in tail.whole
    with only(net, 'b', torch.arange(6) != 1): whole = net(x)
    assert torch.allclose(tail(torch.arange(4), silence), whole, atol=1e-5)
    found = measure_falls(net, 'b', [(x, torch.arange(4))], 4, 6)
    assert 'another order' in found.whole
    with only(net, 'b', torch.ones(6, dtype=torch.bool)): before = net(x).log_softmax(1)
    fall = (before - whole.log_softmax(1)).diagonal().double()
    assert torch.allclose(found.zero[1], fall, atol=1e-5)


def test_a_network_that_answers_otherwise_each_time_is_run_whole():
    torch.manual_seed(0)
    assert 'something else' in Tail(Drawing(), 'a', torch.randn(4, 3, 8, 8), 6).whole


def test_other_modules_for_other_images_are_noticed():
    torch.manual_seed(0)
    net = Branching().eval()
    small, large = torch.randn(2, 3, 8, 8) - 5, torch.randn(2, 3, 8, 8) + 5
    tail = Tail(net, 'fc', small, 4)
    assert tail.whole == ''
    tail.hear(large)
    assert 'not the same' in tail.whole
    with torch.no_grad(): assert torch.allclose(tail(torch.arange(2)), net(large), atol=1e-6)


# ---- what is built in is found

def one_label_a_filter(K: int = 6, seed: int = 0):
    "A network whose filter c feeds output c alone, its images, and the head that says so."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(20*K) % K
    x = torch.eye(K)[y][:, :, None, None] + .05*torch.rand(len(y), K, 2, 2, generator=g)
    net = nn.Sequential(nn.Conv2d(K, K, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(K, K, bias=False))
    net[0].weight.data, net[4].weight.data = torch.eye(K)[:, :, None, None], 3*torch.eye(K)
    weight = (torch.eye(K) - 1/K)[:, :, None, None].expand(K, K, 2, 2)
    return net, (x, y), heads_of({'1': weight.clone()})


def test_a_filter_that_feeds_one_label_has_an_auc_of_one():
    net, images, heads = one_label_a_filter()
    m = dlmech.measure(net, images, images, heads=heads)
    table = causal(m['1'], n=60)
    assert [row.labels for row in m['1'].filters.itertuples()] == list('012345')
    assert (table.auc_zero == 1).all()
    assert (table.auc_mean == 1).all()
    assert list(table.fall_label) == list(range(6))
    assert (table.effect_zero > 0).all()
    assert table.auc_null.mean() < 1
    assert causal_row(table)['filters'] == 6


def test_the_size_of_the_fall_is_what_arithmetic_says():
    "Without filter c the output c of an image of label c is 0 in place of 3 a."
    net, (x, y), _ = one_label_a_filter()
    found = measure_falls(net, '1', [(x, y)], 6, 6)
    out = 3*x.mean((2, 3))
    for c in range(6):
        mine, without = out[y == c], out[y == c].clone()
        without[:, c] = 0
        fall = mine.log_softmax(1)[:, c] - without.log_softmax(1)[:, c]
        assert torch.isclose(found.zero[c, c], fall.mean().double(), atol=1e-6)


def test_clusters_that_know_nothing_of_the_network_have_an_auc_of_a_half():
    torch.manual_seed(0)
    K, C = 10, 300
    net = nn.Sequential(nn.Conv2d(K, C, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, K))
    y = torch.arange(100) % K
    x = torch.eye(K)[y][:, :, None, None] + .1*torch.randn(100, K, 2, 2)
    m = dlmech.measure(net, (x, y), (x, y), heads=heads_of({'1@1x1': torch.randn(K, C, 1, 1)}))
    table = causal(m['1'], n=100)
    row = causal_row(table)
    assert row['filters'] > 200
    for kind in ('auc_zero', 'auc_mean', 'auc_null'):
        assert abs(row[kind] - .5) < 2*(row[f'{kind}_high'] - row[f'{kind}_low']), kind
    assert row['auc_activation'] > .6   # the field's diagonal is activation times a weight drawn by chance


def test_auc_is_the_share_of_pairs():
    g = np.random.default_rng(0)
    scores, positive = g.integers(0, 4, (50, 7)), g.random((50, 7)) < .4
    for s, p, value in zip(scores, positive, auc(scores, positive)):
        pairs = [(a > b) + (a == b)/2 for a in s[p] for b in s[~p]]
        assert np.isclose(value, np.mean(pairs) if pairs else np.nan, equal_nan=True)


# ---- measurements, files

@pytest.fixture(scope='module')
def three(): return get_data('digits', labels=[0, 3, 7])


@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return get_model('vgg6', 3, d=2)


@pytest.fixture(scope='module')
def saved(three, net, tmp_path_factory):
    m = dlmech.measure(net, three.train, three.test, layers=['layers.4', 'layers.5'], heads='ridge')
    return m, m.save(tmp_path_factory.mktemp('saved')/'m')


def test_images_are_others_than_those_of_the_fields(three, net, saved):
    m, folder = saved
    assert other_images(m) == (three.train, 'training images')
    assert other_images(dlmech.open(folder, net, three.test))[1] == 'images of the fields'
    run = dlmech.measure_run(dlmech.start(arch='vgg6', dataset='digits', d=2, epochs=1, heads='ridge',
                                          runs=str(folder.parent), layer=5))
    images, on = other_images(run)
    assert on == 'training images'
    assert images is run.source.data().train
    assert causal(run[5], n=30).on.iloc[0] == 'training images'
    assert (run.source.run.path/'causal-5.csv').exists()


def test_what_is_in_the_folder_is_read_and_not_made_again(three, net, saved, monkeypatch):
    m = dlmech.open(saved[1], net, three.test)
    assert read_falls(m[5]) is None
    first = causal(m[5], three.train, 30, 'training images')
    files = causal_files(m[5])
    assert files is not None
    table, falls = files
    assert table.exists()
    assert falls.exists()
    assert not list(table.parent.glob('.causal*'))
    def never(*args, **kwargs): raise AssertionError('it is measured again')
    monkeypatch.setattr('dlmech.causal.measure_falls', never)
    pd.testing.assert_frame_equal(causal(dlmech.open(saved[1])[5], n=30), first, check_dtype=False)
    pd.testing.assert_frame_equal(causal(m[5], three.train, 30, 'training images'), first, check_dtype=False)
    table.unlink()  # the falls know no clusters: the table comes from them
    pd.testing.assert_frame_equal(causal(m[5], n=30), first, check_dtype=False)
    with pytest.raises(AssertionError, match='again'): causal(m[5], n=33)
    with pytest.raises(AssertionError, match='again'): causal(m[5], three.train, 30)  # whose are these?
    with pytest.raises(AssertionError, match='again'): causal(m[5], three.test, 30, 'test images')


def test_a_killed_test_leaves_no_half_file(three, net, saved, monkeypatch):
    m = dlmech.open(saved[1], net, three.test)
    def dies(*args): raise KeyboardInterrupt
    monkeypatch.setattr('dlmech.causal.write_csv', dies)
    with pytest.raises(KeyboardInterrupt): causal(m[4], n=30)
    assert not (saved[1]/'causal-4.csv').exists()
    monkeypatch.undo()
    assert len(causal(m[4], n=30)) == 16
    assert not list(saved[1].glob('.causal*'))


def test_bad_input_is_one_sentence(three, net, saved):
    with pytest.raises(DlmechError, match='holds no net'): causal(dlmech.open(saved[1])[4], three.train, 9)
    with pytest.raises(ParameterError, match='n: 2 is not possible'): causal(saved[0][5], n=2)
    pair = three.train.images[:40].float()/127 - 1, torch.zeros(40, dtype=torch.int64)
    with pytest.raises(DlmechError, match='label 1 has no image'):
        causal(saved[0][5], (pair[0].permute(0, 3, 1, 2), pair[1]), 9)
    unused = small_net()
    unused.extra = nn.Conv2d(3, 3, 1)
    unused.forward = lambda x: x.mean((2, 3))
    with pytest.raises(DlmechError, match='takes no part'): Silencer(unused, 'extra', blobs(4, 4)[0], 3)


# ---- units kept together

def test_units_kept_together_are_what_the_head_says_of_them(three, saved):
    layer = saved[0]['layers.5']
    rows = cooperation(layer, three.train, three.test, 2, (90, 60))
    assert list(rows.groupby('units').size()) == [16, 2, 2, 2, 1]
    batches = even_batches(three.test, 'cpu', 60)
    keep, y = torch.arange(16) == 3, torch.cat([y for _, y in batches])
    with only(saved[0].net, 'layers.5', keep), Trunk(saved[0].net, ['layers.5']) as trunk:
        maps = torch.cat([trunk(x)['layers.5'] for x, _ in batches])
    alone = maps[:, 3].flatten(1) @ layer.head[:, 3].flatten(1).T
    one = rows[(rows.units == 1) & (rows.draw == 3)].fixed.item()
    assert np.isclose(one, (alone.argmax(1) == y).float().mean())
    for head in ('fixed', 'refitted'):
        found = crossover(rows, head)
        assert found['one_unit'] <= found['best_unit'] <= 1
        assert found['half'] in (1, 2, 4, 8, 16)


def test_a_layer_of_one_label_a_filter_needs_half_of_its_filters_for_half_of_its_success():
    net, images, heads = one_label_a_filter(8)
    m = dlmech.measure(net, images, images, heads=heads)
    rows = cooperation(m['1'], images, images, 3, (80, 80))
    found = crossover(rows, 'refitted')
    assert found['success_rate'] == 1
    assert found['half'] == 4
    assert (rows[rows.units == 4].refitted.between(.5, .75)).all()   # four labels, and some by chance
