"""A sweep over K: side by side, cut short and gone on with, with a run that fails; and the line through its
points."""
import json, os, signal, subprocess, sys, time

import numpy as np, pandas as pd, pytest

from dlmech.run import DlmechError, ParameterError, read_csv
from dlmech.stats import fit_line, interval, t_factor
from dlmech.universality import (hardly_depends, row_file, planned, sweep, sweep_figure, sweep_file, told,
                                 verdicts)

TINY = dict(arch='vgg6', dataset='digits', d=2, epochs=1)


def test_the_line_is_that_of_another_implementation():
    stats = pytest.importorskip('scipy.stats')                                     # scikit-learn brings it
    rng = np.random.default_rng(0)
    for n in (3, 5, 24):
        x = rng.choice([3, 5, 10, 20, 40, 60, 80, 100], n, replace=n > 8).astype(float)
        y = .05 + .004*x + .02*rng.standard_normal(n)
        line, known, t = fit_line(x, y), stats.linregress(x, y), stats.t.ppf(.975, n-2)
        assert np.allclose([line.a, line.b, line.r2, line.b_within, line.a_within],
                           [known.intercept, known.slope, known.rvalue**2, t*known.stderr,
                            t*known.intercept_stderr], rtol=1e-5)
    for n in range(1, 40):
        assert np.isclose(t_factor(n), stats.t.ppf(.975, n), rtol=1e-5)
        assert np.isclose(t_factor(n, .5), stats.t.ppf(.75, n), rtol=1e-5)
    v = rng.standard_normal(7)
    assert np.isclose(interval(v)[1], stats.t.interval(.95, 6, v.mean(), stats.sem(v))[1] - v.mean(),
                      rtol=1e-5)


def test_the_interval_holds_the_slope_as_often_as_it_says():
    rng, K, inside = np.random.default_rng(1), np.repeat([3, 5, 10, 20, 40, 60, 80, 100], 3), 0
    for _ in range(400):
        line = fit_line(K, .05 + .004*K + .03*rng.standard_normal(len(K)))
        inside += abs(line.b - .004) < line.b_within
    assert .92 < inside / 400 < .98


def test_too_few_points_are_an_error():
    for x, y in (([3, 5], [0, 1]), ([3, 3, 3], [0, 1, 2])):
        with pytest.raises(DlmechError, match='at least three points'): fit_line(x, y)


def known_table():
    """A table whose claims are known: error .02 + .005 K (+ .01 in the second draw), Nc constant, Cs as the
    root of K, SNR as 2 K^-.2."""
    rows = [dict(K=K, draw=draw, arch='vgg16', dataset='cifar100', d=8, recipe='fast', epochs=8,
                 error=.02 + .005*K + .01*draw, n_clusters=1.2, cluster_size=K**.5,
                 noise=K**2/10, snr=2*K**-.2, failed='') for K in (3, 5, 10, 20, 40, 60, 80, 100)
                 for draw in (0, 1)]
    return pd.DataFrame([*rows, dict(K=100, draw=2, failed='no memory')])


def test_verdicts_of_known_data():
    t = verdicts(known_table())
    assert t.verdict.tolist() == ['holds', 'holds', 'holds', 'does not hold here', 'holds in part']
    assert t.measured[0].startswith('0.03 ± ')
    assert '(0.005 ± ' in t.measured[0]
    assert 'R² = 1.000, n = 8' in t.measured[0]
    assert 'K^(0.50 ± 0.00)' in t.measured[3]
    assert 'K^(-0.20 ± 0.00)' in t.measured[4]
    assert told(known_table()) == 'vgg16, d = 8 (the papers: 64), cifar100, recipe fast, 8 epochs, K = 3 to 100, 2 draws of each K, 16 runs, 1 failed'
    assert hardly_depends([3, 10, 100], [1, 2, 1])[2] == 'holds'  # no trend, if no fit either
    assert len(sweep_figure(known_table()).axes) == 4


def test_two_processes_and_a_run_that_fails(tmp_path):
    "Its sentence stands in the table, the other is finished; the next call does only what is missing."
    asked = dict(Ks=[2, 3], draws=1, **TINY, runs=str(tmp_path/'runs'), folder=str(tmp_path))
    plan = planned(asked['Ks'], 1, **TINY, runs=asked['runs'])
    bad = row_file(plan[0]).parent
    bad.mkdir(parents=True)
    (bad/'config.json').write_text(json.dumps({'seed': 9}))
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
from dlmech.universality import sweep
sweep([2, 3], draws=1, workers=1, arch='vgg6', dataset='digits', d=2, epochs=8, runs=sys.argv[1])
'''

def descendants(pid: int) -> set[int]:
    "The processes that `pid` started, and those that they started."
    table = [line.split() for line in subprocess.run(['ps', '-A', '-o', 'pid=,ppid='], capture_output=True,
                                                     text=True).stdout.splitlines()]
    found, new = set(), {pid}
    while new:
        new = {int(p) for p, parent in table if int(parent) in new} - found
        found |= new
    return found

def alive(pids) -> set[int]:
    lines = subprocess.run(['ps', '-A', '-o', 'pid=,stat='], capture_output=True,
                           text=True).stdout.splitlines()
    return set(pids) & {int(line.split()[0]) for line in lines if 'Z' not in line.split()[1]}

def until(what, seconds: float) -> bool:
    end = time.time() + seconds
    while not what() and time.time() < end: time.sleep(.05)
    return what()


def test_a_killed_sweep_takes_its_processes_along_and_goes_on(tmp_path):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    job = subprocess.Popen([sys.executable, '-c', JOB, str(tmp_path)], env=env, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    folders = [tmp_path/f'vgg6-digits-K{K}-d2-fast8-seed0' for K in (2, 3)]
    assert until(lambda: any((f/'checkpoint.safetensors').exists() for f in folders), 240)
    children = descendants(job.pid)
    assert len(children) >= 2  # papermill's process, and its kernel
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert until(lambda: not alive(children), 30), alive(children)
    assert not any((f/'universality.json').exists() for f in folders)
    cut = [f for f in folders if (f/'checkpoint.safetensors').exists()]
    done = {f: len(read_csv(f/'train.csv')) for f in cut if (f/'train.csv').exists()}
    table = sweep([2, 3], draws=1, **TINY | dict(epochs=8), runs=str(tmp_path))
    assert (table.failed == '').all()
    assert cut
    assert all(0 < n < 8 for n in done.values())
    assert all(len(read_csv(f/'train.csv')) == 8 for f in folders)


@pytest.mark.parametrize('change, said', [
    (dict(Ks=[2, 11]), 'labels: there are only 10'), (dict(Ks=[1]), 'Ks: 1 is not possible'),
    (dict(Ks=[]), 'Ks: there is none'),
    (dict(draws=0), 'draws: 0 is not possible'), (dict(workers=-1), 'workers: -1 is not possible'),
    (dict(arch='vgg7'), "arch: there is no 'vgg7'"),
    (dict(seed=1), "parameters: there is no 'seed'"), (dict(lyer=1), "parameters: there is no 'lyer'"),
])
def test_what_cannot_be_is_refused_before_anything_is_made(tmp_path, change, said):
    with pytest.raises(ParameterError) as e:
        sweep(**dict(Ks=[2], draws=1, **TINY) | change, runs=str(tmp_path/'runs'))
    assert str(e.value).startswith(said)
    assert not (tmp_path/'runs').exists()
