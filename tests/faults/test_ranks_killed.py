"""One process of several is killed within a run: torchrun ends the others, and the same command goes on. The
first may work for longer than the others wait for it to come."""
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
PATIENT = """
import time
from dlmech.ranks import agreed, ranks
assert agreed(lambda: time.sleep(20) or ranks().world) == 1
print('together')
if ranks().first: time.sleep(20)
agreed(lambda: None)
"""
LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
ON_CPU = {**ENV, 'ACCELERATE_USE_CPU': 'true'}


@pytest.mark.slow
@pytest.mark.parametrize('after', ['model.as_first', 'probe.collected', 'filter.check_dealt'])
def test_the_others_end_and_the_run_goes_on(after, tmp_path):
    script, runs = tmp_path/'script.py', tmp_path/'runs'
    script.write_text(CODE.replace('{asked}', repr(ASKED)))
    command = [*LAUNCH, script, runs]
    done = run(*command, after, env=ON_CPU, timeout=900)
    assert done.returncode == 1
    assert 'Signal 9 (SIGKILL)' in done.stderr, done.stderr
    there = dlmech.start(**ASKED, runs=str(runs))
    assert missing_layers(there, [5]) == [5]
    done = run(*command, 'nothing', env=ON_CPU, timeout=900)
    assert done.returncode == 0, done.stderr
    assert missing_layers(there, [5]) == []
    assert read_json(there.file('config.json'))['arch'] == 'vgg6'
    assert len(dlmech.open(there.path)) == 1


@pytest.mark.slow
def test_the_first_is_waited_for_while_it_works_and_not_where_it_does_not_come(tmp_path):
    (tmp_path/'script.py').write_text(PATIENT)
    done = run(*LAUNCH, tmp_path/'script.py', env=ON_CPU | dict(DLMECH_PATIENCE='15'))
    assert done.returncode == 1
    assert done.stdout.count('together') == 2
    assert 'rank 1 of 2: another rank has ended, or did not come within 15 s (DLMECH_PATIENCE)' in done.stderr
