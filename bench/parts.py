"""Where the time of phase 3 goes: what each of its parts adds to a bare forward pass of VGG-16.

    OMP_NUM_THREADS=1 python bench/parts.py

Prints one table, as `python -m bench --only parts` does. Each step does what the one before it does, and one
thing more; all in turn in one process, in another order each round, as what a step leaves of memory makes the
next one faster or slower. `adds` is what it adds, as a share of the bare pass.
"""
import argparse, random
from collections.abc import Callable

import pandas as pd, torch

from bench.phases import forward, phase3, random_images, vgg16
from dlmech.batches import Batches
from dlmech.filter import BUFFER, channels_first, LabelSums, observe, Responses
from dlmech.null import PERMUTATIONS
from dlmech.pace import times_in_turn
from dlmech.trunk import Trunk

K = 10


def maps(net, paths: list[str], batches, copied: bool) -> None:
    "The maps of these layers, and a copy of them with their channels first."
    buffer = torch.empty(BUFFER)
    with Trunk(net, paths) as trunk:
        for x, _ in batches:
            for f in trunk(x).values():
                for _ in channels_first(f, buffer) if copied else (): pass


def winners(net, paths: list[str], batches, heads, top: int) -> None:
    "Label sums and winners, and so many images that drive each filter most."
    seen = {p: (LabelSums(K), Responses(heads.weight(p), top)) for p in paths}
    observe(net, paths, batches, K, heads, seen)


def steps(d: int, n: int) -> dict[str, Callable[[], object]]:
    "What is timed, each with one thing more than the one before it."
    net, paths, heads = vgg16(torch.device('cpu'), d)
    batches = Batches(random_images(n, K), 250)
    return {'bare forward pass': lambda: forward(net, batches),
            f'maps of {len(paths)} layers': lambda: maps(net, paths, batches, False),
            '+ copies, channels first': lambda: maps(net, paths, batches, True),
            '+ label sums': lambda: observe(net, paths, batches, K),
            '+ winners': lambda: winners(net, paths, batches, heads, 0),
            '+ images that drive a filter most': lambda: winners(net, paths, batches, heads, 8),
            '+ fields, clusters, tables': lambda: phase3(net, paths, heads, batches),
            '+ the null': lambda: phase3(net, paths, heads, batches, PERMUTATIONS)}


def shuffled(asked: dict[str, Callable[[], object]], rounds: int) -> pd.DataFrame:
    """A row for each step: median processor seconds, and its multiple of the first's in the same round: the
    median, the smallest and the largest; after a round that does not count."""
    taken, g = {}, random.Random(0)
    for i in range(rounds + 1):
        order = g.sample(list(asked), len(asked))
        t = times_in_turn({name: asked[name] for name in order}, 1, False).set_index('what').cpu_s
        if i: taken[i] = t
    cpu = pd.DataFrame(taken).loc[list(asked)]                                       # (steps, rounds)
    ratio = cpu / cpu.iloc[0]
    return pd.DataFrame(dict(cpu_s=cpu.median(axis=1), ratio=ratio.median(axis=1),
                             ratio_low=ratio.min(axis=1), ratio_high=ratio.max(axis=1))
                        ).rename_axis('what').reset_index()


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "What each part of phase 3 adds. Sets one thread."
    torch.set_num_threads(1)
    d, n, rounds = (4, 60, 1) if quick else (64, 1000, 7)
    t = shuffled(steps(d, n), rounds)
    return {'parts': t.assign(adds=t.ratio.diff(), images=n)}


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__.split('\n')[0]).parse_args()
    print(tables()['parts'].to_string(index=False, float_format='{:.4g}'.format))
