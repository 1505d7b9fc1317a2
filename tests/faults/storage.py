"What the tests of storage share: a small finished run, damage, and all that can be read of a folder."
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np, pandas as pd, torch
from torch import nn

from dlmech.measurement import FiledLayer, open_measurement, read_config
from dlmech.model import load_checkpoint, model_of, save_checkpoint
from dlmech.run import read_csv, Run

SMALL = dict(arch='vgg6', dataset='digits', layer='all', d=2, epochs=1, labels='0,1,7')
LAYERS = [4, 5]


def files_of(folder: Path) -> dict[str, bytes]:
    "What lies in a run's folder, and in those within it, but for what begins with a dot."
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and not any(part[0] == '.' for part in p.relative_to(folder).parts)}


def parts_of(folder: Path) -> list[str]:
    "What killed writers left."
    return [p.name for p in folder.rglob('.*.part')]


def line_checkpoint(path: Path) -> tuple:
    "A small checkpoint at `path`: its network and optimizer."
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    net(torch.ones(1, 3)).sum().backward()
    opt.step()
    save_checkpoint(path, net, opt, [dict(epoch=1, loss=.5)], dict(seed=0))
    return net, opt


def read_checkpoint(path: Path) -> list:
    net = nn.Linear(3, 2)
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    log = load_checkpoint(path, net, opt, dict(seed=0))
    return [log, *net.state_dict().values(), *(opt.state[p]['momentum_buffer'] for p in net.parameters())]


def readers(run: Run) -> dict[str, Callable[[Path], object]]:
    "For each file of a finished run how it is read, and what comes out."
    K, n = run.data.K, LAYERS[-1]
    C = len(pd.read_csv(run.path/f'filters-{n}.csv'))
    def layer(folder): return FiledLayer(folder, folder, n, K, C)
    def config(folder):
        m = open_measurement(folder)
        return [m.names, m.paths, m.threshold, m.title, read_config(folder)]
    return {
        'config.json': config,
        'model.safetensors': lambda f: model_of(Run(f, run.params, run.device), K).state_dict(),
        **{name: lambda f, name=name: read_csv(f/name) for name in ('train.csv', 'probe.csv', 'layers.csv')},
        f'filters-{n}.csv': lambda f: layer(f).filters,
        f'head-{n}.safetensors': lambda f: layer(f).head,
        f'top-{n}.safetensors': lambda f: layer(f).top,
        f'fields-{n}.safetensors': lambda f: torch.cat([layer(f).fields(slice(i, i+1)) for i in range(C)]),
        'checkpoint.safetensors': lambda f: read_checkpoint(f/'checkpoint.safetensors')}


def same(a: object, b: object) -> bool:
    "Whether two results are equal to the bit."
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, pd.DataFrame): return a.equals(b) and list(a.columns) == list(b.columns)
    if isinstance(a, dict): return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- damage: of bytes, by a generator of numbers

def flip(data: bytes, r: random.Random) -> bytes:
    "One bit is another."
    i, out = r.randrange(len(data)), bytearray(data)
    out[i] ^= 1 << r.randrange(8)
    return bytes(out)


def digit(data: bytes, r: random.Random) -> bytes:
    "One digit is another."
    at = [i for i, b in enumerate(data) if 48 <= b < 58]
    if not at: return flip(data, r)
    out = bytearray(data)
    out[i] = 48 + (out[i := r.choice(at)] - 47) % 10
    return bytes(out)


def cut(data: bytes, r: random.Random) -> bytes:
    "It ends early."
    return data[:r.randrange(len(data))]


def pieces(data: bytes) -> list[bytes]:
    "Lines of a text, or parts of 64 bytes."
    lines = data.splitlines(keepends=True)
    return lines if len(lines) > 3 else [data[i:i+64] for i in range(0, len(data), 64)]


def swapped(data: bytes, r: random.Random) -> bytes:
    "Two lines have changed places."
    p = pieces(data)
    i, j = r.randrange(len(p)), r.randrange(len(p))
    p[i], p[j] = p[j], p[i]
    return b''.join(p)


def doubled(data: bytes, r: random.Random) -> bytes:
    "One line is there twice."
    p = pieces(data)
    i = r.randrange(len(p))
    return b''.join(p[:i+1] + p[i:])


def left_out(data: bytes, r: random.Random) -> bytes:
    "One line is missing."
    p = pieces(data)
    del p[r.randrange(len(p))]
    return b''.join(p)


def zeros(data: bytes, r: random.Random) -> bytes:
    "A stretch of it is zeros, as after a power cut."
    i, n = r.randrange(len(data)), r.randrange(1, 4097)
    return data[:i] + bytes(min(n, len(data) - i)) + data[i+n:]


def longer(data: bytes, r: random.Random) -> bytes:
    "Something is added."
    return data + r.randbytes(r.randrange(1, 100))


def other(data: bytes, r: random.Random) -> bytes:
    "Some bytes are any others."
    out = np.frombuffer(data, np.uint8).copy()
    for _ in range(r.randrange(1, 9)): out[r.randrange(len(out))] = r.randrange(256)
    return out.tobytes()


DAMAGE = [flip, digit, cut, swapped, doubled, left_out, zeros, longer, other]
