"""The papers' networks and torchvision's: built, trained, measured; maps that are pooled; weights that do not
fit."""
import urllib.error
from hashlib import sha256

import pytest, torch, torchvision

import dlmech
from dlmech.arch import arch_names, get_model, layers_of, PLANS
from dlmech.datasets import get_data
from dlmech.measurement import measure_run
from dlmech.model import start, zoo, zoo_weights
from dlmech.run import DlmechError, ParameterError, read_csv, write_tensors

CONVOLUTIONS_AND_FC = dict(vgg6=(5, 1), vgg11=(10, 1), vgg16=(13, 3), avgg6=(5, 1), avgg8=(5, 3),
                           avgg13=(10, 3), avgg14=(13, 1), avgg16=(13, 3))


@pytest.mark.parametrize('name, counts', CONVOLUTIONS_AND_FC.items())
def test_the_family_has_the_counts_that_the_papers_state(name, counts):
    net = get_model(name, 7, d=2)
    kinds = [sum(isinstance(m, kind) for m in net.modules()) for kind in (torch.nn.Conv2d, torch.nn.Linear)]
    assert tuple(kinds) == counts
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert set(CONVOLUTIONS_AND_FC) == set(PLANS)
    assert len(layers_of(name)) == counts[0]


def test_both_orders_of_pooling_next_to_the_output_are_other_networks():
    x = torch.randn(4, 3, 32, 32)
    a, b = (get_model('avgg6', 5, d=2, plan=f'1 M 2 M 4 8 8 {end}').eval() for end in ('A4 M2', 'M2 A4'))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.allclose(a(x), b(x))
    assert torch.equal(a(x), get_model('avgg6', 5, d=2).eval()(x))
    last = a.layers[:4](x)
    last = a.layers[4].relu(a.layers[4].bn(a.layers[4].conv(last)))
    averages = last.unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5))
    assert torch.allclose(a.layers(x), averages.amax((2, 3), keepdim=True), atol=1e-6)


def test_every_name_of_torchvision_is_a_network_whose_layers_are_found():
    names = arch_names()
    assert len(names) == len(set(names))
    assert {'resnet18', 'convnext_tiny', 'vgg16_bn', 'efficientnet_b0'} < set(names)
    for name in ('resnet18', 'convnext_tiny', 'mobilenet_v3_small', 'squeezenet1_1', 'googlenet'):
        assert len(layers_of(name, size=224)) > 5
        assert all(isinstance(p, str) for p in layers_of(name, size=224))


@pytest.mark.parametrize('name, layers', [('efficientnet_b0', 9), ('resnet18', 9),
                                          ('avgg16', 13)])  # 16 x 16 where that can be: a quarter of the time
def test_a_run_of_another_architecture_from_end_to_end(name, layers, tmp_path):
    run = start(arch=name, dataset='digits', labels='0,1', epochs=1, layer='all', heads='ridge',
                runs=str(tmp_path), **(dict(d=2) if name in PLANS else dict(size=16)))
    table = measure_run(run, [1, layers]).layers
    assert table.name.tolist() == [run.layers[0], run.layers[-1]]
    assert len(run.layers) == layers
    assert ('-d2-' in run.path.name) == (name in PLANS)
    assert (table.success_rate > .4).all()
    if name == 'efficientnet_b0':
        assert table.filters.tolist() == [32, 1280]
        assert (read_csv(run.path/'probe.csv').inputs == table.filters).all()


def test_a_map_too_large_is_pooled_and_its_name_says_so():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3, 16, 16), torch.arange(40) % 4
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(6*256, 4)).eval()
    found = dlmech.measure(net, (x, y), (x, y), layers=['1'], largest_map=6*64)
    assert found.layers.name.tolist() == ['1@8x8']
    assert len(found['1']) == len(found['1'].filters) == 6
    head = found['1'].head                                                          # (4, 6, 8, 8)
    maps = net[:2](x).detach().unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))
    slow = torch.stack([torch.einsum('bhw,khw->bk', maps[y == k, 2], head[:, 2]).mean(0) for k in range(4)])
    assert torch.allclose(found['1'].fields[2].float(), slow, rtol=1e-4, atol=1e-6)


def test_vgg16_for_large_images_is_within_the_bound():
    with torch.device('meta'): net = get_model('vgg16', 1000, size=224)
    assert [m.in_features for m in net.fc[1:]] == [7*7*512, 4096, 4096]
    assert layers_of('vgg16', size=224)[0] == 'layers.1@32x32'
    assert layers_of('vgg16', size=224)[-1] == 'layers.13'


@pytest.mark.parametrize('given, said', [
    (dict(arch='vgg7'), "arch: there is no 'vgg7'; it may be vgg6, vgg11, vgg16, avgg6"),
    (dict(arch='resnet18', d=8), 'd: only the VGG family has a width, resnet18 has not'),
    (dict(arch='resnet18', plan='1 M'), 'plan: only the VGG family has one'),
    (dict(arch='avgg6', plan='1 M 2 M 4 8 A4'), 'plan: the layers of avgg6 are 1 2 4 8 8'),
    (dict(arch='avgg6', plan='M 1'), "plan: 'M' has no place there"),
    (dict(arch='vgg6', size=16), 'size: images of 16 x 16 are too small'),
    (dict(arch='vgg6', weights='pretrained', d=2), 'weights: nobody offers weights of vgg6'),
    (dict(arch='resnet18', weights='pretrained'),
     "weights: torchvision's tell 1,000 labels apart, digits has 10"),
    (dict(arch='vgg6', weights='nowhere.safetensors'), 'weights: there is no file'),
])
def test_bad_input_is_answered_with_one_sentence(given, said, tmp_path):
    with pytest.raises(ParameterError) as e: measure_run(start(runs=str(tmp_path), **given), [1])
    assert str(e.value).startswith(said)
    assert '\n' not in str(e.value)


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch):
    def unreachable(*args, **kwargs): raise urllib.error.URLError('no route')
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', unreachable)
    with pytest.raises(DlmechError, match='cannot be fetched .*checkpoints, or name a .safetensors'):
        get_model('resnet18', 1000, weights='pretrained')


def test_pretrained_networks_have_their_own_labels_and_colours(monkeypatch):
    made = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda *a,
                        **k: made.state_dict())
    with pytest.raises(ParameterError, match='tell 1,000 labels apart, not 10'):
        get_model('resnet18', 10, weights='pretrained')
    x = torch.rand(2, 3, 64, 64)
    named, plain = (get_model('resnet18', 1000, weights='pretrained', normal=normal).eval()
                    for normal in ('imagenet', ''))
    assert named(x).equal(plain(x))   # normalised once


def test_pretrained_networks_take_the_same_batches(monkeypatch):
    """torchvision's own weights see their own colours, whatever they are; the run's folder is enough to have
    the network again."""
    made = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda *a,
                        **k: made.state_dict())
    net, x = get_model('resnet18', 1000, weights='pretrained').eval(), torch.rand(2, 3, 64, 64)
    theirs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    colours = (x - torch.tensor(theirs.mean)[:, None, None]) / torch.tensor(theirs.std)[:, None, None]
    assert torch.allclose(net(x*2 - 1), made.eval()(colours), atol=1e-4)


def test_weights_of_ones_own_are_measured_without_training(tmp_path):
    mine = get_model('vgg6', 10, d=4, seed=5)
    write_tensors(tmp_path/'mine.safetensors', mine.state_dict())
    run = start(arch='vgg6', d=4, weights=str(tmp_path/'mine.safetensors'), runs=str(tmp_path/'runs'),
                layer='all')
    table = measure_run(run, [5]).layers
    assert not run.file('train.csv').exists()
    assert len(table) == 1
    other = start(arch='vgg6', d=4, runs=str(tmp_path/'runs'))
    assert other.path != run.path
    with pytest.raises(DlmechError, match=r'do not fit the network: .*layers.1.conv.weight is \(4, 3, 3, '
                                          r'3\) instead of \(8, 3, 3, 3\)'):
        get_model('vgg6', 10, d=8, weights=str(tmp_path/'mine.safetensors'))
    with pytest.raises(DlmechError, match=r'16 missing \(features.0.weight'):
        get_model('alexnet', 10, weights=str(tmp_path/'mine.safetensors'))


def test_every_network_of_the_zoo_loads_by_name():
    for name, row in zoo().iterrows():
        net = dlmech.load(name)
        assert not net.training
        assert net.stated['test_success_rate'] == row.test_success_rate
        assert len(net.table) == len(layers_of(row.arch, row.d))
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, net.stated['K'])
        assert {'hours', 'hardware', 'versions', 'trained_by', 'optimizer', 'megabytes'} <= set(net.stated)
        assert sha256(zoo_weights(name).read_bytes()).hexdigest() == net.stated['sha256']
    with pytest.raises(ParameterError, match='means no network; it may be'): dlmech.load('vgg99')


def test_other_sizes_of_small_images():
    data = get_data('digits', labels=[0, 1], size=48)
    assert data.train.images.shape[1:] == (48, 48, 3)
    assert data.test.images.shape[1:] == (48, 48, 3)
