"""The workers of a sweep are killed: on this machine, of Dask, jobs of submitit. Only the killed run is made
again, and the rest goes on. The notebook is a small one that keeps a count of its tries."""
import os, signal, subprocess, sys, threading
from pathlib import Path

import nbformat, psutil, pytest

from dlmech.run import DlmechError
from dlmech.study.sweeps import run_sweep
from helpers import ENV, wait_for

pytestmark = pytest.mark.filterwarnings('ignore::dlmech.run.DlmechWarning')

PARAMETERS = '''
arch: str = 'vgg6'
dataset: str = 'digits'
layer: str = 'last'
d: int = 2
seed: int = 0
epochs: int = 1
runs: str = 'runs'
'''
# it says who makes it; its first try waits while there is a file `hold`
WORK = '''
import json, os, time
from pathlib import Path
folder = Path(runs)/f'{arch}-{dataset}-d{d}-fast{epochs}-seed{seed}'
tries = folder/'tries'
with open(tries, 'a') as f: f.write(f'{os.getppid()} {os.getpid()} {os.environ["OMP_NUM_THREADS"]}\\n')
if seed == 9: raise ValueError('no memory')
while (folder.parent/'hold').exists() and len(tries.read_text().splitlines()) == 1: time.sleep(.02)
(folder/'found.json').write_text(json.dumps({'tenth': seed/10}))
'''


def small_sweep(folder: Path, seeds: list[int], more: str = '') -> Path:
    "A sweep of the small notebook over these seeds; each first try is held."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (PARAMETERS, WORK)])
    nb.cells[0].metadata['tags'] = ['parameters']
    nb.metadata['kernelspec'] = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nb, folder/'small.ipynb')
    (folder/'runs').mkdir()
    (folder/'runs'/'hold').touch()
    file = folder/'small.yaml'
    file.write_text(f'notebook: {folder}/small.ipynb\nparameters: {{d: 2, epochs: 1, runs: {folder}/runs}}\n'
                    f'cross: {{seed: {seeds}}}\ntable: {{found.json: [tenth]}}\n{more}')
    return file


def tries(folder: Path, seed: int) -> list[tuple[int, int]]:
    "The processes of papermill and of its kernel, for each try of that seed."
    path = folder/'runs'/f'vgg6-digits-d2-fast1-seed{seed}'/'tries'
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [tuple(map(int, line.split()[:2])) for line in lines if line.endswith('\n')]


def release(folder: Path) -> None: (folder/'runs'/'hold').unlink()


def gone(pids) -> bool:
    "Whether these processes have ended."
    def ended(pid):
        try: return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess: return True
    return all(map(ended, pids))


class Sweeping(threading.Thread):
    "A sweep that goes on while the test kills."
    def __init__(self, *args, **kwargs):
        super().__init__(daemon=True)
        self.args, self.table, self.error = (args, kwargs), None, None
        self.start()

    def run(self):
        args, kwargs = self.args
        try: self.table = run_sweep(*args, **kwargs)
        except BaseException as e: self.error = e

    def found(self):
        "The table, once it is there."
        self.join(600)
        if self.error: raise self.error
        return self.table


def check_killed_once(folder: Path, table, killed: int, seeds: list[int]) -> None:
    "The killed run was made twice, the others once, and no process of the first try is left."
    assert table.failed.tolist() == [''] * len(seeds)
    assert table.tenth.tolist() == [seed/10 for seed in seeds]
    assert [len(tries(folder, seed)) for seed in seeds] == [1 + (seed == killed) for seed in seeds]
    wait_for(lambda: gone(pid for seed in seeds for both in tries(folder, seed) for pid in both))


def test_a_killed_process_loses_its_own_run_alone(tmp_path):
    sweeping = Sweeping(small_sweep(tmp_path, [1, 2]), workers=2)
    wait_for(lambda: tries(tmp_path, 1) and tries(tmp_path, 2))
    os.kill(tries(tmp_path, 1)[0][0], signal.SIGKILL)
    wait_for(lambda: len(tries(tmp_path, 1)) == 2)
    release(tmp_path)
    check_killed_once(tmp_path, sweeping.found(), 1, [1, 2])


@pytest.mark.slow
def test_a_killed_kernel_is_a_lost_worker_and_an_error_is_none(tmp_path):
    sweeping = Sweeping(small_sweep(tmp_path, [9, 1]))
    wait_for(lambda: tries(tmp_path, 1))
    os.kill(tries(tmp_path, 1)[0][1], signal.SIGKILL)
    table = sweeping.found()
    assert table.failed[0].startswith('ValueError: no memory; ')
    assert table.failed[1] == ''
    assert [len(tries(tmp_path, seed)) for seed in (9, 1)] == [1, 2]


@pytest.fixture
def dask(tmp_path, monkeypatch):
    "A scheduler here, with one worker of one thread and its nanny, on the loopback."
    distributed = pytest.importorskip('distributed', reason='dask is not installed, so no worker is killed')
    monkeypatch.setenv('PYTHONPATH', ENV['PYTHONPATH'])
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1',
                                       dashboard_address=None, local_directory=str(tmp_path/'dask'))
    with cluster: yield cluster


def on(cluster) -> str: return cluster.scheduler_address.replace('tcp://', 'dask://')


FEW = pytest.mark.parametrize('seeds', [[1], pytest.param([1, 2], marks=pytest.mark.slow)])


@FEW
def test_a_killed_worker_of_dask_loses_its_own_run_alone(tmp_path, dask, seeds):
    sweeping = Sweeping(small_sweep(tmp_path, seeds), on=on(dask))
    first, = wait_for(lambda: [seed for seed in seeds if tries(tmp_path, seed)])
    worker, = (w.pid for w in dask.workers.values())
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: sum(len(tries(tmp_path, seed)) for seed in seeds) == 2)   # Dask may take the other first
    release(tmp_path)
    check_killed_once(tmp_path, sweeping.found(), first, seeds)


@FEW
def test_a_killed_job_loses_its_own_run_alone(tmp_path, seeds):
    pytest.importorskip('submitit', reason='submitit is not installed, so no job is killed')
    sweeping = Sweeping(small_sweep(tmp_path, seeds, 'slurm: {cluster: local}\n'), on='slurm')
    wait_for(lambda: all(tries(tmp_path, seed) for seed in seeds))
    psutil.Process(tries(tmp_path, 1)[0][0]).parent().kill()
    wait_for(lambda: len(tries(tmp_path, 1)) == 2)
    release(tmp_path)
    check_killed_once(tmp_path, sweeping.found(), 1, seeds)
    assert list((tmp_path/'runs'/'sweep-small-jobs').glob('*.err'))


DRIVER = 'import sys; from dlmech.study.sweeps import run_sweep; run_sweep(sys.argv[1], on=sys.argv[2])'


def killed_driver(file: Path, folder: Path, where: str) -> None:
    "A sweep is killed while it has a run going, whose processes end too."
    driver = subprocess.Popen([sys.executable, '-c', DRIVER, file, where], env=ENV, stderr=subprocess.DEVNULL)
    wait_for(lambda: tries(folder, 1), driver)
    driver.kill()
    driver.wait()
    wait_for(lambda: gone(tries(folder, 1)[0]))
    assert not tries(folder, 2)


@pytest.mark.slow
def test_the_same_command_goes_on_after_its_own_kill(tmp_path):
    file = small_sweep(tmp_path, [0, 1, 2])
    hold, whole = tmp_path/'runs'/'hold', file.read_text()
    hold.unlink()
    file.write_text(whole.replace('[0, 1, 2]', '[0]'))
    run_sweep(file)
    hold.touch()
    file.write_text(whole)
    killed_driver(file, tmp_path, 'local')
    release(tmp_path)
    table = run_sweep(file)
    assert (table.failed == '').all()
    assert [len(tries(tmp_path, seed)) for seed in (0, 1, 2)] == [1, 2, 1]


@pytest.mark.slow
def test_dask_ends_the_runs_of_a_killed_sweep(tmp_path, dask):
    killed_driver(small_sweep(tmp_path, [1, 2]), tmp_path, on(dask))
    release(tmp_path)
    assert (run_sweep(tmp_path/'small.yaml', on=on(dask)).failed == '').all()
    assert [len(tries(tmp_path, seed)) for seed in (1, 2)] == [2, 1]


@pytest.mark.slow
def test_a_scheduler_that_is_gone_ends_the_sweep_with_a_sentence(tmp_path, dask):
    sweeping = Sweeping(small_sweep(tmp_path, [1]), on=on(dask))
    wait_for(lambda: tries(tmp_path, 1))
    dask.close()
    with pytest.raises(DlmechError, match='takes no runs any more .*goes on from what is there'):
        sweeping.found()
    wait_for(lambda: gone(tries(tmp_path, 1)[0]))
