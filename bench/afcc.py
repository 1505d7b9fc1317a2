"""What dilution and compaction bring in time, as ratios of two things measured in turn in the same process.

    python bench/afcc.py [--device cpu] [--d 64] [--repeats 9]

Prints one table. Weights are random: what they are does not matter for time. The aims are this project's own.
"""
import argparse

import torch
from torch import nn

from dlmech.afcc import masked, random_labels, shared, widen
from dlmech.arch import get_model
from dlmech.compact import (SparseLinear, as_blocks, as_groups, blocks_of, cut_out, cuttable,
                            in_fastest_form, macs, median_seconds, with_run_time_masks)


def row(what, a, b, aim, holds):
    "One line of the table, printed at once."
    ratio = a / b
    print(f'| {what} | {a*1e3:.3g} ms | {b*1e3:.3g} ms | {ratio:.2f} | {aim} | '
          f'{"-" if holds is None else "yes" if holds(ratio) else "NO"} |', flush=True)


def pair(what, first, second, x, repeats, aim='', holds=None):
    t = median_seconds({'first': first, 'second': second}, x, repeats)
    row(what, t['first'], t['second'], aim, holds)


def half(net, layers):
    "Masks that silence every second filter of these layers."
    masks = {}
    for link in cuttable(net):
        if link.source not in layers: continue
        w = net.get_submodule(link.target).weight
        keep = torch.arange(w.shape[1], device=w.device) // link.spread % 2 == 0
        masks[link.target] = keep.reshape(1, -1, *[1]*(w.ndim-2)).expand_as(w)
    return masks


def networks(arch, d, device, repeats, last):
    "A network with half of the filters of its last layers gone."
    net = get_model(arch, 10, d).to(device, memory_format=torch.channels_last).eval()
    layers = [f'layers.{n}.conv' for n in last]
    masked_net = masked(net, half(net, layers))
    run_time = with_run_time_masks(net, masked_net.masks).eval()
    small, _ = cut_out(masked_net, torch.randn(2, 3, 32, 32, device=device))
    less = macs(net, torch.zeros(1, 3, 32, 32, device=device)) / macs(small, torch.zeros(1, 3, 32, 32,
                                                                                         device=device))
    for n in (1, 256):
        x = torch.randn(n, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        what = f'{arch}, d = {d}, half the filters of layers {last[0]}-{last[-1]}, batch {n}'
        with torch.no_grad():
            pair(f'{what}: masks multiplied at run time / dense', run_time, net, x, repeats, '>= 1 (no gain)',
                 lambda r: r >= .95)
            pair(f'{what}: weights set to zero / dense', masked_net.net, net, x, repeats, '1 (no gain)',
                 lambda r: .85 <= r <= 1.15)
            pair(f'{what}: dense / compact ({less:.1f} times fewer multiply-adds)', net, small, x, repeats,
                 '>= 1.5', lambda r: r >= 1.5)


@torch.no_grad()
def forms(device, repeats, C=512, side=4, K=10):
    "A convolution under AFCC's mask with one and two labels for each filter, in all its forms."
    for labels in (1, 2):
        conv = nn.Conv2d(C, C, 3, padding=1).to(device)
        mask = shared(random_labels(C, K, labels, 0), random_labels(C, K, labels, 1))
        conv.weight.mul_(widen(mask, conv.weight))
        found = blocks_of(mask.numpy(), K if labels == 1 else 4)
        for n in (1, 256):
            x = torch.randn(n, C, side, side, device=device)
            what = f'convolution {C} x {C} on {side} x {side}, K = {K}, {labels} label(s) a filter (density {mask.float().mean():.2f}), batch {n}'
            pair(f'{what}: dense / {len(found)} blocks', conv, as_blocks(conv, found), x, repeats)
            if as_groups(conv, found):
                pair(f'{what}: dense / {len(found)} groups', conv, as_groups(conv, found), x, repeats)


@torch.no_grad()
def csr(device, repeats, n=4096):
    "An FC layer at several densities."
    for density in (.02, .05, .1, .2):
        fc = nn.Linear(n, n).to(device)
        fc.weight.mul_(torch.rand_like(fc.weight) < density)
        sparse = SparseLinear(fc.weight, fc.bias)
        for batch in (1, 256):
            pair(f'FC {n} x {n}, density {density:g}, batch {batch}: dense / CSR', fc, sparse,
                 torch.randn(batch, n, device=device), repeats)


if __name__ == '__main__':
    a = argparse.ArgumentParser()
    a.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    a.add_argument('--d', type=int, default=64)
    a.add_argument('--repeats', type=int, default=9)
    a = a.parse_args()
    device = torch.device(a.device)
    name = torch.cuda.get_device_name() if device.type == 'cuda' else f'{torch.get_num_threads()} CPU threads'
    print(f'torch {torch.__version__}, {name}, medians of {a.repeats} in turn\n\n| what | first | second | '
          'ratio | aim | reached |\n|---|---|---|---|---|---|')
    networks('vgg6', a.d, device, a.repeats, [4, 5])
    networks('vgg6', a.d, device, a.repeats, [2, 3, 4, 5])
    networks('vgg16', a.d, device, a.repeats, list(range(8, 14)))
    forms(device, a.repeats)
    csr(device, a.repeats)
