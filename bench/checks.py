"""What it costs to compare a file with its manifest when it is read.

    OMP_NUM_THREADS=1 python bench/checks.py [--megabytes 240] [--turns 15]

Prints one table. Each kind of file is read with and without the comparison in turns, in one process: warm,
from the system's cache; cold, when that was told to forget it (a disk may still remember). Times are the
least of all turns: of the processor, and of the clock, which counts what else the machine does.
"""
import argparse, os, tempfile, time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pandas as pd, torch
from torch import nn

from dlmech import run
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


def forget(path: Path) -> None:
    "The system's cache gives up what it holds of a file."
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def seconds(path: Path, read: Callable, cold: bool, turns: int) -> list[float]:
    "The least: of the processor without and with comparing, and of the clock."
    took = []
    for _ in range(turns):
        for how in unchecked, CHECKED:
            run.checked = how
            if cold: forget(path)
            began = time.process_time(), time.perf_counter()
            read()
            took.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    run.checked = CHECKED
    return [min(t[clock] for t in took[how::2]) for clock in (0, 1) for how in (0, 1)]


def tables(quick: bool = False, megabytes: int = 240, turns: int = 15) -> dict[str, pd.DataFrame]:
    "Milliseconds without and with the check, of processor and clock, from memory and from the disk."
    megabytes, turns = (40, 2) if quick else (megabytes, turns)
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (path, read) in cases(Path(folder), megabytes).items():
            for cold in False, True:
                ms = [1e3 * t for t in seconds(path, read, cold, turns)]
                rows.append(dict(what=name, megabytes=path.stat().st_size / 1e6,
                                 come_from='disk' if cold else 'memory',
                                 cpu_ms=ms[0], cpu_checked_ms=ms[1], cpu_ratio=ms[1] / ms[0],
                                 clock_ms=ms[2], clock_checked_ms=ms[3], clock_ratio=ms[3] / ms[2]))
    return {'checks': pd.DataFrame(rows)}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--megabytes', type=int, default=240)
    parser.add_argument('--turns', type=int, default=15)
    asked = parser.parse_args()
    print(tables(False, asked.megabytes, asked.turns)['checks'].round(2).to_string(index=False))
