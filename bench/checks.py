"""What it costs to compare a file with its manifest when it is read.

    OMP_NUM_THREADS=1 python bench/checks.py [--megabytes 240] [--turns 15] [--folder DIR] [--out FOLDER]

Prints one table. Each kind of file is read with and without the comparison in turns, in one process: from
memory, where the system holds it; from the disk, when it was told to forget it, and has (what a disk itself
remembers is not known). Times are the least of all turns: of the processor, and of the clock, which counts
what else the machine does.
"""
import argparse, ctypes, mmap, os, tempfile, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pandas as pd, torch
from torch import nn

from dlmech import run
from dlmech.pace import describe_machine
from dlmech.run import read_csv, read_part, read_tensors, tensor_in_parts, write_csv, write_tensors

CHECKED = run.checked


@contextmanager
def unchecked(path, spans=None) -> Iterator[tuple]:
    "As `checked`, but nothing is compared."
    with run._bytes_of(Path(path)) as data: yield data, {}


def network(megabytes: int) -> nn.Module:
    "FC layers of 16 MB, and their start, as a network's."
    return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(megabytes // 16)))


def cases(top: Path, megabytes: int) -> dict[str, tuple[Path, Callable]]:
    "For each thing that is read its file, and how it is read."
    there, model, table, fields = network(megabytes), top/'m.safetensors', top/'t.csv', top/'f.safetensors'
    write_tensors(model, there.state_dict())
    g, shape = np.random.default_rng(0), (megabytes * 2**17 // 100**2, 100, 100)
    write_csv(table, pd.DataFrame(g.normal(size=(4096, 20))).rename(columns=str))
    with tensor_in_parts(fields, 'fields', shape) as add: add(g.normal(size=shape))
    tensors = lambda: read_tensors(model)[0]
    parts = [slice(i, i+64) for i in range(0, shape[0], 64)]
    return {'a network is made, and its weights are read': (
                model, lambda: network(megabytes).load_state_dict(tensors())),
            'tensors, into memory of their own': (model, lambda: [t.clone() for t in tensors().values()]),
            'weights, into a network that is there': (model, lambda: there.load_state_dict(tensors())),
            'fields, 64 filters at a time': (fields, lambda: [read_part(fields, 'fields', p) for p in parts]),
            'a table of 4,096 rows': (table, lambda: read_csv(table))}


def held(path: Path) -> float:
    "Which share of a file the system holds in memory."
    with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m:
        pages = (ctypes.c_ubyte * -(-len(m) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(m)
        ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(m)), pages)
        del start  # before the mapping can be closed
    return sum(p & 1 for p in pages) / len(pages)


def forget(path: Path) -> bool:
    "The system gives up what it holds of a file; whether it did, which none does of a disk in memory."
    with open(path, 'rb+') as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return held(path) == 0


def seconds(path: Path, read: Callable, cold: bool, turns: int) -> tuple[list[float], bool]:
    "The least: of the processor without and with comparing, and of the clock; whether it came from the disk."
    took, from_disk = [], cold
    for _ in range(turns):
        for how in unchecked, CHECKED:
            run.checked = how
            if cold: from_disk &= forget(path)
            began = time.process_time(), time.perf_counter()
            read()
            took.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    run.checked = CHECKED
    return [min(t[clock] for t in took[how::2]) for clock in (0, 1) for how in (0, 1)], from_disk


def tables(quick: bool = False, megabytes: int = 240, turns: int = 15, where: Path|None = None
           ) -> dict[str, pd.DataFrame]:
    "Milliseconds without and with the check, of processor and clock, from memory and from the disk."
    megabytes, turns = (40, 2) if quick else (megabytes, turns)
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory(dir=where) as folder:
        for name, (path, read) in cases(Path(folder), megabytes).items():
            for cold in False, True:
                took, from_disk = seconds(path, read, cold, turns)
                if cold and not from_disk: continue
                ms = [1e3 * t for t in took]
                rows.append(dict(what=name, megabytes=path.stat().st_size / 1e6,
                                 come_from='disk' if cold else 'memory',
                                 cpu_ms=ms[0], cpu_checked_ms=ms[1], cpu_ratio=ms[1] / ms[0],
                                 clock_ms=ms[2], clock_checked_ms=ms[3], clock_ratio=ms[3] / ms[2]))
    return {'checks': pd.DataFrame(rows).assign(turns=turns, machine=describe_machine())}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--megabytes', type=int, default=240)
    parser.add_argument('--turns', type=int, default=15)
    parser.add_argument('--folder', type=Path, help='on the disk that is asked')
    parser.add_argument('--out', type=Path, help='a folder for the CSV file')
    asked = parser.parse_args()
    found = tables(False, asked.megabytes, asked.turns, asked.folder)['checks']
    print(found.drop(columns='machine').round(2).to_string(index=False))
    if asked.out: write_csv(asked.out/'bench-checks.csv', found.round(4))
