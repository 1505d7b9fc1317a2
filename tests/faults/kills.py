"""Kills a phase of a small run again and again, and lets the same command end it; what comes out is compared
with a run that nobody disturbed. A process of its own, `python kills.py PHASE KILLS SEED FOLDER`: it imports
once, and forks for each try. Its last line says, in JSON, what happened."""
import json, os, random, shutil, signal, sys, time, traceback
from collections.abc import Callable
from pathlib import Path

import dlmech
from dlmech import measurement, probe
from dlmech.measurement import measure_run
from dlmech.model import start, train_or_load
from dlmech.probe import heads_for
from dlmech.run import checked, known_of, locked
from storage import files_of, parts_of

ASKED = dict(arch='vgg6', dataset='digits', layer='all', d=2, epochs=3, labels='0,1,7')
LAYERS = [3, 4, 5]
probe.PAPER = measurement.PAPER = probe.replace(probe.PAPER, epochs=3)
measurement.PASS_SECONDS = 0.


def run_in(runs, **changes): return start(**ASKED | changes, runs=str(runs))
def first(runs, **changes): train_or_load(run_in(runs, **changes))
def second(runs, **changes): heads_for(run_in(runs, **changes), LAYERS)
def third(runs): measure_run(run_in(runs, images='train'), LAYERS)


# what is there before, and what is killed
PHASES: dict[str, tuple[Callable|None, Callable]] = {
    'train': (None, first),
    'exact': (first, second),
    'paper': (lambda r: first(r, heads='paper'), lambda r: second(r, heads='paper')),
    'ridge': (lambda r: first(r, heads='ridge'), lambda r: second(r, heads='ridge')),
    'fields': (second, third)}


def die_at(event: int, log: Path|None = None) -> None:
    "This process is killed at that turn of a file, before or after it happens; or tells how many there are."
    turns = [0]
    def counted(f):
        def turn(*args, **kwargs):
            for at in (0, 1):
                turns[0] += 1
                if log: log.write_text(str(turns[0]), encoding='utf-8')
                if turns[0] == event: os.kill(os.getpid(), signal.SIGKILL)
                if at == 0: result = f(*args, **kwargs)
            return result
        return turn
    for owner, name in ((Path, 'replace'), (Path, 'unlink'), (os, 'fsync')):
        setattr(owner, name, counted(getattr(owner, name)))


def forked(work: Callable, seconds: float|None = None, event: int = 0, log: Path|None = None) -> bool:
    "Whether a process that does `work` came to its end; others are killed after so long, or at that event."
    pid = os.fork()
    if pid == 0:
        try:
            if event or log: die_at(event, log)
            sys.stderr = open(os.devnull, 'w', encoding='utf-8')
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f'it ended with {status}'
    return status == 0


def check(folder: Path, whole: dict[str, bytes]) -> None:
    "Raises an AssertionError for a folder that is not as the undisturbed one."
    found = files_of(folder)
    assert list(found) == list(whole), sorted(set(found) ^ set(whole))
    assert [n for n in whole if found[n] != whole[n]] == []
    for name in found:
        assert known_of(folder/name), f'{name} has no manifest'
        with checked(folder/name): pass
    with locked(folder): pass
    assert not parts_of(folder)


def main(phase: str, kills: int, seed: int, top: Path) -> dict:
    "So many kills of a phase, some runs killed more than once."
    before, work = PHASES[phase]
    r, died, tries = random.Random(f'{phase}{seed}'), 0, 0
    run_in(top/'warm')  # what is imported late is imported once
    (top/'base').mkdir(parents=True)
    if before: assert forked(lambda: before(top/'base'))
    shutil.copytree(top/'base', top/'whole')
    began = time.monotonic()
    assert forked(lambda: work(top/'whole'))
    seconds = time.monotonic() - began
    shutil.copytree(top/'base', top/'count')
    assert forked(lambda: work(top/'count'), log=top/'turns')
    events = int((top/'turns').read_text(encoding='utf-8'))
    folder, = (p for p in (top/'whole').iterdir())
    whole = files_of(folder)
    while died < kills:
        runs = shutil.copytree(top/'base', top/f'try{tries}')
        for _ in range(r.choice([1, 1, 2, 3])):
            timed = r.random() < .5
            died += not forked(lambda runs=runs: work(runs), r.uniform(0, seconds) if timed else None,
                               0 if timed else r.randint(1, events))
        assert forked(lambda runs=runs: work(runs))
        check(runs/folder.name, whole)
        shutil.rmtree(runs)
        tries += 1
        assert tries < 10 * kills, 'hardly any was killed'
    return dict(phase=phase, killed=died, runs=tries, files=len(whole), events=events)


if __name__ == '__main__':
    assert dlmech
    phase, kills, seed, top = sys.argv[1:]
    print(json.dumps(main(phase, int(kills), int(seed), Path(top))))
