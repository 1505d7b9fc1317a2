"A sweep over K: side by side, cut short and gone on with, with a run that fails; and what it says of P2."
import json, os, signal, subprocess, sys

import numpy as np, pandas as pd, pytest

from dlmech.run import ParameterError, read_csv
from dlmech.stats import FAILS, HOLDS
from dlmech.study.universality import (describe_sweep, plan_sweep, row_file, sweep, sweep_claims,
                                       sweep_figure, sweep_file)
from helpers import ENV, run, TINY, TOP, wait_for


def known_table():
    """A table whose claims are known: error .02 + .005 K (+ .01 in the second draw), Nc constant, Cs as the
    root of K, SNR as 2 K^-.2."""
    rows = [dict(K=K, draw=draw, arch='vgg16', dataset='cifar100', d=8, recipe='fast', epochs=8,
                 error=.02 + .005*K + .01*draw, n_clusters=1.2, cluster_size=K**.5,
                 noise=K**2/10, snr=2*K**-.2, failed='') for K in (3, 5, 10, 20, 40, 60, 80, 100)
                 for draw in (0, 1)]
    return pd.DataFrame([*rows, dict(K=100, draw=2, failed='no memory')])


def test_claims_about_known_data():
    t = sweep_claims(known_table())
    assert t['verdict'].tolist() == [HOLDS, HOLDS, HOLDS, FAILS, FAILS]
    without = t['claim'].str.contains('its null not in this table')
    assert without.tolist() == [False, False, True, True, True]
    numbers = t['measured']
    assert numbers[0].startswith('0.03 ± ')
    assert '(0.005 ± ' in numbers[0]
    assert 'ahead of the logarithm' in numbers[0]
    assert 'exponent of K 0.5 [' in numbers[3]
    assert 'over 16 runs' in numbers[3]
    assert describe_sweep(known_table()) == ('vgg16, d = 8 (the papers: 64), cifar100, recipe fast, '
                                             '8 epochs, K = 3 to 100, 2 draws of each K, 16 runs, 1 failed')
    assert len(sweep_figure(known_table()).axes) == 4


def test_the_null_of_each_K_is_taken_off():
    "Nc and Cs that grow with K only as their null does hardly depend on it; a growth of the logarithm fails."
    t = known_table()
    t = t.assign(error=.1*np.log(t.K) + .002*t.draw, n_clusters_null=t.K**.5, n_clusters=1.2 + t.K**.5,
                 n_clusters_excess=1.2 + .01*t.draw, cluster_size_excess=t.K**.5 - 2, snr_excess=t.snr - 1,
                 asked_steps=900)
    claims = sweep_claims(t)
    assert claims['verdict'].tolist() == [FAILS, FAILS, HOLDS, FAILS, FAILS]
    assert not claims['claim'].str.contains('null').any()
    assert claims['measured'][2].startswith('beyond its null 1.21 to 1.21')
    assert '900 steps' in describe_sweep(t)
    lines = [line.get_linestyle() for line in sweep_figure(t).axes[1].lines]
    assert '--' in lines


def test_every_K_gets_as_many_steps(tmp_path):
    asked = dict(Ks=[2, 10], draws=1, arch='vgg6', dataset='digits', d=2, runs=str(tmp_path))
    table = sweep(**asked, steps=80)
    assert (abs(table.steps - 80) <= 20).all()
    assert (table.asked_steps == 80).all()
    assert table.learned.between(0, 1).all()
    assert [p.name for p in tmp_path.glob('*.csv')] == ['universality-vgg6-digits-d2-fast-steps80.csv']
    assert sweep(**asked, steps=80).equals(table)
    few, many = (next(p for p in plan_sweep([2, 10], 1, 4000, arch='vgg6', dataset='digits', d=2)
                      if p.labels == K).epochs for K in (2, 10))
    assert few == pytest.approx(4000/33, rel=.1)      # 33 steps an epoch
    assert many == pytest.approx(4000/41, rel=.1)


def test_the_script_of_the_sweep_makes_the_same_and_goes_on(tmp_path):
    command = [sys.executable, TOP/'experiments'/'sweep.py', '--dataset', 'digits', '--d', 2, '--steps', 40,
               '--Ks', 2, 3, 5, '--draws', 1, '--runs', tmp_path]
    done = run(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'the maximal error grows about linearly with K' in done.stdout
    made = {f: f.stat().st_mtime_ns for f in tmp_path.rglob('*.safetensors')}
    assert len(made) >= 3
    assert run(*command).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in made} == made
    done = run(*command[:2], '--Ks', 1)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith('sweep: Ks: 1 is not possible')


def test_two_processes_and_a_run_that_fails(tmp_path):
    "Its sentence stands in the table, the other is finished; the next call does only what is missing."
    asked = dict(Ks=[2, 3], draws=1, **TINY, runs=str(tmp_path/'runs'), folder=str(tmp_path))
    plan = plan_sweep(asked['Ks'], 1, **TINY, runs=asked['runs'])
    bad = row_file(plan[0]).parent
    bad.mkdir(parents=True)
    (bad/'config.json').write_text(json.dumps({'seed': 9, 'heads': 'exact'}))
    table = sweep(**asked, workers=2)
    assert table.K.tolist() == [2, 3]
    assert (table.failed != '').tolist() == [True, False]
    assert f'{bad} holds another run' in table.failed[0]
    assert '\n' not in table.failed[0]
    assert row_file(plan[1]).with_name('phases.ipynb').exists()
    assert pd.isna(table.error[0])
    assert 0 <= table.error[1] <= 1
    kept = sweep_file(plan[0], str(tmp_path))
    assert kept.name == 'universality-vgg6-digits-d2-fast1.csv'
    assert read_csv(kept).failed.notna().sum() == 1

    (bad/'config.json').unlink()
    before = row_file(plan[1]).stat().st_mtime_ns
    table = sweep(**asked)
    assert (table.failed == '').all()
    assert table.error.notna().all()
    assert row_file(plan[1]).stat().st_mtime_ns == before
    fewer = sweep(**asked | dict(Ks=[2]))  # the file keeps what other calls found
    assert fewer.K.tolist() == [2]
    assert read_csv(kept).K.tolist() == [2, 3]
    pd.testing.assert_frame_equal(read_csv(kept).drop(columns='failed'), table.drop(columns='failed'),
                                  check_dtype=False)


JOB = '''
import sys
from dlmech.study.universality import sweep
sweep([2, 3], draws=1, workers=1, arch='vgg6', dataset='digits', d=2, epochs=8, runs=sys.argv[1])
'''

# Python reads a file of this name when it begins. The process that trains stops after its second checkpoint,
# so that where it is killed does not hang on the machine's speed.
STOP = '''
import time
from pathlib import Path
real, written = Path.replace, []
def replace(self, target):
    moved = real(self, target)
    if Path(target).name == 'checkpoint.safetensors': written.append(target)
    while len(written) == 2: time.sleep(1)
    return moved
Path.replace = replace
'''

def processes() -> list[tuple[int, int, str]]:
    "Number, parent's number and state of every process."
    table = subprocess.run(['ps', '-A', '-o', 'pid=,ppid=,stat='], capture_output=True, text=True).stdout
    return [(int(pid), int(parent), state) for pid, parent, state in map(str.split, table.splitlines())]

def descendants(pid: int) -> set[int]:
    "The processes that `pid` started, and those that they started."
    found, new, table = set(), {pid}, processes()
    while new:
        new = {p for p, parent, _ in table if parent in new} - found
        found |= new
    return found

def alive(pids: set[int]) -> set[int]:
    "Those of the processes that have not ended."
    return pids & {pid for pid, _, state in processes() if 'Z' not in state}


def test_a_killed_sweep_takes_its_processes_along_and_goes_on(tmp_path):
    (tmp_path/'sitecustomize.py').write_text(STOP)
    runs, first = tmp_path/'runs', os.pathsep.join([str(tmp_path), ENV['PYTHONPATH']])
    job = subprocess.Popen([sys.executable, '-c', JOB, runs], env=ENV | dict(PYTHONPATH=first),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cut, other = (runs/f'vgg6-digits-K{K}-d2-fast8-seed0' for K in (2, 3))
    children = set()
    try:
        wait_for((cut/'train.csv').exists, job)
        children = descendants(job.pid)
        assert len(children) >= 2  # papermill's process, and its kernel
        job.send_signal(signal.SIGKILL)
        job.wait()
        wait_for(lambda: not alive(children))
    finally:
        for pid in alive({job.pid, *children}): os.kill(pid, signal.SIGKILL)
    assert not any((f/'universality.json').exists() for f in (cut, other))
    assert (cut/'checkpoint.safetensors').exists()
    assert len(read_csv(cut/'train.csv')) == 1
    table = sweep([2, 3], draws=1, **TINY | dict(epochs=8), runs=str(runs))
    assert (table.failed == '').all()
    assert all(len(read_csv(f/'train.csv')) == 8 for f in (cut, other))


def test_a_run_that_is_there_is_read_and_not_made_again(tmp_path):
    "Also where the table that it stood in is lost, and processes are asked for."
    asked = dict(Ks=[2], draws=1, **TINY, runs=str(tmp_path))
    table = sweep(**asked)
    kept = sweep_file(plan_sweep([2], 1, **TINY, runs=str(tmp_path))[0])
    text, made = kept.read_bytes(), {f: f.stat().st_mtime_ns for f in tmp_path.rglob('*.safetensors')}
    kept.unlink()
    pd.testing.assert_frame_equal(sweep(**asked, workers=2), table)
    assert kept.read_bytes() == text
    assert {f: f.stat().st_mtime_ns for f in made} == made
    assert not list(tmp_path.rglob('phases.ipynb'))


@pytest.mark.parametrize('change, said', [
    (dict(Ks=[2, 11]), 'labels: there are only 10'), (dict(Ks=[1]), 'Ks: 1 is not possible'),
    (dict(Ks=[]), 'Ks: there is none'),
    (dict(steps=9, epochs=2), 'steps: give steps or epochs, not both'),
    (dict(steps=-1, epochs=0), 'steps: -1'),
    (dict(draws=0), 'draws: 0 is not possible'), (dict(workers=-1), 'workers: -1 is not possible'),
    (dict(arch='vgg7'), "arch: there is no 'vgg7'"),
    (dict(seed=1), "parameters: there is no 'seed'"), (dict(lyer=1), "parameters: there is no 'lyer'"),
])
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, change, said):
    with pytest.raises(ParameterError) as e:
        sweep(**dict(Ks=[2], draws=1, **TINY) | change, runs=str(tmp_path/'runs'))
    assert str(e.value).startswith(said)
    assert not (tmp_path/'runs').exists()
