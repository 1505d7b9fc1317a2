"Clusters, noise and SNR by brute force on random matrices, and the cases at the edge."
import itertools

import numpy as np, pytest, torch

from dlmech.filter import clip, fields, filter_rows, find_clusters, layer_means, normalised, ones_of, snr
from dlmech.null import measure_layer
from dlmech.run import DlmechError


def by_hand(B):
    """Clusters of one matrix as lists of labels: each seed grows by every later free label with which the
    sub-block stays all ones."""
    taken, found = set(), []
    for seed in range(len(B)):
        if seed in taken or not B[seed, seed]: continue
        members = [seed]
        for label in range(seed+1, len(B)):
            if label not in taken and B[label, label] and B[np.ix_(members+[label], members+[label])].all():
                members.append(label)
        taken |= set(members)
        found.append(members)
    return found


def count_by_hand(B):
    "Internal and external noise, element by element."
    found = by_hand(B)
    inside = {label for c in found for label in c}
    internal = external = 0
    for i, j in itertools.product(range(len(B)), repeat=2):
        if not B[i, j] or any(i in c and j in c for c in found): continue
        internal += j in inside
        external += j not in inside
    return internal, external


@pytest.mark.parametrize('K', range(2, 13))
def test_random_matrices(K):
    g = torch.Generator().manual_seed(K)
    M = torch.randn(60, K, K, generator=g, dtype=torch.float64)
    diagonal, level = (torch.rand(60, 1, 1, generator=g) for _ in range(2))
    M += torch.eye(K) * diagonal * 2 + level  # from sparse to nearly full
    M[0] = -M[0].abs()                        # negative
    M[1] = 0                                  # silent
    M[2] = 1                                  # all ones
    M[3] = torch.eye(K)
    clusters = find_clusters(normalised(M))
    for f in range(len(M)):
        top = M[f].max().item()
        B = (M[f].numpy() / top > .3) if top > 0 else np.zeros((K, K), bool)
        assert (clusters.clipped[f].numpy() == B).all()
        found = by_hand(B)
        numbers = range(int(clusters.cluster[f].max()) + 1)
        assert [(clusters.cluster[f] == c).nonzero()[:, 0].tolist() for c in numbers] == found
        assert clusters.sizes[f][clusters.sizes[f] > 0].tolist() == [len(c) for c in found]
        assert (clusters.internal[f].item(), clusters.external[f].item()) == count_by_hand(B)
        assert clusters.noise[f] == B.sum() - sum(len(c)**2 for c in found)
    for f in (0, 1): assert clusters.sizes[f].sum() == clusters.noise[f] == 0
    assert clusters.sizes[2].tolist() == [K] + [0]*(K-1)
    assert clusters.sizes[3].tolist() == [1]*K


@pytest.mark.parametrize('K', range(2, 13))
def test_snr_is_what_counting_gives(K):
    g = torch.Generator().manual_seed(100 + K)
    normal = normalised(torch.randn(25, K, K, generator=g, dtype=torch.float64) + torch.eye(K))
    clusters = find_clusters(normal)
    rows, B = filter_rows(normal, clusters, torch.zeros(25, K)), clusters.clipped.numpy()
    row = layer_means(rows, K)
    S, N, ratio = row['signal'], row['cross'], row['snr']
    assert ones_of(rows).tolist() == B.sum((1, 2)).tolist()
    assert np.isclose(S, np.mean([B[:, i, i].sum() for i in range(K)]))
    assert np.isclose(N, np.mean([B[:, i, j].sum() for i in range(K) for j in range(K) if i != j]))
    sizes, n = clusters.sizes.numpy(), clusters.noise.numpy()
    assert np.isclose(ratio, (K-1) * sizes.sum(1).mean() / ((sizes*(sizes-1)).sum(1).mean() + n.mean()))
    picks = sizes.any(1)
    assert np.isclose(row['signal_active'], np.mean([B[picks, i, i].sum() for i in range(K)]))


def test_cluster_size_is_the_mean_over_one_flat_list():
    """As the group's code has it: filters without a cluster have no say, and one with many clusters has as
    many."""
    M = torch.stack([torch.zeros(6, 6), torch.eye(6), torch.ones(6, 6)]).double()
    row = layer_means(filter_rows(M, find_clusters(normalised(M)), torch.zeros(3, 6)), 6)
    assert row['cluster_size'] == (6*1 + 6) / 7      # six clusters of one label, one of six
    assert row['n_clusters'] == 7 / 3
    assert row['n_clusters_active'] == 7 / 2
    assert 'cluster_size_active' not in row
    none = layer_means(filter_rows(M[:1], find_clusters(M[:1]), torch.zeros(1, 6)), 6)
    assert np.isnan(none['cluster_size'])


@pytest.mark.parametrize('K', [1, 2, 40, 150])
def test_clusters_of_dense_and_of_many_labels(K):
    dense = torch.linspace(.02, 1.1, 12)[:, None, None]
    B = torch.rand(12, K, K, generator=torch.Generator().manual_seed(K)) < dense
    for f, cluster in enumerate(find_clusters(B.double()).cluster):
        found = [(cluster == c).nonzero()[:, 0].tolist() for c in range(int(cluster.max()) + 1)]
        assert found == by_hand(B[f].numpy())


def test_a_value_at_the_threshold_does_not_count():
    M = torch.tensor([[[1., .3], [.3000001, .3]]], dtype=torch.float64)
    assert clip(normalised(M), .3).tolist() == [[[True, False], [True, False]]]


def test_nan_is_refused_and_its_filter_named():
    means, weight = torch.ones(3, 600, 1, 1), torch.ones(3, 600, 1, 1)
    weight[1, 417] = float('nan')
    with pytest.raises(DlmechError, match='filter 417'): fields(means, weight)


def test_nan_is_named_by_its_own_number_when_filters_come_in_chunks(monkeypatch):
    monkeypatch.setattr('dlmech.filter.CHUNK', 9*50)
    means, weight = torch.ones(3, 600, 1, 1), torch.ones(3, 600, 1, 1)
    means[2, 417] = float('inf')
    with pytest.raises(DlmechError, match='filter 417'): measure_layer(means, weight, torch.ones(600, 3))


def test_signal_without_noise_and_neither():
    assert snr(3., 0., 3) == (1., 0., float('inf'))
    assert np.isnan(snr(0., 0., 3)[2])
