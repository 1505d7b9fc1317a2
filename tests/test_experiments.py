"""The script that trains the papers' networks, tried on a tiny one: ended at any point, it goes on; it leaves
whole files. Where it is ended hangs on what it has done, not on how fast the machine is."""
import hashlib, json, os, signal, subprocess, sys
from functools import partial

import pandas as pd, pytest, torch, torch.nn.functional as F

from dlmech.probe import Maps
from helpers import ENV, run, TOP, wait_for

SCRIPT = TOP/'experiments'/'paper.py'


def command(folder, *options):
    return [sys.executable, str(SCRIPT), '--jobs', 'tiny', '--heads', 'exact', '--nice', '1', '--runs',
            str(folder/'runs'), '--out', str(folder/'out'), *options]


def log(folder): return json.loads((folder/'out'/'log.json').read_text())


def ended(folder): return [(step['step'], step['ended']) for step in log(folder)]


def test_a_step_at_a_time(tmp_path):
    done = run(*command(tmp_path, '--steps', '1'))
    assert done.returncode == 0, done.stderr[-2000:]
    assert ended(tmp_path) == [('train', 0)], done.stderr[-2000:]
    assert 'phase 1: epoch 1' in done.stderr     # what it does is said
    trained = next((tmp_path/'runs').rglob('train.csv'))
    before = trained.stat().st_mtime_ns
    assert not list(tmp_path.rglob('layers.csv'))
    done = run(*command(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    steps = [('train', 0), ('measure', 0), ('silence', 0)]
    assert ended(tmp_path) == [('train', 0), *steps], done.stderr[-2000:]
    assert trained.stat().st_mtime_ns == before
    assert pd.read_csv(tmp_path/'out'/'tiny'/'exact'/'layers.csv').layer.tolist() == [1, 2, 3, 4, 5]
    tests = sorted(f.stem for f in (tmp_path/'out'/'tiny'/'exact').glob('causal-*.csv'))
    assert tests == [f'causal-{n}' for n in (2, 3, 4, 5)]
    stated = json.loads(next((tmp_path/'out'/'tiny').glob('*.json')).read_text())
    assert stated['arch'] == 'vgg6'
    assert stated['epochs'] == 1
    assert 0 <= stated['test_success_rate'] <= 1
    assert stated['hours'] >= 0
    assert 'threads' in stated['hardware']
    assert len(list((tmp_path/'out'/'tiny').glob('*-layers.csv'))) == 1   # shipped again once it is measured


def test_large_weights_are_shipped_in_parts(tmp_path, monkeypatch):
    "What `ship` puts into a folder of its own is cut all the same."
    from experiments import paper
    monkeypatch.setattr('dlmech.model.SMALL', 100)
    monkeypatch.setattr(paper, 'PART', 10_000)
    monkeypatch.setattr(sys, 'argv', ['paper', '--runs', str(tmp_path/'runs'), '--out', str(tmp_path/'out')])
    paper.train('tiny', paper.JOBS['tiny'], paper.parser().parse_args())
    large = tmp_path/'out'/'tiny'/'large'
    parts = sorted(large.glob('*.safetensors.*'), key=lambda f: int(f.suffix[1:]))
    assert len(parts) > 1
    whole = tmp_path/'whole.safetensors'
    whole.write_bytes(b''.join(f.read_bytes() for f in parts))
    stated = json.loads(next((tmp_path/'out'/'tiny').glob('*.json')).read_text())
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == stated['sha256']


ENDLESS = ('--epochs', '100000')  # more than any machine trains meanwhile


def epochs_of(folder):
    "The rows of the training's log so far."
    found = list((folder/'runs').rglob('train.csv'))
    return pd.read_csv(found[0]) if found else pd.DataFrame(columns=['epoch'])


def has_gone_on(folder, there):
    "Whether there are two epochs more; those that were there stay."
    n = len(epochs_of(folder))
    assert n >= there
    return n >= there + 2


def test_it_ends_when_the_time_is_up(tmp_path):
    done = run(*command(tmp_path, *ENDLESS, '--minutes', '.15'))
    assert done.returncode == 0, done.stderr[-2000:]
    step, = log(tmp_path)
    assert step['ended'] == 'time is up'
    assert step['seconds'] >= 8
    assert not list(tmp_path.rglob('model.safetensors'))


def test_what_is_stopped_goes_on_from_its_last_epoch(tmp_path):
    seen = epochs_of(tmp_path)
    for _ in range(2):
        p = subprocess.Popen(command(tmp_path, *ENDLESS), env=ENV)
        wait_for(partial(has_gone_on, tmp_path, len(seen)), p)
        p.send_signal(signal.SIGINT)
        assert p.wait(600) == 0
        assert ended(tmp_path)[-1] == ('train', 'stopped')
        now = epochs_of(tmp_path)
        assert now[:len(seen)].values.tolist() == seen.values.tolist()
        assert now.epoch.tolist() == list(range(1, len(now) + 1))
        seen = now
    assert not list(tmp_path.rglob('layers.csv'))


@pytest.mark.skipif(not os.environ.get('DLMECH_SLOW'), reason='half a minute; by DLMECH_SLOW=1')
def test_the_script_for_a_gpu_on_the_cpu(tmp_path):
    "It compares, writes as it goes, and does not do again what is there."
    script = [sys.executable, TOP/'experiments'/'gpu.py', '--device', 'cpu', '--quick', '--out',
              tmp_path/'gpu.csv']
    done, again = run(*script), run(*script)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith('all as on the CPU (this is it)\n')
    table = pd.read_csv(tmp_path/'gpu.csv')
    assert table.part.unique().tolist() == ['measuring', 'training']
    assert table.same.all()
    assert again.stdout == 'all as on the CPU (this is it)\n'


@pytest.mark.parametrize('script', sorted((TOP/'experiments').glob('*.py')), ids=lambda path: path.name)
def test_every_script_says_what_it_does(script):
    "What is made in hours is not run here; a name that a script imports and that moved is found out."
    done = run(sys.executable, str(script), '--help')
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith('usage: ')


def test_heads_are_held_beside_the_minimum(tmp_path):
    "Four heads on maps of labels that can be told apart; what is in the table is not made again."
    from experiments.heads import fill, Layer, read_maps, write_maps
    def maps(seed):
        y = torch.arange(90) % 3
        x = torch.randn(90, 6, 2, 2, generator=torch.Generator().manual_seed(seed))
        x += F.one_hot(y, 6)[..., None, None]
        kept = Maps('layers.1', 90, x)
        kept.add(x, y)
        write_maps(tmp_path/f'{seed}.safetensors', kept)
        return read_maps(tmp_path/f'{seed}.safetensors')
    layer, out = Layer(maps(0), maps(1), 3), tmp_path/'heads.csv'
    fill(layer, dict(net='net', layer=1, images=90), out, False, ['exact', 'paper'])
    t = pd.read_csv(out)
    assert t.heads.tolist() == ['exact', 'exact', 'paper', 'paper']
    assert (t.success_rate > .6).all()
    exact = t[t.heads == 'exact']
    assert (exact.field_difference < 1e-3).all()
    assert (exact.same_clusters == 1).all()
    before = out.stat().st_mtime_ns
    fill(layer, dict(net='net', layer=1, images=90), out, False, ['exact', 'paper'])
    assert out.stat().st_mtime_ns == before
