"""torch's own pretended GPU, FakeTensorMode: tensors with a shape and a device, without numbers. What takes
tensors and gives tensors goes through it, and nothing is left on the CPU or mixed with it. It cannot go
further: most paths ask for a number (is an element finite, which elements are not zero, a table), and there
it has none to give. Those are walked on a pretended device that has numbers: `test_cuda.py`,
`test_cuda_study.py`."""
import pytest, torch
from torch._subclasses.fake_tensor import (DataDependentOutputException, DynamicOutputShapeException,
                                           FakeTensorMode)

from dlmech.causal import conv_part
from dlmech.filter import clip, cluster_sizes, fields, find_clusters, normalised
from dlmech.null import diagonals, measure_fields, p_values, winner_dependence
from dlmech.pruning.afcc import rescue, shared
from dlmech.pruning.repair import lack_of, Products, solve
from dlmech.pruning.scores import contrast, patches, removal_order
from dlmech.study.controls import came_back, fields_of_groups, resampled

C, K, G = 6, 4, 2


def t(*shape, dtype=torch.float64): return torch.empty(*shape, dtype=dtype, device='cuda')
def whole(*shape): return t(*shape, dtype=torch.int64)
def true(*shape): return t(*shape, dtype=torch.bool)


PATHS = {
    'normalised': (lambda: normalised(t(C, K, K)), (C, K, K)),
    'clip': (lambda: clip(t(C, K, K)), (C, K, K)),
    'cluster_sizes': (lambda: cluster_sizes(whole(C, K)), (C, K)),
    'diagonals': (lambda: diagonals(t(C, K, K), whole(5, K)), (C, 5, K)),
    'p_values': (lambda: p_values(t(C), t(C, 5), whole(5, K)), (C,)),
    'winner_dependence': (lambda: winner_dependence(whole(C, K, K))['winner_dependence'], (C,)),
    'conv_part': (lambda: conv_part(torch.nn.Conv2d(C, 5, 3, device='cuda'),
                                    t(2, 3, 8, 8, dtype=torch.float32), whole(3)), (2, 5, 6, 6)),
    'shared': (lambda: shared(true(5, K), true(C, K)), (5, C)),
    'lack_of': (lambda: lack_of(t(C, C), t(C, C), t(5, C, 9), t(5, C, 9)), (C, 5, 9)),
    'contrast': (lambda: contrast(t(C, K, K)), (C,)),
    'patches': (lambda: patches(torch.nn.Conv2d(C, 5, 3, device='cuda'), C, t(2, C, 8, 8)), (72, C, 9)),
    'resampled': (lambda: resampled(t(C, K, G, K), t(K, G)), (C, K, K)),
    'came_back': (lambda: came_back(whole(C, K), whole(C, K)), (C, K))}
ASKING = {
    'fields': lambda: fields(t(K, C, 2, 2), t(K, C, 2, 2)), 'clusters': lambda: find_clusters(t(C, K, K)),
    'null': lambda: measure_fields([(slice(0, C), t(C, K, K))], whole(C, K)),
    'solve': lambda: solve(Products(t(C, C), t(C, 5, 9)), true(5, C), .1),
    'rescue': lambda: rescue(true(5, C), true(5, K), t(C, K), true(C)),
    'removal_order': lambda: removal_order(t(C, C)),
    'fields_of_groups': lambda: fields_of_groups(t(K*G, C, 2, 2), t(K, C, 2, 2), G)}


@pytest.mark.parametrize('name', PATHS)
def test_tensors_stay_on_the_gpu_that_torch_pretends(name):
    work, shape = PATHS[name]
    with FakeTensorMode(): out = work()
    assert out.device.type == 'cuda'
    assert tuple(out.shape) == shape


@pytest.mark.parametrize('name', ASKING)
def test_what_asks_for_numbers_goes_so_far(name):
    "Until it asks, nothing is mixed: that would be another error."
    with FakeTensorMode(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        ASKING[name]()


def test_a_mixture_is_what_torch_refuses():
    with FakeTensorMode(), pytest.raises(RuntimeError, match='same device'):
        shared(true(5, K), true(C, K).cpu())
