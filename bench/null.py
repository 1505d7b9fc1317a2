"""What the null costs: a layer of made-up fields, measured with 1,000 permutations and without any.

    OMP_NUM_THREADS=2 python bench/null.py [--filters 512] [--made 512]

Prints one table, as `python -m bench --only null` does. The fields of `made` filters are made up and
measured, and the times are those of `filters`.
Seconds are of the processors, summed over threads, so that what else the machine does counts little.
"""
import argparse, time
from collections.abc import Iterator

import pandas as pd, torch

from dlmech.null import measure_fields, PERMUTATIONS
from dlmech.pace import peak_memory

CASES = [(10, .2), (100, .03), (100, .2), (100, .5), (1000, .02), (1000, .1), (1000, .5)]


def made_up(C: int, K: int, share: float, part: int):
    "Fields of which this share is above .3 of the largest, a few filters at a time."
    power = torch.log(torch.tensor(.3)) / torch.log(torch.tensor(1 - share))
    g = torch.Generator().manual_seed(0)
    for i in range(0, C, part):
        n = min(part, C - i)
        yield slice(i, i+n), torch.rand(n, K, K, generator=g, dtype=torch.float64)**power


def seconds(C: int, K: int, share: float, permutations: int) -> tuple[float, dict]:
    "Processor seconds of a layer, and its row."
    t = time.process_time()
    _, row = measure_fields(made_up(C, K, share, max(1, 2**21 // K**2)), torch.zeros(C, K),
                            permutations=permutations)
    return time.process_time() - t, row


def rows(cases: list, filters: int, made: int, permutations: int) -> Iterator[dict]:
    "The row of each case, K and the share of ones."
    for K, share in cases:
        without, _ = seconds(made, K, share, 0)
        took, row = seconds(made, K, share, permutations)
        so_far = peak_memory() / 2**10   # never falls
        yield dict(K=K, ones=share, permutations_at_least=row['permutations'],
                   without_null_s=without * filters / made, with_null_s=took * filters / made,
                   peak_so_far_gb=so_far)


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "Processor seconds of a layer of 512 filters, without its null and with it."
    asked = (CASES[:3], 512, 8, 50) if quick else (CASES, 512, 512, PERMUTATIONS)
    return {'null': pd.DataFrame(rows(*asked))}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--filters', type=int, default=512)
    parser.add_argument('--made', type=int, default=512)
    asked = parser.parse_args()
    for row in rows(CASES, asked.filters, asked.made, PERMUTATIONS):
        print('  '.join(f'{k} {v:.3g}' for k, v in row.items()), flush=True)
