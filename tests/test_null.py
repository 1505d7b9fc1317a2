"""The null against brute force, on noise, and on filters that do pick labels; shares against a slow twin;
intervals against a bootstrap and against what they promise."""
import itertools

import numpy as np, pandas as pd, pytest, torch
from scipy import stats

from dlmech.filter import clip, cluster_sizes, clusters, find_clusters, normalised, Responses
from dlmech.null import (diagonals, draw_permutations, evidence, excess, field_shares, measure_fields,
                         measure_layer, null_table, p_values, permuted_counts, q_values, trace_p,
                         winner_dependence)
from dlmech.run import generator


def random_fields(C, K, seed=0, zero_sum=True):
    M = torch.randn(C, K, K, generator=generator(seed), dtype=torch.float64)
    return M - M.mean(2, keepdim=True) * zero_sum


def as_layer(M, step=10**6, **kwargs):
    "As a layer of these fields, `step` filters at a time."
    parts = [(slice(i, min(i+step, len(M))), M[i:i+step]) for i in range(0, len(M), step)]
    return measure_fields(parts, torch.zeros(len(M), M.shape[1]), **kwargs)


# ---- against brute force

def by_hand(M, threshold=.3):
    "One filter's null from every permutation of its rows, one after the other."
    K, found = len(M), []
    for order in itertools.permutations(range(K)):
        picked = find_clusters(normalised(M[list(order)][None]), threshold)
        trace = sum(float(M[order[i], i]) for i in range(K))
        found.append((int((picked.sizes > 0).sum()), int(picked.sizes.sum()), int(picked.noise),
                      trace, int(picked.sizes.sum()) == 0))
    return np.array(found, float)


@pytest.mark.parametrize('K', [2, 3, 4, 5])
def test_all_permutations_of_few_labels(K):
    M = random_fields(6, K, K)
    M[0] = -1                                        # dead
    M[1] = torch.eye(K)                              # every label is its own
    filters, row = as_layer(M)
    assert (filters.permutations == len(draw_permutations(K))).all()
    for f, t in filters.iterrows():
        every = by_hand(M[f])
        null = t[['n_clusters_null', 'n_labels_null', 'noise_null']].to_numpy(float)
        assert np.allclose(null, every[:, :3].mean(0))
        assert np.isclose(t.without_cluster_null, every[:, 4].mean())
        assert np.isclose(t.p_value, (every[:, 3] >= float(M[f].trace()) - 1e-9).mean())
    assert filters.p_value[0] == 1                   # nothing to tell the orders apart
    assert filters.p_value[1] == 1 / len(draw_permutations(K))


def test_labels_under_the_null_are_the_ones_over_K():
    "Known without a permutation, and what permutations give."
    M = random_fields(50, 4, 1)
    filters, row = as_layer(M)
    B = clip(normalised(M))
    mean = diagonals(B, draw_permutations(4)).sum(2).double().mean(1)
    assert np.allclose(filters.n_labels_null, mean)
    assert np.isclose(row['snr_null'], 1)
    on, off = mean.sum(), B.sum() - mean.sum()
    assert np.isclose(3 * on / off, 1)


@pytest.mark.parametrize('C, K, share', [(40, 3, .5), (30, 10, .3), (10, 30, .6), (6, 60, .9), (3, 100, .15)])
def test_each_permuted_matrix_has_the_clusters_that_the_rule_gives(C, K, share):
    B = torch.rand(C, K, K, generator=generator(K)) < share
    B |= torch.eye(K, dtype=torch.bool) & (torch.rand(C, 1, 1, generator=generator(K, 1)) < .5)
    B[0] = True
    B[1] = False
    draws = draw_permutations(K, 25)
    t = permuted_counts(B, draws)
    sizes = cluster_sizes(clusters(B[:, draws].flatten(0, 1))).view(C, len(draws), K)
    assert t['asked'].all()
    assert t['labels'].equal(sizes.sum(2))
    assert t['clusters'].equal((sizes > 0).sum(2))
    assert t['squares'].equal((sizes**2).sum(2))


# ---- what noise gives

def test_p_values_of_noise_are_uniform():
    """2,000 filters of noise at K = 10: Kolmogorov's distance from uniform is above .036 in one of a hundred
    such samples; and no filter is selective."""
    filters, row = as_layer(random_fields(2000, 10, 3), permutations=999)
    assert stats.kstest(filters.p_value, 'uniform').statistic < .036
    assert abs((filters.p_value <= .05).mean() - .05) < .02
    assert row['selective'] <= .05
    assert abs(row['not_of_null']) < .08
    assert abs(row['snr'] - 1) < .05


def test_nothing_exceeds_its_null_in_a_layer_of_noise():
    "In 60 layers each 95 % interval leaves the null out at most 8 times: by chance once in 200."
    layers = [random_fields(40, 8, (4, seed)) for seed in range(60)]
    rows = pd.DataFrame([as_layer(M, permutations=200)[1] for M in layers])
    for x in ('n_clusters', 'cluster_size', 'labels_per_filter', 'noise', 'snr', 'without_cluster'):
        outside = (rows[f'{x}_excess_low'] > 0) | (rows[f'{x}_excess_high'] < 0)
        assert outside.sum() <= 8, x
    assert (rows.snr_p_value <= .05).sum() <= 8
    assert stats.kstest(rows.snr_p_value, 'uniform').pvalue > .001


def test_the_diagonal_share_of_noise_is_one_direction_of_all():
    K = 6
    share = field_shares(random_fields(4000, K, 5))['diagonal_share']
    assert abs(share.mean() - 1/(K-1)**2) < 4 * share.std() / 4000**.5
    one = random_fields(1, K, 6)
    every = field_shares(one[0][draw_permutations(K)])['diagonal_share']
    assert np.isclose(every.mean(), 1/(K-1)**2)      # exactly, over all K!


# ---- what filters give that pick labels

def test_planted_filters_are_found():
    M = random_fields(60, 20, 7)
    for f in range(30):
        labels = torch.randperm(20, generator=generator(7, f))[:6]
        M[f, labels[:, None], labels] += 5
    filters, row = as_layer(M)
    selective = filters.q_value <= .05
    assert selective[:30].mean() > .9
    assert selective[30:].sum() <= 4
    assert row['selective'] == selective.mean()
    assert .4 < row['not_of_null'] < .8
    assert row['snr_excess_low'] > 0
    assert row['without_cluster_excess_high'] < 0
    assert row['snr_p_value'] == 1 / 1001
    assert evidence(row).index('SNR') < evidence(row).index('**Not**')


def test_one_large_element_is_on_the_diagonal_by_chance_once_in_K():
    M = torch.zeros(1, 10, 10, dtype=torch.float64)
    M[0, 3, 3] = 1
    assert abs(trace_p(M, draw_permutations(10, 4000))[0] - .1) < .02


def test_an_output_that_always_wins_is_no_evidence():
    "Whatever the columns have in common changes no p-value; a filter that is nothing else has p = 1."
    M, draws = random_fields(20, 7, 8), draw_permutations(7, 500)
    columns = torch.randn(20, 1, 7, generator=generator(9), dtype=torch.float64)
    assert trace_p(M + 100*columns, draws).equal(trace_p(M, draws))
    assert (trace_p(columns.expand(-1, 7, -1), draws) == 1).all()
    shares = field_shares(columns.expand(-1, 7, -1))
    assert torch.allclose(shares['column_share'], torch.ones(20).double())
    assert (shares['interaction_share'] == 0).all()
    assert shares['diagonal_share'].isnan().all()


# ---- what must not change it

def test_chunks_change_nothing(monkeypatch):
    M = random_fields(23, 9, 10)
    whole = as_layer(M)
    for step in (1, 4, 22):
        filters, row = as_layer(M, step)
        pd.testing.assert_frame_equal(filters, whole[0])
        assert row == pytest.approx(whole[1])
    monkeypatch.setattr('dlmech.filter.CHUNK', 700)
    filters, row = as_layer(M, 23)
    pd.testing.assert_frame_equal(filters, whole[0])
    assert row == pytest.approx(whole[1])


def test_the_same_seed_gives_the_same_and_another_nearly_so():
    M = random_fields(30, 10, 11)
    first, same, other = (as_layer(M, seed=s)[0] for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first, same)
    assert not first.p_value.equals(other.p_value)
    assert (first.p_value - other.p_value).abs().max() < .1
    assert (first.n_clusters_null - other.n_clusters_null).abs().max() < .2
    assert draw_permutations(9, 50).equal(draw_permutations(9, 80)[:50])


def test_what_is_observed_is_no_part_of_the_null_of_permuted_rows():
    "Rows in another order have the same null, if all orders are in it."
    M = random_fields(10, 5, 12)
    a, b = as_layer(M)[0], as_layer(M[:, [3, 1, 0, 4, 2]])[0]
    columns = ['n_clusters_null', 'n_labels_null', 'noise_null', 'column_share', 'interaction_share']
    pd.testing.assert_frame_equal(a[columns], b[columns])


def test_scaling_a_filter_changes_no_null():
    M = random_fields(10, 8, 13)
    a, b = as_layer(M)[0], as_layer(M * torch.logspace(-6, 6, 10)[:, None, None])[0]
    pd.testing.assert_frame_equal(a.drop(columns='max_field'), b.drop(columns='max_field'))


def test_without_permutations_there_is_no_null_and_no_NaN():
    M = random_fields(10, 6, 14)
    filters, row = as_layer(M, permutations=0)
    full, with_null = as_layer(M)
    assert not [c for c in [*filters, *row] if 'null' in c or 'p_value' in c or 'excess' in c]
    assert not filters.drop(columns='winner_share').isna().any(axis=None)      # who wins was not asked
    assert not pd.Series(row).isna().any()
    pd.testing.assert_frame_equal(full[list(filters)], filters)
    assert row == {k: v for k, v in with_null.items() if k in row}
    assert null_table(row).empty
    assert evidence(row) == ''


def test_too_few_permutations_call_nothing_selective():
    row = as_layer(random_fields(5, 3, 15))[1]
    assert np.isnan(row['selective'])
    assert 'too few permutations to say' in evidence(row)
    assert not np.isnan(as_layer(random_fields(5, 4, 15))[1]['selective'])     # 1/24 < .05


def test_a_layer_in_which_no_filter_picks_anything():
    filters, row = as_layer(-torch.ones(3, 7, 7, dtype=torch.float64))
    assert row['dead'] == 3
    assert row['without_cluster'] == row['without_cluster_null'] == 1
    assert row['noise'] == row['noise_null'] == row['n_clusters_null'] == 0
    assert all(np.isnan(row[k]) for k in ('snr', 'snr_null', 'cluster_size', 'cluster_size_null'))
    assert (filters.p_value == 1).all()


def test_a_thousand_labels_are_bounded(monkeypatch):
    "Fewer permutations for clusters where many labels are on the diagonal; all of them for p-values."
    K = 1000
    M = torch.rand(2, K, K, generator=generator(16), dtype=torch.float64)
    M[1] = M[1]**20                                  # few ones; in the first 7 of 10
    asked = []
    of = clusters
    monkeypatch.setattr('dlmech.null.clusters', lambda B: asked.append(B.shape) or of(B))
    filters, row = as_layer(M)
    assert filters.permutations.tolist()[0] == 10
    assert 500 < filters.permutations[1] < 1000
    assert row['permutations'] == 10
    assert sum(np.prod(shape) for shape in asked) < 1.5e7                      # elements of sub-matrices
    assert max(np.prod(shape) for shape in asked) < 2**24
    assert len(filters.p_value.unique()) == 2
    assert np.allclose(filters.n_labels_null, clip(normalised(M)).sum((1, 2)) / K)


def test_a_layer_from_means_and_head_is_that_of_its_fields():
    means = torch.randn(6, 15, 2, 2, generator=generator(17), dtype=torch.float64)
    head = torch.randn(6, 15, 2, 2, generator=generator(18), dtype=torch.float64)
    kept = []
    filters, row = measure_layer(means, head, torch.zeros(15, 6), keep=kept.append)
    again, same = as_layer(torch.from_numpy(np.concatenate(kept)))
    pd.testing.assert_frame_equal(filters, again)
    assert row == pytest.approx(same)


# ---- shares

def slow_shares(M):
    "Sums of squares of one matrix by loops."
    K, mean = len(M), M.mean()
    row = sum(K * (M[i].mean() - mean)**2 for i in range(K))
    column = sum(K * (M[:, j].mean() - mean)**2 for j in range(K))
    rest = np.array([[M[i, j] - M[i].mean() - M[:, j].mean() + mean for j in range(K)] for i in range(K)])
    contrast = np.eye(K) - 1/K                       # of row, column and whole nothing is along it
    along = (rest * contrast).sum()**2 / (contrast**2).sum()
    total = ((M - mean)**2).sum()
    return row / total, column / total, (rest**2).sum() / total, along / (rest**2).sum()


@pytest.mark.parametrize('K', [2, 3, 5, 10, 17])
def test_shares_are_the_sums_of_squares(K):
    M = random_fields(20, K, K, zero_sum=False)
    M += 3*torch.randn(20, 1, K, generator=generator(K), dtype=torch.float64) + torch.eye(K)
    shares = torch.stack(list(field_shares(M).values()), 1).numpy()
    assert np.allclose(shares, [slow_shares(m) for m in M.numpy()])
    assert np.allclose(shares[:, :3].sum(1), 1)
    assert (shares >= 0).all()
    assert (shares <= 1 + 1e-12).all()


def test_shares_of_matrices_that_are_one_thing():
    K = 5
    rows = torch.arange(K).double()[:, None].expand(K, K)
    shares = field_shares(torch.stack([rows, rows.T, torch.eye(K).double(), 1 - torch.eye(K).double()]))
    parts = torch.stack([shares[f'{k}_share'] for k in ('row', 'column', 'interaction')], 1)
    assert torch.allclose(parts, torch.eye(3).double()[[0, 1, 2, 2]])
    assert torch.allclose(shares['diagonal_share'][2:], torch.ones(2).double())
    assert all(s.isnan().all() for s in field_shares(torch.full((1, K, K), 2.)).values())


# ---- statistics

def test_q_values_are_those_of_scipy():
    for seed in range(5):
        p = np.random.default_rng(seed).random(40)**2
        p[3] = p[7]
        assert np.allclose(q_values(p), stats.false_discovery_control(p))


def test_p_of_ties_and_of_the_largest():
    draws = draw_permutations(8, 99)
    null = torch.arange(99.)[None].repeat(3, 1)
    assert p_values(torch.tensor([98., 98.5, 0]), null, draws).tolist() == pytest.approx([.02, .01, 1])


def test_the_interval_is_the_bootstraps():
    "Delta method and bootstrap over filters give the same half-width within 6 %, at 400 filters."
    rng = np.random.default_rng(0)
    b = rng.poisson(9, 400).astype(float)
    a = rng.poisson(1 + b/3).astype(float)
    b0, a0 = b + rng.normal(0, .3, 400), 3 + rng.normal(0, .3, 400)
    found = excess(a, b, a0, b0)
    drawn = rng.integers(400, size=(4000, 400))
    boot = a[drawn].sum(1) / b[drawn].sum(1) - a0[drawn].sum(1) / b0[drawn].sum(1)
    assert np.isclose(found['_excess'], a.sum()/b.sum() - a0.sum()/b0.sum())
    assert abs((found['_excess_high'] - found['_excess_low']) / 2 / (1.966 * boot.std()) - 1) < .06


def test_the_interval_of_a_ratio_covers_it():
    "In 1,000 layers of 60 filters 93 to 97 % of the intervals hold the true ratio."
    rng, inside = np.random.default_rng(1), 0
    for _ in range(1000):
        b = rng.gamma(4, 1, 60)
        a = b * rng.uniform(0, 1, 60)                # the true ratio is a half
        found = excess(a, b, np.zeros(60), np.ones(60))
        inside += found['_excess_low'] < .5 < found['_excess_high']
    assert .93 < inside / 1000 < .97


# ---- winners

def table_of(labels, winners, K):
    return torch.bincount(labels*K + winners, minlength=K*K).view(K, K)


def test_winners_are_tested_as_scipy_does():
    K, tables = 6, []
    for seed in range(8):
        labels, drawn = (torch.randint(K, (300,), generator=generator(seed, w)) for w in 'ab')
        follows = torch.rand(300, generator=generator(seed)) < seed / 8
        tables.append(table_of(labels, drawn.where(~follows, (labels+1) % K), K))
    found = winner_dependence(torch.stack(tables))
    for table, p, V in zip(tables, found['winner_p_value'], found['winner_dependence']):
        chi2, expected, df, _ = stats.chi2_contingency(table, correction=False)
        assert np.isclose(p, expected, rtol=1e-4, atol=1e-12)
        phi, r = max(0, chi2/300 - df/299), K - (K-1)**2/299
        assert np.isclose(V, (phi/(r-1))**.5)
    assert found['winner_dependence'][7] > .8


def test_winners_that_do_not_depend_on_the_label():
    "p-values of 1,000 filters whose winner has nothing to do with the label are uniform; V is about 0."
    g, K = generator(20), 5
    chance = torch.tensor([.6, .2, .1, .05, .05])
    tables = [table_of(torch.arange(400) % K, torch.multinomial(chance, 400, True, generator=g), K)
              for _ in range(1000)]
    found = winner_dependence(torch.stack(tables))
    assert stats.kstest(found['winner_p_value'], 'uniform').statistic < .052
    assert found['winner_dependence'].mean() < .04


def test_winners_at_the_edge():
    always, silent = torch.zeros(2, 4, 4, dtype=torch.int32)
    always[:, 2] = 25
    found = winner_dependence(torch.stack([always, silent]))
    assert found['winner_dependence'].tolist()[0] == 0
    assert found['winner_p_value'].tolist()[0] == 1
    assert all(t[1].isnan() for t in found.values())


@pytest.mark.parametrize('K, rows', [(3, 3), (100, 100), (101, 1)])
def test_winners_are_counted_by_label_where_there_is_room(K, rows):
    weight = torch.randn(K, 4, 1, 1, generator=generator(21))
    maps = torch.randn(90, 4, 1, 1, generator=generator(22)).relu()
    labels, r = torch.arange(90) % K, Responses(weight)
    for b in torch.arange(90).split(32): r.add(maps[b], b, labels[b])
    assert r.wins.shape == (4, rows, K)
    each = torch.einsum('bchw,kchw->bck', maps, weight)
    for f in range(4):
        fires = each[:, f].abs().amax(1) > 0
        row = labels[fires] if rows > 1 else torch.zeros(int(fires.sum()), dtype=torch.int64)
        expected = torch.bincount(row*K + each[fires, f].argmax(1), minlength=rows*K)
        assert r.wins[f].flatten().equal(expected.int())
    filters, row = measure_fields([(slice(0, 4), random_fields(4, K, 23))], r.wins, permutations=10)
    assert ('winner_dependence' in filters) == (rows > 1)
    assert np.allclose(filters.winner_share, (r.wins.sum(1).amax(1) / r.wins.sum((1, 2))).numpy())
