"After a kill at any moment the same command ends with the files of an undisturbed run, byte for byte."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import psutil, pytest

from dlmech.measurement import measure_run
from dlmech.model import start, train_or_load
from dlmech.probe import heads_for
from helpers import ENV, NBS, run as command
from storage import files_of, parts_of
from warm import Warm

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
def test_a_phase_killed_twenty_times_ends_the_same(phase, tmp_path, note):
    found = killed(phase, 20, tmp_path/'runs')
    assert found['killed'] >= 20
    note([dict(of=phase, count=found['killed'])])


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


def killed_papermill(warm: Warm, name: str, kills: int, seed: int = 0) -> int:
    "So many kills of a notebook within the time that it takes, and once more each; how many runs these were."
    top, r, died, i = warm.top, random.Random(f'{name}{seed}'), 0, 0
    whole = start(**SMALL, runs=str(top/'whole'))
    WORK[name](whole)
    began = time.monotonic()
    assert warm.notebook(name, **SMALL, runs=str(top/'first')).ended() == 'done'
    seconds = time.monotonic() - began
    assert files_of(top/'first'/whole.path.name) == files_of(whole.path)
    while died < kills:
        runs = top/f'runs{i}'
        notebook = warm.notebook(name, **SMALL, runs=str(runs))
        time.sleep(r.uniform(.1, .9) * seconds)
        died += notebook.kill()
        assert warm.notebook(name, **SMALL, runs=str(runs)).ended() == 'done'
        assert files_of(runs/whole.path.name) == files_of(whole.path)
        assert not parts_of(runs)
        i += 1
        assert i < 3 * kills, 'hardly any was killed'
    return died


@pytest.mark.slow
@pytest.mark.parametrize('name', WORK)
def test_a_notebook_killed_twenty_times_ends_the_same(name, tmp_path, note):
    with Warm(tmp_path) as warm: died = killed_papermill(warm, name, 20)
    note([dict(of=name, count=died)])


ASKED = dict(test={}, train=dict(images='train'), threshold=dict(threshold=.4), layer=dict(layer='4'))


def files_asked(folder: Path, whole: dict[str, bytes], asked: set[str]) -> list[str]:
    "What of a folder is not as it was to be, for these of ASKED."
    names = {name: 'train' if name.startswith('train/') else 'threshold' if '/' in name else
             'layer' if '-4.' in name else 'test' for name in whole}
    to_be = {name: data for name, data in whole.items() if names[name] in asked | {'test'}}
    found = files_of(folder)
    grown = {'probe.csv', 'layers.csv'} if 'layer' not in asked else set()   # a row for each layer
    return [n for n in to_be.keys() | found.keys() if n not in grown and found.get(n) != to_be.get(n)]


@pytest.mark.slow
def test_two_hundred_notebooks_one_after_the_other(tmp_path, note):
    """A soak: new folders, finished ones, two notebooks at once in one; each folder is what it was to be, and
    nothing is left beside."""
    r, ran, folders = random.Random(0), 0, {}
    for asked in ASKED.values(): measure_run(whole := start(**SMALL | asked, runs=str(tmp_path/'whole')))
    right = files_of(whole.path)
    with Warm(tmp_path) as warm:
        while ran < 200:
            runs = tmp_path/f'runs{r.choice([len(folders), *folders])}'
            asked = r.choices([*ASKED], k=r.choice([1, 1, 2]))
            for notebook in [warm.notebook('03_filter', **SMALL | ASKED[a], runs=str(runs)) for a in asked]:
                assert notebook.ended() == 'done'
            folders[int(runs.name[4:])] = seen = folders.get(int(runs.name[4:]), set()) | set(asked)
            if 'test' in seen: assert files_asked(runs/whole.path.name, right, seen) == []
            assert not parts_of(runs)
            ran += len(asked)
        left = [p.name for p in (tmp_path/'tmp').iterdir() if not p.name.startswith('torchinductor')]
    assert not left
    note([dict(of='03_filter', count=ran)])


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
