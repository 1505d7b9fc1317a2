"""What the null costs: a layer of made-up fields, measured with 1,000 permutations and without any.

    OMP_NUM_THREADS=2 python bench/null.py [--filters 512] [--made 512]

Prints one table. The fields of `made` filters are made up and measured, and the times are those of `filters`.
Seconds are of the processors, summed over threads, so that what else the machine does counts little.
"""
import argparse, resource, time

import torch

from dlmech.null import measure_fields, PERMUTATIONS

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


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--filters', type=int, default=512)
    parser.add_argument('--made', type=int, default=512)
    asked = parser.parse_args()
    print('| K | ones | permutations, at least | without null, s | with null, s | peak, GB |')
    print('|---|---|---|---|---|---|')
    for K, share in CASES:
        without, _ = seconds(asked.made, K, share, 0)
        took, row = seconds(asked.made, K, share, PERMUTATIONS)
        without, took = (t * asked.filters / asked.made for t in (without, took))
        peak, least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, row['permutations']
        print(f'| {K} | {share} | {least} | {without:.1f} | {took:.1f} | {peak:.1f} |', flush=True)
