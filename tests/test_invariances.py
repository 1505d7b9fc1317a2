"What must not change the measures, for any small case that hypothesis finds."
import torch
from hypothesis import given, settings, strategies as st

from dlmech.arch import get_model
from dlmech.batches import Batches
from dlmech.datasets import ImageSet
from dlmech.filter import fields, find_clusters, label_means, normalised
from dlmech.null import draw_permutations, field_shares, trace_p
from dlmech.run import generator

seeds = st.integers(0, 10**6)
quick = settings(max_examples=25, deadline=None)


def case(seed, K, C=5, side=2):
    "Label means and a head, drawn from a seed."
    return (torch.randn(K, C, side, side, generator=generator(seed, what), dtype=torch.float64)
            for what in ('means', 'head'))


@quick
@given(seeds, st.integers(2, 9))
def test_relabelling_permutes_the_fields_and_nothing_else(seed, K):
    means, weight = case(seed, K)
    order = torch.randperm(K, generator=generator(seed, 'order'))
    assert torch.allclose(fields(means[order], weight[order]), fields(means, weight)[:, order][:, :, order])


@quick
@given(seeds, st.integers(2, 9), st.floats(1e-3, 1e3))
def test_scaling_a_filter_changes_no_cluster(seed, K, scale):
    means, weight = case(seed, K)
    scaled = weight.clone()
    scaled[:, 2] *= scale
    a, b = find_clusters(normalised(fields(means, weight))), find_clusters(normalised(fields(means, scaled)))
    # an element may stand exactly at the threshold up to rounding; those few cases say nothing
    if (normalised(fields(means, weight)) - .3).abs().min() > 1e-9:
        assert a.cluster.equal(b.cluster)
        assert a.clipped.equal(b.clipped)


@quick
@given(seeds, st.integers(2, 9), st.integers(1, 30))
def test_more_of_the_same_fields_above_a_lower_threshold(seed, K, step):
    means, weight = case(seed, K)
    normal = normalised(fields(means, weight))
    assert not (find_clusters(normal, step/31).clipped < find_clusters(normal, (step+.5)/31).clipped).any()


def images(seed, N, K):
    g = generator(seed, 'images')
    return ImageSet(torch.randint(0, 256, (N, 32, 32, 3), dtype=torch.uint8, generator=g),
                    torch.arange(N) % K, [str(i) for i in range(K)])


NET, PATHS = get_model('vgg6', 3, d=2).eval(), ['layers.1', 'layers.4']


@settings(max_examples=10, deadline=None)
@given(seeds, st.integers(3, 25), st.integers(1, 30))
def test_batch_size_order_and_loader_do_not_change_the_means(seed, N, batch):
    s = images(seed, N, 3)
    whole = label_means(NET, PATHS, Batches(s, N), 3)
    shuffled = label_means(NET, PATHS, Batches(s, batch, shuffle=True, seed=seed), 3)
    listed = label_means(NET, PATHS, [(x.contiguous(), y) for x, y in Batches(s, batch)],
                         3)  # channels first in memory
    for p in PATHS:
        for other in (shuffled, listed): assert torch.allclose(whole[p], other[p], rtol=1e-4, atol=1e-6)


@quick
@given(seeds, st.integers(2, 9), st.floats(1e-3, 1e3))
def test_what_is_selected_hangs_on_no_scale_and_on_no_preferred_output(seed, K, scale):
    "Scaled, and with another number added to each column, a filter has the same p-value and interaction."
    means, weight = case(seed, K)
    M = fields(means, weight)
    columns = torch.randn(len(M), 1, K, generator=generator(seed, 'columns'), dtype=torch.float64)
    other, draws = scale*M + columns, draw_permutations(K, 50, seed)
    assert trace_p(other, draws).equal(trace_p(M, draws))
    assert torch.allclose(field_shares(other)['diagonal_share'], field_shares(M)['diagonal_share'], atol=1e-6)


@quick
@given(seeds, st.integers(2, 9))
def test_relabelling_changes_no_share_and_no_number_of_ones(seed, K):
    means, weight = case(seed, K)
    M, order = fields(means, weight), torch.randperm(K, generator=generator(seed, 'order'))
    other = M[:, order][:, :, order]
    for a, b in zip(field_shares(M).values(), field_shares(other).values()): assert torch.allclose(a, b)
    if K <= 6: assert trace_p(M, draw_permutations(K)).equal(trace_p(other, draw_permutations(K)))
