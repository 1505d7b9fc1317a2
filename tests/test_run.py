"A run's folder is a contract; a run can be killed and goes on; two may ask for it at once."
import ast, json, os, re, shutil, signal, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import pandas as pd, pytest, torch, torchvision
from safetensors.torch import load_file

import dlmech.probe
from dlmech.batches import Batches
from dlmech.filter import fields, label_means
from dlmech.measurement import measure_run
from dlmech.model import get_recipe, start, train, train_or_load
from dlmech.probe import FACTS, PAPER, train_heads
from dlmech.run import DlmechError, ParameterError, Parameters, parameters_table

SMALL = dict(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1)

FILTERS = """filter max_field n_clusters n_labels sizes labels noise internal_noise external_noise winner
    winner_share column_share interaction_share diagonal_share winner_dependence winner_p_value
    n_clusters_null n_labels_null noise_null without_cluster_null permutations p_value q_value""".split()
MEANS = 'n_clusters cluster_size labels_per_filter noise signal cross snr'.split()
SHARES = 'column_share interaction_share diagonal_share winner_dependence'.split()
BESIDE = 'null excess excess_low excess_high'.split()
LAYERS = ['layer', 'name', 'filters', 'dead', 'success_rate', *MEANS,
          *(f'{m}_active' for m in MEANS if m != 'cluster_size'), *SHARES, 'without_cluster',
          *(f'{m}_{b}' for m in (*MEANS[:4], 'snr', 'without_cluster') for b in BESIDE),
          *'diagonal_share_null snr_p_value selective not_of_null permutations'.split(), *FACTS]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(r, [1, 2, 3, 4, 5])
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
    assert {p.stat().st_mode & 0o777 for p in run.path.rglob('*') if p.is_file()} == {0o666 & ~umask}


def test_the_tables_have_the_columns_that_others_read(run):
    assert list(pd.read_csv(run.path/'layers.csv').columns) == LAYERS
    for n in range(1, 6): assert list(pd.read_csv(run.path/f'filters-{n}.csv').columns) == FILTERS


def test_the_tensors_have_the_shapes_that_others_read(run):
    net = train_or_load(run)
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
    measure_run(again, [5])
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
        measure_run(start(**SMALL, runs=str(tmp_path)), [5])


JOB = '''
import os, signal, sys
import dlmech.model
from dlmech.measurement import measure_run

runs, dies_at = sys.argv[1], int(sys.argv[2])
answer_loss, steps = dlmech.model.answer_loss, []

def dying(*args):
    loss_of = answer_loss(*args)
    def counted(x, y):
        steps.append(len(y))
        if len(steps) == dies_at: os.kill(os.getpid(), signal.SIGKILL)
        return loss_of(x, y)
    return counted

dlmech.model.answer_loss = dying
run = dlmech.model.start(arch='vgg6', dataset='digits', layer='last', d=4, epochs=4, runs=runs)
print(measure_run(run).layers.to_csv())
'''


def job(runs, dies_at: int = 0):
    "A process that measures a run; at that step of phase 1 it is killed, and can do nothing about it."
    return subprocess.Popen([sys.executable, '-c', JOB, str(runs), str(dies_at)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    whole = start(**SMALL | dict(d=4, epochs=4, layer='last'), runs=str(tmp_path/'whole'))
    table = measure_run(whole).layers.to_csv()
    cut = tmp_path/'cut'/whole.path.name
    killed = job(tmp_path/'cut', dies_at=100)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert (cut/'checkpoint.safetensors').exists()
    assert not (cut/'model.safetensors').exists()
    assert 0 < len(pd.read_csv(cut/'train.csv')) < 4
    again, err = job(tmp_path/'cut').communicate()
    assert again.strip() == table.strip(), err
    assert (cut/'model.safetensors').read_bytes() == whole.file('model.safetensors').read_bytes()
    assert not (cut/'checkpoint.safetensors').exists()


def test_heads_go_on_where_they_were_killed(run, tmp_path, monkeypatch):
    batches = Batches(run.data.train, 50, shuffle=True, shift=4)
    args = train_or_load(run), run.layers[2:], batches, 10, replace(PAPER, epochs=4)
    whole = train_heads(*args)
    save, saved = dlmech.probe.save_checkpoint, []
    def save_and_die(*a):
        save(*a)
        saved.append(a)
        if len(saved) == 2: raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(dlmech.probe, 'save_checkpoint', save_and_die)
        train_heads(*args, checkpoint=tmp_path/'c.safetensors')
    again = train_heads(*args, checkpoint=tmp_path/'c.safetensors')
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, again.weights))


def test_two_processes_may_ask_for_the_same_run(tmp_path):
    both = [job(tmp_path) for _ in range(2)]
    out = [p.communicate() for p in both]
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
    (dict(threshold=0), 'threshold: 0 is not possible; it may be a number between 0 and 1, as 0.3'),
    (dict(threshold=True), 'threshold:'),
    (dict(images='valid'), "images: there is no 'valid'"),
    (dict(recipe='slow'), "recipe: there is no 'slow'; it may be paper, fast"),
    (dict(recipe='ridge'), 'recipe: ridge is a kind of heads now; write heads=ridge'),
    (dict(heads='fast'), 'heads: fast ones hung on their start and are gone; write heads=exact'),
    (dict(device='tpu'), "device: there is no 'tpu'"),
    (dict(runs=3), 'runs: 3 is not possible; it may be a text'),
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
    r = start(**SMALL | dict(arch='vgg16', heads='ridge', d=8), runs=str(tmp_path))
    with pytest.raises(DlmechError, match='layers.1 has 8,192 inputs'): measure_run(r, [1])
    assert not r.file('train.csv').exists()


class WithDropout(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.ReLU(), torch.nn.Flatten(),
                         torch.nn.Dropout(.5), torch.nn.Linear(4*7*7, 10))


def test_the_seed_stands_for_dropout_too(run):
    nets, r = [WithDropout() for _ in range(3)], get_recipe('fast', 'vgg6', run.data, epochs=1)
    for net in nets[1:]: net.load_state_dict(nets[0].state_dict())
    for net, seed in zip(nets, (0, 0, 1)):
        torch.manual_seed(time.time_ns())
        train(net, run.data, r, torch.device('cpu'), seed)
    assert nets[0][-1].weight.equal(nets[1][-1].weight)
    assert not nets[0][-1].weight.equal(nets[2][-1].weight)


def test_a_loss_that_is_no_longer_finite_is_said_in_one_sentence(run):
    net = WithDropout()
    r = get_recipe('fast', 'vgg6', run.data, epochs=1)
    r.lr = r.fc_lr = 1e30
    with pytest.raises(DlmechError, match='^phase 1: the loss is no longer finite in epoch 1'):
        train(net, run.data, r, torch.device('cpu'))
    torch.nn.init.constant_(net[0].weight, float('nan'))
    with pytest.raises(DlmechError, match='^phase 2: the loss is no longer finite in epoch 1'):
        train_heads(net, ['1'], Batches(run.data.train, 50), 10, PAPER)
    assert not any(m._forward_hooks for m in net.modules())


NBS = Path(__file__).resolve().parent.parent/'nbs'
PHASES = ['01_model', '02_probe', '03_filter']


def parameter_lines():
    "Every line of a notebook's cell of parameters, by notebook."
    for path in sorted(NBS.glob('*.ipynb')):
        for cell in json.loads(path.read_text())['cells']:
            if 'parameters' in cell['metadata'].get('tags', []):
                yield path.stem, [re.fullmatch(r'(\w+): \w+ = (.+?)\s+# (.+)', line).groups()
                                  for line in ''.join(cell['source']).splitlines()]


def test_the_parameters_mean_the_same_everywhere():
    meant = parameters_table()['means'].to_dict()
    assert set(meant) == set(Parameters.__dataclass_fields__)
    lines, default = dict(parameter_lines()), vars(Parameters()) | dict(layer=None)
    for name in (*PHASES, '06_explore', '04_dilution'):  # others ask for less, and say what
        assert {n: says for n, _, says in lines[name]} == meant, name
    for name in PHASES:
        assert {n: ast.literal_eval(value) for n, value, _ in lines[name]} | dict(layer=None) == default, name


@pytest.mark.parametrize('name', PHASES)
def test_a_phase_notebook_answers_within_ten_cells(name):
    cells = json.loads((NBS/f'{name}.ipynb').read_text())['cells']
    first = next(i for i, c in enumerate(cells) if c['source'][:1] == ['# How it works\n'])
    said = [o['data'] for c in cells[:min(first, 10)] if c['cell_type'] == 'code' for o in c['outputs']
            if 'data' in o]
    assert any('text/markdown' in o for o in said)
    assert any('image/png' in o for o in said)
    assert not any('#| export' in ''.join(c['source']) for c in cells[:first])
