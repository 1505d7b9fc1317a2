"Locks: one owner at a time on any file system, a word on what is waited for, none where nothing is written."
import ctypes, errno, fcntl, os, shutil, signal, subprocess, sys, threading, time

import pytest

import dlmech
from dlmech import run as ground
from dlmech.measurement import measure_run
from dlmech.model import start
from dlmech.run import DlmechError, DlmechWarning, locked, write_csv
from helpers import ENV, python, wait_for
from storage import files_of, LAYERS, parts_of, SMALL


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(r, LAYERS)
    return r


HOLD = '''
import sys, time
from pathlib import Path
from dlmech.run import locked
with locked(Path(sys.argv[1])):
    (Path(sys.argv[1])/'held').touch()
    time.sleep(1000)
'''


def test_a_word_is_said_of_what_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(ground, 'WAIT', .05)
    owner = python(HOLD, tmp_path)
    try:
        wait_for((tmp_path/'held').exists, owner)
        said, inside = [], []
        def work():
            with pytest.warns(DlmechWarning, match=f'waiting for another process.* works in {tmp_path}') as w:
                with locked(tmp_path): inside.append(1)
            said.append(w)
        waiting = threading.Thread(target=work)
        waiting.start()
        time.sleep(.3)
        assert not inside      # the other has it
        owner.kill()           # and the system lets go of it
        waiting.join(60)
        assert said
        assert inside
    finally:
        owner.kill()
        owner.communicate()


def test_no_word_is_said_where_nobody_waits(tmp_path, recwarn):
    with locked(tmp_path): pass
    assert not recwarn.list


def without_flock(number):
    def no(*a): raise OSError(number, os.strerror(number))
    return no


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_the_file_system_knows_no_locks(tmp_path, monkeypatch, number):
    "NFS, Lustre, FUSE: a file stands for the lock, still one is inside at a time, and all is written."
    monkeypatch.setattr(fcntl, 'flock', without_flock(number))
    inside, most = [], []
    def work(i):
        with locked(tmp_path):
            inside.append(i)
            most.append(len(inside))
            write_csv(tmp_path/'t.csv', dlmech.zoo().reset_index().assign(n=i))
            inside.pop()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(120)
    assert most == [1] * 4


NO_FLOCK = '''
import errno, fcntl, os, sys
def no(*a): raise OSError(errno.ENOLCK, 'no locks available')
fcntl.flock = no
'''


def test_a_killed_owner_without_locks_is_not_waited_for(tmp_path, monkeypatch):
    owner = python(NO_FLOCK + HOLD, tmp_path)
    wait_for((tmp_path/'held').exists, owner)
    owner.kill()
    owner.communicate()
    monkeypatch.setattr(fcntl, 'flock', without_flock(errno.ENOLCK))
    with locked(tmp_path): (tmp_path/'mine').touch()
    assert (tmp_path/'mine').exists()


def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path):
    mine = tmp_path/'mine.txt'
    mine.write_text('dear')
    (tmp_path/'runs').mkdir()
    (tmp_path/'runs'/'.lock').symlink_to(mine)
    with pytest.raises(DlmechError, match='.lock: it is a link where a file should be; remove it'):
        with locked(tmp_path/'runs'): pass
    assert mine.read_text() == 'dear'


def test_nothing_is_locked_where_nothing_is_written(run, tmp_path, monkeypatch):
    "A finished run is opened, asked for and measured again without its lock."
    copy = shutil.copytree(run.path, tmp_path/run.path.name, ignore=shutil.ignore_patterns('.lock'))
    with monkeypatch.context() as m:
        m.setattr(ground, 'FileLock', lambda *a, **k: pytest.fail('it was locked'))
        measured = measure_run(start(**SMALL | dict(runs=str(tmp_path))), LAYERS)
        assert dlmech.open(copy).layers.equals(measured.layers)
    assert not (copy/'.lock').exists()


def mortal():
    "What goes before a process of root's, so that it may write no more than anybody."
    libc = ctypes.CDLL(None)
    for capability in (1, 2): libc.prctl(24, capability, 0, 0, 0)   # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


READ = '''
import sys
import dlmech
from dlmech.measurement import measure_run
from dlmech.model import start
asked = dict(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1, labels='0,1,7', runs=sys.argv[1])
m = measure_run(start(**asked), [4, 5])
assert dlmech.open(m.source.run.path)[5].fields.shape[1:] == (3, 3)
try: measure_run(start(**asked), [3])
except dlmech.DlmechError as e: print(e)
'''


def test_a_finished_run_is_read_where_nobody_may_write(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path/run.path.name)
    folders = [copy, *(p for p in copy.rglob('*') if p.is_dir())]
    for p in folders: p.chmod(0o555)
    before = files_of(copy)
    try:
        done = subprocess.run([sys.executable, '-c', READ, str(tmp_path)], env=ENV, capture_output=True,
                              text=True, preexec_fn=mortal, timeout=600)
    finally:
        for p in folders: p.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert 'you may not write there, or not read; change that, or name another folder' in done.stdout
    assert done.stdout.count('\n') == 1
    assert files_of(copy) == before


WRITE = '''
import sys
from pathlib import Path
import pandas as pd
from dlmech.run import locked, write_csv
def cut(self, **k):
    self.write_text('half')
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
pd.DataFrame.to_csv = lambda table, f, **k: cut(f)
with locked(Path(sys.argv[1])): write_csv(Path(sys.argv[1])/'t.csv', pd.DataFrame(dict(a=[1])))
'''


def test_what_killed_writers_left_is_taken_away_by_the_next_owner(tmp_path):
    "And what living ones are at is left alone, as is what another machine began, and a user's own."
    p = python(WRITE, tmp_path)
    p.communicate(timeout=600)
    assert p.returncode == -signal.SIGKILL
    assert len(parts_of(tmp_path)) == 1
    mine = [f'.t.csv.{ground._HERE}-{os.getpid()}-00000000.part', '.t.csv.ffffff-1-00000000.part',
            '.t.csv.txt', f'.t.csv.{os.getpid()}']
    for name in mine: (tmp_path/name).touch()
    gone = '.t.csv.99999999'                       # as 0.1 named them
    (tmp_path/gone).touch()
    with locked(tmp_path): pass
    assert {f.name for f in tmp_path.iterdir()} == {'.lock', *mine}
