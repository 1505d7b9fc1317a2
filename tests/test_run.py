"A run's folder is a contract; a run can be killed and goes on; two may ask for it at once."
import json, os, shutil, signal, subprocess, sys, time

import pandas as pd, pytest, torch, torchvision
from safetensors.torch import load_file

from dlmech.filter import filtered, fields, label_means
from dlmech.data import Batches
from dlmech.model import start, trained
from dlmech.run import DlmechError, ParameterError

SMALL = dict(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1)

FILTERS = 'filter max_field n_clusters n_labels sizes labels noise internal_noise external_noise winner winner_share'.split()
MEANS = 'n_clusters cluster_size labels_per_filter noise signal cross snr snr_real'.split()
LAYERS = ['layer', 'name', 'filters', 'dead', 'success_rate', *MEANS, *(f'{m}_active' for m in MEANS)]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    filtered(r, [1, 2, 3, 4, 5])
    return r


def test_the_folder_is_as_the_house_has_it(run):
    names = {p.name for p in run.path.iterdir() if p.name[0] != '.'}
    assert names == {'config.json', 'model.safetensors', 'train.csv', 'probe.csv', 'layers.csv',
                     *(f'{kind}-{n}.{end}' for n in range(1, 6) for kind, end in
                       (('head', 'safetensors'), ('fields', 'safetensors'), ('top', 'safetensors'),
                        ('filters', 'csv')))}
    config = json.loads((run.path/'config.json').read_text())
    assert {k: config[k] for k in ('arch', 'dataset', 'd', 'epochs', 'seed',
                                   'K')} == dict(arch='vgg6', dataset='digits', d=2, epochs=1, seed=0, K=10)
    umask = os.umask(0)
    os.umask(umask)
    assert {p.stat().st_mode & 0o777 for p in run.path.iterdir()} == {0o666 & ~umask}


def test_the_tables_have_the_columns_that_others_read(run):
    assert list(pd.read_csv(run.path/'layers.csv').columns) == LAYERS
    for n in range(1, 6): assert list(pd.read_csv(run.path/f'filters-{n}.csv').columns) == FILTERS


def test_the_tensors_have_the_shapes_that_others_read(run):
    net = trained(run)
    means = label_means(net, run.layers, Batches(run.data.test, 100), 10)
    for n, C, side in ((1, 2, 16), (2, 4, 8), (5, 16, 1)):
        head = load_file(run.path/f'head-{n}.safetensors')['weight']
        M = load_file(run.path/f'fields-{n}.safetensors')['fields']
        assert head.shape == (10, C, side, side)
        assert M.shape == (C, 10, 10)
        assert M.dtype == torch.float64
        assert torch.allclose(M, fields(means[f'layers.{n}'], head), rtol=1e-4, atol=1e-6)


def test_other_thresholds_and_images_lie_beside_the_default_and_train_nothing(run):
    before = {p.name: p.stat().st_mtime_ns for p in run.path.iterdir() if p.is_file() and p.name != '.lock'}
    again = start(**SMALL | dict(threshold=.5, images='train'), runs=str(run.path.parent))
    filtered(again, [5])
    assert again.tables == run.path/'train-threshold0.5'
    assert (again.tables/'layers.csv').exists()
    assert {p.name: p.stat().st_mtime_ns for p in run.path.iterdir() if p.is_file()
            and p.name != '.lock'} == before


def test_another_configuration_in_the_folder_is_not_touched(run, tmp_path):
    p = tmp_path/run.path.name
    p.mkdir()
    (p/'config.json').write_text(json.dumps({**json.loads((run.path/'config.json').read_text()), 'seed': 9}))
    with pytest.raises(DlmechError, match='holds another run'): start(**SMALL, runs=str(tmp_path))


def test_a_torn_file_is_named(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path/run.path.name)
    (copy/'layers.csv').unlink()
    (copy/'head-5.safetensors').write_bytes((copy/'head-5.safetensors').read_bytes()[:100])
    with pytest.raises(DlmechError, match='head-5.safetensors is damaged'):
        filtered(start(**SMALL, runs=str(tmp_path)), [5])


JOB = '''
import sys
from dlmech.filter import filtered
from dlmech.model import start
print(filtered(start(arch='vgg6', dataset='digits', layer='last', d=4, epochs=4, runs=sys.argv[1]), [5]).to_csv())
'''


def job(runs):
    return subprocess.Popen([sys.executable, '-c', JOB, str(runs)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    whole = filtered(start(**SMALL | dict(d=4, epochs=4, layer='last'), runs=str(tmp_path/'whole')),
                     [5]).to_csv()
    p, checkpoint = job(tmp_path/'cut'), tmp_path/'cut'/'vgg6-digits-d4-fast4-seed0'/'checkpoint.safetensors'
    deadline = time.time() + 60
    while not checkpoint.exists() and time.time() < deadline: time.sleep(.005)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert checkpoint.exists()
    assert not (checkpoint.parent/'model.safetensors').exists()
    log = pd.read_csv(checkpoint.parent/'train.csv') if (checkpoint.parent/'train.csv').exists() else []
    assert len(log) < 4
    again, err = job(tmp_path/'cut').communicate(timeout=120)
    assert again.strip() == whole.strip(), err


def test_heads_go_on_where_they_were_killed(run, tmp_path, monkeypatch):
    import dlmech.probe
    batches = lambda: Batches(run.data.train, 50, shuffle=True, shift=4)
    args = (trained(run), run.layers[2:], batches(), 10, dlmech.probe.PROBE_RECIPES['fast'])
    whole = dlmech.probe.train_heads(*args)
    save, saved = dlmech.probe.save_checkpoint, []
    def save_and_die(*a):
        save(*a)
        saved.append(a)
        if len(saved) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(dlmech.probe, 'save_checkpoint', save_and_die)
    with pytest.raises(KeyboardInterrupt):
        dlmech.probe.train_heads(*args, checkpoint=tmp_path/'c.safetensors')
    monkeypatch.setattr(dlmech.probe, 'save_checkpoint', save)
    again = dlmech.probe.train_heads(*args, checkpoint=tmp_path/'c.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, again.weights))


def test_two_processes_may_ask_for_the_same_run(tmp_path):
    both = [job(tmp_path) for _ in range(2)]
    out = [p.communicate(timeout=180) for p in both]
    assert out[0][0], out[0][1] + out[1][1]
    assert out[0][0] == out[1][0], out[0][1] + out[1][1]


@pytest.mark.parametrize('change, said', [
    (dict(layer=14, arch='vgg16'),
     "layer: vgg16 has no layer 14; it may be 1 to 13, last, all, or one of layers.1"),
    (dict(layer=0), 'layer: vgg6 has no layer 0'), (dict(layer=1.5), 'layer: vgg6 has no layer 1.5'),
    (dict(arch='vgg7'), "arch: there is no 'vgg7'; it may be vgg6, vgg11, vgg16"),
    (dict(dataset='cifar11'),
     "dataset: there is no 'cifar11'; it may be digits, cifar10, cifar100, fashion-mnist, imagenet, "
     "folder:PATH"),
    (dict(dataset='folder:/nowhere'), 'dataset: /nowhere is no folder of images'),
    (dict(labels=11), 'labels: there are only 10'), (dict(labels='0,12'), 'labels: there is no label 12'),
    (dict(labels='x'), "labels: 'x' is not possible"),
    (dict(d=-1), 'd: -1 is not possible'), (dict(seed='a'), "seed: 'a' is not possible"),
    (dict(epochs=.5), 'epochs: 0.5 is not possible'),
    (dict(threshold=0), 'threshold: it may be a number between 0 and 1'),
    (dict(threshold=True), 'threshold:'),
    (dict(images='valid'), "images: there is no 'valid'"),
    (dict(recipe='slow'), "recipe: there is no 'slow'; it may be paper, fast, ridge"),
    (dict(device='tpu'), "device: there is no 'tpu'"), (dict(runs=3), 'runs: 3 is not text'),
    (dict(lyer=1), "parameters: there is no 'lyer'"),
])
def test_a_wrong_value_is_refused_before_anything_is_made(tmp_path, change, said):
    with pytest.raises(ParameterError if 'folder' not in str(change) else DlmechError) as e:
        start(**SMALL | dict(runs=str(tmp_path/'runs')) | change)
    assert str(e.value).startswith(said)
    assert '\n' not in str(e.value)
    assert not (tmp_path/'runs').exists()


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch):
    def no_network(*a, **k): raise OSError('no network')
    monkeypatch.setattr(torchvision.datasets.CIFAR10, 'download', no_network)
    monkeypatch.setenv('DLMECH_DATA', str(tmp_path/'data'))
    with pytest.raises(DlmechError) as e: start(**SMALL | dict(dataset='cifar10'), runs=str(tmp_path/'runs'))
    assert str(tmp_path/'data'/'cifar-10-batches-py') in str(e.value)
    assert 'DLMECH_DATA' in str(e.value)


def test_ridge_refuses_a_large_layer_before_training(tmp_path):
    r = start(**SMALL | dict(arch='vgg16', recipe='ridge', d=8), runs=str(tmp_path))
    with pytest.raises(DlmechError, match='layers.1 has 8,192 inputs'): filtered(r, [1])
    assert not r.file('train.csv').exists()
