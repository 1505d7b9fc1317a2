"What several tests share: a small trained network with heads, and the real data sets where they are at hand."
import os, subprocess, sys
from functools import cache

if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')   # side by side with others: one thread each

import pytest, torch

from helpers import TOP

UNPACK = TOP.parent/'shared'/'data'/'unpack.py'
# files, the longest first
LONG = """notebooks kills workers explore universality real fuzz cuda prune compare controls study run package
          arch report experiments compact scores measure""".split()


def pytest_configure(config):
    config.addinivalue_line('markers', 'real: needs the real data sets beside the checkout (../shared/data)')


def pytest_collection_modifyitems(items):
    "Long files begin first, so that no process is left alone with one at the end."
    place = {f'test_{name}.py': i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


@pytest.fixture(scope='session')
def real(tmp_path_factory):
    "`real('cifar10')`: the folder that holds this data set, laid out when it is first asked for."
    if not UNPACK.exists(): pytest.skip(f'the real data sets are not at hand: there is no {UNPACK}')
    root = tmp_path_factory.mktemp('data')
    @cache
    def lay(name):
        subprocess.run([sys.executable, UNPACK, root, name], check=True, stdout=subprocess.DEVNULL)
        return root
    return lay


@pytest.fixture(scope='session')
def cifar_root(real): return real('cifar10')


@pytest.fixture(scope='session')
def trained_digits():
    "VGG-6 (d = 4) trained on the digits, its data, and a head on every layer."
    from dlmech.arch import get_model, layers_of
    from dlmech.batches import Batches
    from dlmech.datasets import get_data
    from dlmech.model import get_recipe, train
    from dlmech.probe import exact_heads, joined
    data, net, paths = get_data('digits'), get_model('vgg6', 10, d=4), layers_of('vgg6')
    train(net, data, get_recipe('fast', 'vgg6', data), torch.device('cpu'))
    batches = Batches(data.train, 50, shuffle=True, shift=4)
    return net, joined(exact_heads(net.eval(), paths, batches, 10)), data
