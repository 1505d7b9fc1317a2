"""The script that trains the papers' networks, tried on a tiny one: cut off, it goes on; it leaves whole
files."""
import json, os, subprocess, sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).resolve().parent.parent/'bench'/'paper.py'


def paper(folder, minutes):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run([sys.executable, SCRIPT, '--jobs', 'tiny', '--minutes', str(minutes), '--runs',
                           folder/'runs', '--out', folder/'out'],
                          env=env, capture_output=True, text=True, timeout=400)


def test_it_stops_in_time_and_goes_on(tmp_path):
    paper(tmp_path, .1)  # long enough to begin, too short to train and measure
    steps = json.loads((tmp_path/'out'/'log.json').read_text())
    assert steps[-1]['ended'] == 'time is up'
    assert sum(s['seconds'] for s in steps) < 20
    assert not list(tmp_path.rglob('layers.csv'))
    done = paper(tmp_path, 6)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [s['ended'] for s in json.loads((tmp_path/'out'/'log.json').read_text())] == [0, 0], done.stderr[-2000:]
    assert pd.read_csv(tmp_path/'out'/'tiny'/'paper'/'layers.csv').layer.tolist() == [1, 2, 3, 4, 5]
    stated = json.loads(next((tmp_path/'out'/'tiny').glob('*.json')).read_text())
    assert stated['arch'] == 'vgg6'
    assert stated['epochs'] == 1
    assert 0 <= stated['test_success_rate'] <= 1
