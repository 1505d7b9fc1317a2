"""What dilution and compaction bring in time, as ratios of two things measured in turn in the same process.

    python bench/afcc.py [--device cpu] [--d 64] [--repeats 9]

Prints one table, as `python -m bench --only afcc` does. Weights are random: what they are does not matter for
time. The aims are this project's own.
"""
import argparse
from collections.abc import Callable, Iterator

import pandas as pd, torch
from torch import nn

from dlmech.arch import get_model
from dlmech.pruning.afcc import masked, random_labels, shared, widen
from dlmech.pruning.compact import (as_blocks, as_groups, blocks_of, cut_out, macs, median_seconds,
                                    SparseLinear, with_run_time_masks)
from dlmech.pruning.links import cuttable


def row(what: str, first: nn.Module, second: nn.Module, x: torch.Tensor, repeats: int, aim: str = '',
        holds: Callable[[float], bool]|None = None) -> dict:
    "One row of the table, measured."
    t = median_seconds({'first': first, 'second': second}, x, repeats)
    a, b = t['first'], t['second']
    reached = '-' if holds is None else 'yes' if holds(a/b) else 'NO'
    return dict(what=what, first_ms=a*1e3, second_ms=b*1e3, ratio=a/b, aim=aim, reached=reached)


def half(net: nn.Module, layers: list[str]) -> dict[str, torch.Tensor]:
    "Masks that silence every second filter of these layers."
    masks = {}
    for link in cuttable(net):
        if link.source not in layers: continue
        w = net.get_submodule(link.target).weight
        keep = torch.arange(w.shape[1], device=w.device) // link.spread % 2 == 0
        masks[link.target] = keep.reshape(1, -1, *[1]*(w.ndim-2)).expand_as(w)
    return masks


@torch.no_grad()
def networks(arch: str, d: int, device: torch.device, repeats: int, last: list[int]) -> Iterator[dict]:
    "A network with half of the filters of its last layers gone."
    net = get_model(arch, 10, d).to(device, memory_format=torch.channels_last).eval()
    masked_net = masked(net, half(net, [f'layers.{n}.conv' for n in last]))
    run_time = with_run_time_masks(net, masked_net.masks).eval()
    small, _ = cut_out(masked_net, torch.randn(2, 3, 32, 32, device=device))
    one = torch.zeros(1, 3, 32, 32, device=device)
    less = macs(net, one) / macs(small, one)
    for n in (1, 256):
        x = torch.randn(n, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        what = f'{arch}, d = {d}, half the filters of layers {last[0]}-{last[-1]}, batch {n}'
        yield row(f'{what}: masks multiplied at run time / dense', run_time, net, x, repeats,
                  '>= 1 (no gain)', lambda r: r >= .95)
        yield row(f'{what}: weights set to zero / dense', masked_net.net, net, x, repeats, '1 (no gain)',
                  lambda r: .85 <= r <= 1.15)
        yield row(f'{what}: dense / compact ({less:.1f} times fewer multiply-adds)', net, small, x, repeats,
                  '>= 1.5', lambda r: r >= 1.5)


@torch.no_grad()
def forms(device: torch.device, repeats: int, C: int = 512, side: int = 4, K: int = 10) -> Iterator[dict]:
    "A convolution under AFCC's mask with one and two labels for each filter, in all its forms."
    for labels in (1, 2):
        conv = nn.Conv2d(C, C, 3, padding=1).to(device)
        mask = shared(random_labels(C, K, labels, 0), random_labels(C, K, labels, 1))
        conv.weight.mul_(widen(mask, conv.weight))
        found = blocks_of(mask.numpy(), K if labels == 1 else 4)
        groups = as_groups(conv, found)
        for n in (1, 256):
            x = torch.randn(n, C, side, side, device=device)
            what = (f'convolution {C} x {C} on {side} x {side}, K = {K}, {labels} label(s) a filter (density '
                    f'{mask.float().mean():.2f}), batch {n}')
            yield row(f'{what}: dense / {len(found)} blocks', conv, as_blocks(conv, found), x, repeats)
            if groups: yield row(f'{what}: dense / {len(found)} groups', conv, groups, x, repeats)


@torch.no_grad()
def csr(device: torch.device, repeats: int, n: int = 4096) -> Iterator[dict]:
    "An FC layer at several densities."
    for density in (.02, .05, .1, .2):
        fc = nn.Linear(n, n).to(device)
        fc.weight.mul_(torch.rand_like(fc.weight) < density)
        sparse = SparseLinear(fc.weight, fc.bias)
        for batch in (1, 256):
            x = torch.randn(batch, n, device=device)
            what = f'FC {n} x {n}, density {density:g}, batch {batch}'
            yield row(f'{what}: dense / CSR', fc, sparse, x, repeats)


def rows(device: torch.device, d: int, repeats: int, quick: bool = False) -> Iterator[dict]:
    "All rows, as they are measured; `quick`: small networks alone."
    yield from networks('vgg6', d, device, repeats, [4, 5])
    if quick: return
    yield from networks('vgg6', d, device, repeats, [2, 3, 4, 5])
    yield from networks('vgg16', d, device, repeats, list(range(8, 14)))
    yield from forms(device, repeats)
    yield from csr(device, repeats)


def tables(quick: bool = False) -> dict[str, pd.DataFrame]:
    "Milliseconds of a forward pass, diluted in several ways, as ratios."
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    return {'afcc': pd.DataFrame(rows(device, *((4, 1, True) if quick else (64, 9))))}


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    p.add_argument('--d', type=int, default=64)
    p.add_argument('--repeats', type=int, default=9)
    a = p.parse_args()
    device = torch.device(a.device)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'torch {torch.__version__}, {name}, medians of {a.repeats} in turn')
    for r in rows(device, a.d, a.repeats):
        print(f'{r["what"]}: {r["first_ms"]:.3g} ms / {r["second_ms"]:.3g} ms = {r["ratio"]:.2f} '
              f'(aim {r["aim"] or "-"}: {r["reached"]})', flush=True)


if __name__ == '__main__': main()
