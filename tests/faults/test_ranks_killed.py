"One process of several is killed within a run: torchrun ends the others, and the same command goes on."
import sys

import pytest

import dlmech
from dlmech.measurement import missing_layers
from dlmech.run import read_json
from helpers import ENV, KILL_AFTER, run

pytest.importorskip('accelerate', reason="what joins processes is not here: pip install 'dlmech[ranks]'")

ASKED = dict(arch='vgg6', dataset='digits', d=2, epochs=1, labels=[0, 3, 7], layer=5)
CODE = KILL_AFTER + '''
import os, sys
import dlmech
if os.environ['RANK'] == '1' and sys.argv[2] != 'nothing':
    kill_after(1, *f'dlmech.{sys.argv[2]}'.rsplit('.', 1))
dlmech.measure_run(dlmech.start(**{asked}, runs=sys.argv[1]))
'''


@pytest.mark.slow
@pytest.mark.parametrize('after', ['model.as_first', 'probe.collected', 'filter.check_dealt'])
def test_the_others_end_and_the_run_goes_on(after, tmp_path):
    script, runs = tmp_path/'script.py', tmp_path/'runs'
    script.write_text(CODE.replace('{asked}', repr(ASKED)))
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command, on_cpu = [*launch, script, runs], {**ENV, 'ACCELERATE_USE_CPU': 'true'}
    done = run(*command, after, env=on_cpu, timeout=900)
    assert done.returncode == 1
    assert 'Signal 9 (SIGKILL)' in done.stderr, done.stderr
    there = dlmech.start(**ASKED, runs=str(runs))
    assert missing_layers(there, [5]) == [5]
    done = run(*command, 'nothing', env=on_cpu, timeout=900)
    assert done.returncode == 0, done.stderr
    assert missing_layers(there, [5]) == []
    assert read_json(there.file('config.json'))['arch'] == 'vgg6'
    assert len(dlmech.open(there.path)) == 1
