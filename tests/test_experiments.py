"""The script that trains the papers' networks, tried on a tiny one: ended at any point, it goes on; it leaves
whole files. Where it is ended hangs on what it has done, not on how fast the machine is."""
import json, os, signal, subprocess, sys
from functools import partial

import pandas as pd, pytest

from helpers import ENV, run, TOP, wait_for

SCRIPT = TOP/'experiments'/'paper.py'


def command(folder, *options):
    return [sys.executable, str(SCRIPT), '--jobs', 'tiny', '--runs', str(folder/'runs'), '--out',
            str(folder/'out'), *options]


def log(folder): return json.loads((folder/'out'/'log.json').read_text())


def ended(folder): return [(step['step'], step['ended']) for step in log(folder)]


def test_a_step_at_a_time(tmp_path):
    done = run(*command(tmp_path, '--steps', '1'))
    assert done.returncode == 0, done.stderr[-2000:]
    assert ended(tmp_path) == [('train', 0)], done.stderr[-2000:]
    trained = next((tmp_path/'runs').rglob('train.csv'))
    before = trained.stat().st_mtime_ns
    assert not list(tmp_path.rglob('layers.csv'))
    done = run(*command(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert ended(tmp_path) == [('train', 0), ('measure', 0)], done.stderr[-2000:]
    assert trained.stat().st_mtime_ns == before
    assert pd.read_csv(tmp_path/'out'/'tiny'/'paper'/'layers.csv').layer.tolist() == [1, 2, 3, 4, 5]
    stated = json.loads(next((tmp_path/'out'/'tiny').glob('*.json')).read_text())
    assert stated['arch'] == 'vgg6'
    assert stated['epochs'] == 1
    assert 0 <= stated['test_success_rate'] <= 1


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
        assert ended(tmp_path) == [('train', 'stopped')]
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
