"After a kill at any moment the same command ends with the files of an undisturbed run, byte for byte."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import psutil, pytest

from dlmech.measurement import measure_run
from dlmech.model import start, train_or_load
from dlmech.probe import heads_for
from helpers import ENV, NBS, run as command
from storage import files_of, parts_of

PHASES = ['train', 'exact', 'paper', 'ridge', 'fields']
KILLS = Path(__file__).with_name('kills.py')
SMALL = dict(arch='vgg6', dataset='digits', labels='0,1,7', d=2, epochs=2, layer='5')


def killed(phase: str, kills: int, folder: Path) -> dict:
    "What came of so many kills of a phase."
    env = {**ENV, 'PYTHONPATH': os.pathsep.join([ENV['PYTHONPATH'], str(KILLS.parent)])}
    done = command(sys.executable, KILLS, phase, kills, 0, folder, env=env, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('phase', PHASES)
def test_a_killed_phase_ends_the_same(phase, tmp_path):
    assert killed(phase, 2, tmp_path/'runs')['killed'] >= 2


@pytest.mark.slow
@pytest.mark.parametrize('phase', PHASES)
def test_a_phase_killed_twenty_times_ends_the_same(phase, tmp_path):
    found = killed(phase, 20, tmp_path/'runs')
    print(found)
    assert found['killed'] >= 20


# ---- papermill

def papermill(name: str, runs: Path, out: Path) -> subprocess.Popen:
    "A notebook by papermill, in a process that may be killed."
    given = [a for k, v in (SMALL | dict(runs=runs)).items() for a in ('-p', k, str(v))]
    env = {k: v for k, v in ENV.items() if k != 'MPLBACKEND'}
    command = ['papermill', str(NBS/f'{name}.ipynb'), str(out), *given, '--no-progress-bar']
    return subprocess.Popen(command, env=env, cwd=NBS.parent, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def kill(p: subprocess.Popen) -> bool:
    "Papermill and its kernel are killed; whether it was still at it."
    try: family = [psutil.Process(p.pid), *psutil.Process(p.pid).children(recursive=True)]
    except psutil.NoSuchProcess: family = []
    for process in family:
        try: process.kill()
        except psutil.NoSuchProcess: pass
    p.communicate()
    return p.returncode == -signal.SIGKILL


WORK = {'01_model': train_or_load, '02_probe': lambda r: heads_for(r, [5]),
        '03_filter': lambda r: measure_run(r, [5])}


def killed_papermill(name: str, top: Path, kills: int, seed: int = 0) -> int:
    "So many kills of a notebook within the time that it takes; how many found it still at work."
    whole = start(**SMALL, runs=str(top/'whole'))
    WORK[name](whole)
    began, p = time.monotonic(), papermill(name, top/'first', top/'out.ipynb')
    said = p.communicate()[0]
    assert p.returncode == 0, said
    seconds, r, died = time.monotonic() - began, random.Random(f'{name}{seed}'), 0
    assert files_of(top/'first'/whole.path.name) == files_of(whole.path)
    for i in range(kills):
        runs = top/f'runs{i}'
        p = papermill(name, runs, top/f'out{i}.ipynb')
        time.sleep(r.uniform(.3, .95) * seconds)
        died += kill(p)
        said = (p := papermill(name, runs, top/f'out{i}.ipynb')).communicate()[0]
        assert p.returncode == 0, said
        assert files_of(runs/whole.path.name) == files_of(whole.path)
        left = [n for n in parts_of(runs) if str(os.getpid()) in n]
        assert not left
    return died


@pytest.mark.slow
@pytest.mark.parametrize('name', WORK)
def test_a_notebook_killed_twenty_times_ends_the_same(name, tmp_path):
    died = killed_papermill(name, tmp_path, 20)
    print(f'{name}: {died} of 20 kills found it at work')
    assert died > 10


def test_a_killed_notebook_ends_the_same(tmp_path):
    "Killed as soon as its network is being trained."
    whole = start(**SMALL, runs=str(tmp_path/'whole'))
    measure_run(whole, [5])
    p, folder = papermill('03_filter', tmp_path/'runs', tmp_path/'out.ipynb'), tmp_path/'runs'/whole.path.name
    while p.poll() is None and not (folder/'checkpoint.safetensors').exists(): time.sleep(.005)
    assert kill(p), p.stdout
    assert not (folder/'layers.csv').exists()
    said = (p := papermill('03_filter', tmp_path/'runs', tmp_path/'out.ipynb')).communicate()[0]
    assert p.returncode == 0, said
    assert files_of(folder) == files_of(whole.path)
