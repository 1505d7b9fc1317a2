"""A finished run is opened without reading what is known: its layers, its images; and no image of another
data set is ever taken for one of the run's."""
import shutil, struct, sys
from dataclasses import replace

import numpy as np, pytest, torch
from PIL import Image

import dlmech
from dlmech import datasets, model
from dlmech.datasets import data_stamp, get_data, get_test
from dlmech.measurement import open_measurement
from dlmech.model import data_digest, LaterData, start
from dlmech.run import DlmechError, MANIFEST
from helpers import run


@pytest.fixture(autouse=True)
def settled(monkeypatch, tmp_path):
    "Files are trusted at once, and what is kept of them lies in the test's own folder."
    monkeypatch.setattr(datasets, 'SETTLED', 0.)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))


def write_images(folder, seed=0):
    "Ten images of each of two labels."
    g = np.random.default_rng(seed)
    for label in 'ab':
        (folder/label).mkdir(parents=True, exist_ok=True)
        for i in range(10):
            Image.fromarray(g.integers(0, 255, (32, 32, 3), np.uint8)).save(folder/label/f'{i}.png')


@pytest.fixture
def asked(tmp_path):
    "What makes a run on a folder of images, which has been started once."
    write_images(tmp_path/'images')
    asked = dict(arch='vgg6', d=2, dataset=f'folder:{tmp_path/"images"}', runs=str(tmp_path/'runs'), epochs=1)
    start(**asked)
    return asked


def test_a_second_start_reads_no_image_and_traces_no_layer(asked, monkeypatch):
    first = get_data(asked['dataset'])
    monkeypatch.setattr(model, 'layers_of', None)
    with monkeypatch.context() as closed:
        closed.setattr(model, 'get_data', None)
        again = start(**asked)
        assert isinstance(again.data, LaterData)
        assert not again.data.read
        assert (again.data.names, again.layers) == (['a', 'b'], [f'layers.{i}' for i in range(1, 6)])
    assert again.digests == dict(data_digest=data_digest(first))
    assert torch.equal(again.data.test.images, first.test.images)
    assert again.data.read
    assert torch.equal(replace(again.data, valid=first.test).valid.images, first.test.images)


@pytest.mark.parametrize('change', ['other', 'added', 'gone'])
def test_changed_files_are_noticed_at_the_start(asked, tmp_path, change):
    file = tmp_path/'images'/'a'/'3.png'
    if change == 'other': write_images(tmp_path/'images', 1)
    elif change == 'added': shutil.copy(file, file.with_name('9b.png'))
    else: file.unlink()
    with pytest.raises(DlmechError, match='holds a run of other images than there are now'): start(**asked)


def test_images_that_changed_unseen_are_noticed_when_they_are_read(asked, tmp_path, monkeypatch):
    "As where a bit of the disk has flipped: the files look as they did."
    monkeypatch.setattr(model, 'data_stamp', lambda *_: 'as before')
    start(**asked)
    again = start(**asked)
    write_images(tmp_path/'images', 1)
    assert not again.data.read
    for _ in range(2):
        with pytest.raises(DlmechError, match='holds a run of other images than there are now'):
            _ = again.data.test
    assert not again.data.read


def test_a_run_that_knows_no_stamp_is_read(asked, tmp_path):
    folder = next((tmp_path/'runs').iterdir())
    assert (folder/MANIFEST/'images').exists()
    (folder/MANIFEST/'images').write_bytes(b'\xff\xfe')
    assert not isinstance(start(**asked).data, LaterData)
    assert isinstance(start(**asked).data, LaterData)


def test_an_opened_run_reads_its_images_when_they_are_asked_for(asked, tmp_path):
    asked |= dict(heads='ridge')
    found = dlmech.measure_run(start(**asked))
    m = open_measurement(tmp_path/'runs'/found.title)
    assert m.source.run.data is None
    assert isinstance(m.source.data(), LaterData)
    assert torch.equal(m.images.images, found.images.images)
    write_images(tmp_path/'images', 1)
    with pytest.raises(DlmechError, match='put them back'): _ = open_measurement(m.source.run.path).images


def write_fashion(root, n=20):
    "A small data set in FashionMNIST's files, whose contents torchvision does not ask for."
    raw = root/'FashionMNIST'/'raw'
    raw.mkdir(parents=True)
    for part, g in ('train', np.random.default_rng(0)), ('t10k', np.random.default_rng(1)):
        pixels, labels = g.integers(0, 255, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10
        (raw/f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, n, 28, 28) + pixels.tobytes())
        (raw/f'{part}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 2049, n) + labels.tobytes())


@pytest.mark.filterwarnings('ignore:.* labels have under')
def test_kept_test_images_are_those_of_the_files(tmp_path, monkeypatch):
    write_fashion(tmp_path)
    whole = get_data('fashion-mnist', str(tmp_path), labels=3).test
    read = lambda: get_test('fashion-mnist', str(tmp_path), labels=3)
    first = read()
    with monkeypatch.context() as closed:
        closed.setattr(datasets, 'torchvision_test', None)
        kept = read()
    for found in first, kept:
        assert torch.equal(found.images, whole.images)
        assert torch.equal(found.labels, whole.labels)
        assert found.names == whole.names
    file = next((tmp_path/'cache'/'dlmech'/'kept').glob('*.safetensors'))
    file.write_bytes(file.read_bytes()[:-1] + b'?')  # damaged: read anew
    assert torch.equal(read().images, whole.images)
    raw = tmp_path/'FashionMNIST'/'raw'/'t10k-images-idx3-ubyte'
    raw.write_bytes(raw.read_bytes()[:16] + bytes(255 - b for b in raw.read_bytes()[16:]))  # other images now
    assert not torch.equal(read().images, whole.images)


def test_a_stamp_of_files_that_changed_just_now_is_none(tmp_path, monkeypatch):
    write_images(tmp_path/'images')
    name = f'folder:{tmp_path/"images"}'
    assert data_stamp(name) != ''
    monkeypatch.setattr(datasets, 'SETTLED', 100.)
    assert data_stamp(name) == ''
    assert data_stamp('cifar10', str(tmp_path/'nowhere')) == ''


def test_layers_are_found_without_torchs_compiler():
    code = ('import sys; from dlmech.arch import layers_of; layers_of("vgg16"); '
            'print("torch._dynamo" in sys.modules)')
    done = run(sys.executable, '-c', code)
    assert done.stdout.strip() == 'False', done.stderr
