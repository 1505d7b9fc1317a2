"On the real CIFAR-10, where it is at hand."
import pandas as pd, pytest

from dlmech.data import Batches, get_data
from dlmech.model import ZOO, start, success_rate, trained
from dlmech.filter import filtered

pytestmark = pytest.mark.real
SHIPPED = 'vgg6-cifar10-d64-fast-seed0'


def test_cifar10_as_the_papers_have_it(cifar_root):
    data = get_data('cifar10', str(cifar_root))
    assert (len(data.train), len(data.valid), len(data.test), data.K) == (47500, 2500, 10000, 10)
    assert data.names[:3] == ['airplane', 'automobile', 'bird'] and data.flip
    assert (data.test.labels.bincount() == 1000).all() and data.train.labels.bincount().min() > 4600
    four = get_data('cifar10', str(cifar_root), labels=4, seed=5)
    assert four.K == 4 and len(four.test) == 4000 and set(four.names) < set(data.names)


def test_the_shipped_network_has_the_success_rate_that_it_states(cifar_root, tmp_path):
    run = start(arch='vgg6', dataset='cifar10', root=str(cifar_root), runs=str(tmp_path))
    assert run.path.name == SHIPPED
    net = trained(run)
    assert len(pd.read_csv(run.path/'train.csv')) == len(pd.read_csv(ZOO/f"{SHIPPED}.csv"))                            # its log, not a new training
    stated = float(pd.read_json(ZOO/f'{SHIPPED}.json', typ='series')['test_success_rate'])
    assert abs(success_rate(net, Batches(run.data.test, 500)) - stated) < 2e-4


def test_the_three_phases_on_real_images(cifar_root, tmp_path):
    "Two labels, a narrow network, the closed-form heads: minutes become seconds."
    run = start(arch='vgg6', dataset='cifar10', labels='0,1', d=4, epochs=1, recipe='ridge', layer='all', root=str(cifar_root), runs=str(tmp_path))
    layers = filtered(run, [1, 2, 3, 4, 5])
    assert (layers.success_rate > .7).all() and (layers.success_rate.iloc[-1] > layers.success_rate.iloc[0])
    assert (layers.labels_per_filter_active >= 1).all()
