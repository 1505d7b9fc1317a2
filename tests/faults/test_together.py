"Two processes write one file at once, and nobody has locked its folder: nothing torn, nothing damaged."
import multiprocessing, time, warnings
from pathlib import Path

from dlmech.run import DlmechWarning, known_of, read_json, write_json
from storage import parts_of

TURNS = 40


def write(path: Path, name: str, go) -> None:
    "One of the writers."
    go.wait()
    for turn in range(TURNS): write_json(path, dict(of=name, turn=turn, text=name * (turn + 1) * 50))


def is_whole(found: dict) -> bool:
    "Whether this is what one of the writers wrote in one of its turns."
    return found['of'] in 'ab' and found['text'] == found['of'] * (found['turn'] + 1) * 50


def test_a_file_of_two_processes_without_a_lock_is_one_of_theirs(tmp_path):
    "Also in the middle of it; and in the end the manifest knows the file that is there."
    path, fork, read = tmp_path/'shared.json', multiprocessing.get_context('fork'), 0
    write_json(path, dict(of='a', turn=0, text='a' * 50))
    go = fork.Event()
    writers = [fork.Process(target=write, args=(path, name, go)) for name in 'ab']
    for p in writers: p.start()
    go.set()
    with warnings.catch_warnings():
        warnings.simplefilter('error', DlmechWarning)     # of a file that the manifest does not know
        while any(p.is_alive() for p in writers):
            assert is_whole(read_json(path))
            read += 1
            time.sleep(.002)
        last = read_json(path)
    assert [p.exitcode for p in writers] == [0, 0]
    assert read > 1
    assert is_whole(last)
    assert last['turn'] == TURNS - 1
    assert len(known_of(path)) == 1
    assert not parts_of(tmp_path)
