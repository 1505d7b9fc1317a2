"""Comparisons of ways to prune: rows that stay, methods and chains as text, counts against the definition,
and the tables that ship."""
import copy

import numpy as np, pandas as pd, pytest, torch

from dlmech.measurement import measure_run
from dlmech.model import start, success_rate, train_or_load
from dlmech.pruning.afcc import Diluted
from dlmech.pruning.scores import KERNELS, SCORES
from dlmech.run import DlmechError, ParameterError
from dlmech.study.compare import (AFCC, best_against_best, by_run, Calibrated, Chain, count_verdicts,
                                  cut_study, cut_to, CUTS, DENSE, dilution_study, end_study, EVENLY,
                                  FiltersBy, gather, kernel_masks, KERNEL_RULES, kernels_and_repair,
                                  KernelsBy, LIBRARY, MAGNITUDE, mask_kernels, method_of, METHODS, MIXTURES,
                                  most_within, one_against_each, paired_difference, removal_study,
                                  repair_results, results, retrain_and_score, RETRAINED, RULES,
                                  select_and_repair, Subject, TABLES, together_in, USUAL_SELECTIONS)
from helpers import killed, papermill, python


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    r = start(arch='vgg6', dataset='digits', d=4, layer='all', runs=str(tmp_path_factory.mktemp('runs')))
    train_or_load(r)
    return r


@pytest.fixture(scope='module')
def subject(run): return Subject(run, [4, 5], images=300)


# ---- rows

def test_a_killed_comparison_goes_on_where_it_was(run):
    code = ('import sys\n'
            'from dlmech.model import start\n'
            'from dlmech.study.compare import removal_study, Subject\n'
            "run = start(arch='vgg6', dataset='digits', d=4, layer='all', runs=sys.argv[1])\n"
            "removal_study(Subject(run, [4, 5]), ['noise', 'random', 'Wanda'], (.25, .5, .75)).fill()")
    path, runs = run.file('removal.csv'), run.path.parent
    killed(code, runs, after=(4, 'dlmech.study.study', 'put_row'))
    there = pd.read_csv(path)
    assert len(there) == 4
    p = python(code, runs)
    _, err = p.communicate(timeout=600)
    assert p.returncode == 0, err
    table = pd.read_csv(path)
    assert len(table) == 1 + 3*3*3
    assert table[:len(there)].equals(there)
    assert not table.duplicated(['score', 'fraction', 'fill', 'epochs']).any()


def test_rows_are_listed_in_the_order_of_the_tables(subject):
    rows = removal_study(subject, ['noise', *LIBRARY], (.25, .5)).rows
    assert {tuple(row) for row in rows} == {('layers', 'score', 'fraction', 'fill', 'epochs')}
    assert {str(row['layers']) for row in rows} == {'4+5'}
    assert [tuple(row.values())[1:] for row in rows[:5]] == [
        (DENSE, 0., 'zero', 0), ('noise', .25, 'zero', 0), ('noise', .25, 'zero', 1),
        ('noise', .25, 'mean', 0), ('noise', .5, 'zero', 0)]
    assert not [row for row in rows if row['fill'] == 'mean' and (row['epochs'] or row['score'] in LIBRARY)]
    assert len(rows) == 1 + 2*3 + 2*2*2
    rows = dilution_study(subject, [AFCC, 'random'], (.3, .7)).rows
    assert {str(row['layers']) for row in rows} == {'4+5+output'}
    assert [(row['threshold'], row['rule'], row['epochs']) for row in rows] == [
        (0., DENSE, 0), *((t, rule, e) for t in (.3, .7) for rule in (AFCC, 'random') for e in (0, 1))]
    rows = end_study(subject, METHODS, epochs=2, whole=True).rows
    assert [(str(row['way']), row['amount'], row['epochs'], row['whole']) for row in rows[:3]] == [
        (DENSE, 0., 0, False), (DENSE, 0., 2, True), ('filters by joint field', .25, 2, True)]


def test_a_chain_and_a_method_are_their_text():
    assert str(Chain((4, 5))) == '4+5'
    assert str(Chain((13,), outputs=True)) == '13+output'
    assert Chain((13,), outputs=True).parts == [13, 'output']
    for text, method in {'filters by noise:.5': FiltersBy('noise', .5), 'AFCC:.3': KernelsBy('AFCC', .3),
                         'AFCC, labels dealt anew:.7': KernelsBy('AFCC, labels dealt anew', .7)}.items():
        assert method_of(text) == method
        assert str(method) == text.rpartition(':')[0]


@pytest.mark.parametrize('text, said', [
    ('AFCC', 'it may be as in "filters by noise:.5"'), ('filters by noise', 'it may be as in'),
    ('filters by nois:.5', "score: there is no 'nois'; it may be noise"), ('AFC:.5', "there is no 'AFC'")])
def test_a_method_that_is_none_is_refused(text, said):
    with pytest.raises(ParameterError, match=said): method_of(text)


def test_a_score_and_a_rule_that_are_none_are_refused(subject):
    nois, afc = FiltersBy('nois', .5), KernelsBy('AFC', .5)
    with pytest.raises(ParameterError, match="score: there is no 'nois'"): nois.prune(subject)
    with pytest.raises(ParameterError, match="rule: there is no 'AFC'"): afc.prune(subject)


# ---- cuts to a budget

@pytest.fixture(scope='module')
def calibrated(subject, run):
    return Calibrated(subject.net, run.data, ['layers.4', 'layers.5'], 0, 300, 200, whole=True)


def test_selections_that_ask_nothing_of_phase_3_need_no_measurement(run, subject):
    asked = subject.net, run.data, ['layers.4', 'layers.5'], 0, 300, 200
    bare, measured = Calibrated(*asked, heads=None), Calibrated(*asked)
    assert bare.measurement is None
    assert bare.next_of == {}
    for selection in USUAL_SELECTIONS:
        rows = [select_and_repair(c, selection, .5, 'ridge') for c in (bare, measured)]
        assert rows[0] == rows[1], selection
    with pytest.raises(DlmechError, match='nothing was measured'):
        select_and_repair(bare, 'noise', .5, 'ridge')



@pytest.mark.parametrize('way', [*CUTS, LIBRARY[1]])
def test_a_cut_keeps_its_budget(calibrated, way):
    if way == LIBRARY[1]: pytest.importorskip('torch_pruning')
    row = cut_to(calibrated, 'multiply-adds', .8, way)
    total = sum(calibrated.macs.values())
    assert .5 * total < row['macs'] <= .8 * total
    assert row['faster_256'] > 0
    assert 0 <= row['test_success_rate'] <= 1


def test_half_of_the_filters_is_half_of_them(calibrated):
    row = cut_to(calibrated, 'filters', .5, 'after GRAIL, even')
    part = {p: n for p, n in calibrated.macs.items() if p.startswith(('layers.4', 'layers.5', 'output'))}
    before, after = sum(calibrated.macs.values()), row['macs']
    assert before - sum(part.values()) < after < before - .4 * sum(part.values())


@pytest.mark.parametrize('of, left, way', [('parameters', .5, DENSE), ('filters', .5, 'best'),
                                           ('multiply-adds', 1e-6, 'dlmech.prune')])
def test_a_cut_that_cannot_be_is_said(calibrated, of, left, way):
    with pytest.raises(DlmechError, match='^(of|way|keep): '): cut_to(calibrated, of, left, way)


@pytest.mark.parametrize('rule', KERNEL_RULES)
def test_every_rule_for_kernels_keeps_as_many_of_them(calibrated, rule):
    path, reader = 'layers.5.conv', calibrated.net.layers[4].conv
    together = together_in(calibrated, 'layers.4', dealt=False)
    count = lambda mask: int(mask.sum()) / 9  # kernels of 3 x 3 weights
    masks = {kept: kernel_masks(calibrated, rule, kept)[path] for kept in (0., .1)}
    assert masks[0.].shape == reader.weight.shape
    assert count(masks[0.]) == int(together.sum())
    assert count(masks[.1]) == round(.1 * together.numel()) < int(together.sum())
    in_part = masks[.1].flatten(2).any(2) & ~masks[.1].flatten(2).all(2)
    assert bool(in_part.any()) == (rule == MAGNITUDE)
    if rule == MAGNITUDE:
        assert reader.weight[masks[.1]].abs().min() >= reader.weight[~masks[.1]].abs().max()
        fixed, cut = (kernels_and_repair(calibrated, rule, .1, way) for way in ('ridge', 'none'))
        assert fixed['valid_success_rate'] > cut['valid_success_rate']
    if rule == AFCC: assert torch.equal(masks[0.][:, :, 0, 0], together)
    if rule == AFCC: assert (masks[.1][:, :, 0, 0] <= together).all()
    if rule in MIXTURES:
        alone = kernel_masks(calibrated, MIXTURES[rule][0], .1)[path]
        apart = [int((mask[:, :, 0, 0] & ~together).sum()) for mask in (masks[.1], alone)]
        assert apart[0] < apart[1]
    if rule == EVENLY: assert masks[.1][:, :, 0, 0].sum(1).unique().diff().sum() <= 1


def test_labels_dealt_anew_are_no_clusters(calibrated):
    own, dealt = (together_in(calibrated, 'layers.4', dealt) for dealt in (False, True))
    assert own.shape == dealt.shape == (32, 32)
    assert not torch.equal(own, dealt)


@pytest.mark.parametrize('way', ['ridge', RETRAINED])
def test_kernels_that_went_are_made_up_for(calibrated, way):
    before = {k: v.clone() for k, v in calibrated.net.state_dict().items()}
    rate = lambda how: kernels_and_repair(calibrated, AFCC, .1, how)['valid_success_rate']
    assert rate(way) > rate('none')
    assert all(torch.equal(v, before[k]) for k, v in calibrated.net.state_dict().items())
    with pytest.raises(ParameterError, match="repair: there is no 'all'"): rate('all')
    with pytest.raises(ParameterError, match="rule: there is no 'best'"): kernel_masks(calibrated, 'best', .1)


def test_a_study_of_cuts_has_its_dense_network(calibrated, tmp_path):
    study = cut_study(tmp_path/'cuts.csv', 'digits', lambda seed: calibrated, '4, 5', [('filters', .5)],
                      ['dlmech.prune'], seeds=[0])
    table = study.fill()
    assert table.way.tolist() == [DENSE, 'dlmech.prune']
    assert table.macs[0] == sum(calibrated.macs.values()) > table.macs[1]
    assert table.test_success_rate[0] == calibrated.rates(calibrated.net)['test_success_rate']


# ---- trials

@pytest.mark.parametrize('rule', RULES)
def test_every_rule_keeps_as_many_weights_as_afcc(subject, rule):
    kept = lambda d: {p: int(mask.sum()) for p, mask in d.masks.items()}
    of_rule, of_afcc = (kept(mask_kernels(subject, r, .5)) for r in (rule, AFCC))
    assert of_rule.keys() == of_afcc.keys()
    if rule == 'AFCC, labels dealt anew': return  # it keeps what its own labels say
    if rule == 'magnitude, global': assert sum(of_rule.values()) == sum(of_afcc.values())
    else: assert of_rule == of_afcc


def test_a_trial_changes_nothing_and_is_the_networks_own_answer(subject):
    before = copy.deepcopy(subject.net.state_dict())
    for method in (FiltersBy('Wanda', .5), KernelsBy(AFCC, .5)):
        d = method.prune(subject)
        masked = copy.deepcopy(d.net.state_dict())
        assert retrain_and_score(subject, d, 0) == pytest.approx(success_rate(d.net, subject.test), abs=1e-9)
        retrain_and_score(subject, d, 1)
        assert all(torch.equal(v, masked[k]) for k, v in d.net.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in subject.net.state_dict().items())
    assert retrain_and_score(subject, Diluted(subject.net, {}), 0) == success_rate(subject.net, subject.test)


def test_filters_are_chosen_by_training_images(run, subject):
    "What is known of the filters comes from the measurement over training images, whatever the run asks for."
    assert subject.measurement.source.run.params.images == 'train'
    train = measure_run(run.averaged_over('train'), [4, 5])
    for n, stats in zip((4, 5), subject.stats_of.values()): assert torch.equal(stats.fields, train[n].fields)


# ---- many networks

@pytest.fixture(scope='module')
def table():
    "Four scores over five networks, three shares and two kinds; the networks differ more than the scores."
    g = np.random.default_rng(0)
    return pd.DataFrame([dict(kind=kind, run=f'{kind}{r}', score=s, fraction=f, epochs=0,
                              test_success_rate=.8 - .2*f + .1*r + better + .01*g.normal())
                         for kind in 'xy' for r in range(5) for f in (.25, .5, .75)
                         for s, better in dict(a=.02, b=0, c=-.02, dense=.1).items()])


def test_counts_are_those_of_a_loop(table):
    rest = table[table.score != 'dense']
    compared = one_against_each(rest, 'score', 'b', ['kind', 'fraction'])
    slow = {}
    for kind in 'xy':
        for f in (.25, .5, .75):
            for other in 'ac':
                t = rest[(rest.kind == kind) & (rest.fraction == f)].set_index('run')
                d = (t[t.score == 'b'].test_success_rate - t[t.score == other].test_success_rate).to_numpy()
                half = 2.7764 * d.std(ddof=1) / 5**.5
                word = 'ahead' if d.mean() > half else 'behind' if d.mean() < -half else 'undecided'
                slow[other, word] = slow.get((other, word), 0) + 1
    counts = count_verdicts(compared, 'other')
    for other in 'ac':
        for word in ('ahead', 'undecided', 'behind'):
            assert counts.loc[other, word] == slow.get((other, word), 0)
    assert (counts.settings == 6).all()
    assert counts.behind['a'] > 0
    assert counts.ahead['c'] > 0


def test_the_best_stand_against_each_other_by_their_means(table):
    best = best_against_best(table, 'score', ['c', 'b'], ['a'], ['kind', 'fraction'])
    assert len(best) == 6
    for row in best.itertuples():
        wide = by_run(table[(table.kind == row.kind) & (table.fraction == row.fraction)], 'score')
        assert row.ours == max('cb', key=lambda s: wide[s].mean())
        assert row.difference == pytest.approx((wide[row.ours] - wide['a']).mean())
        assert (row.difference, row.half, row.runs) == paired_difference(wide, row.ours, 'a')


def test_the_best_of_none_is_said(table):
    with pytest.raises(DlmechError, match='compare: none of e, f was tried here'):
        best_against_best(table, 'score', ['e', 'f'], ['a'], ['kind', 'fraction'])


def test_a_single_network_says_nothing(table):
    one = one_against_each(table[table.run == 'x0'], 'score', 'a', ['kind', 'fraction'])
    assert set(one.verdict) == {'one run'}
    counts = count_verdicts(one, 'other')
    assert (counts[['ahead', 'undecided', 'behind']] == 0).all().all()
    assert (counts.settings == 3).all()


def test_how_much_can_go_is_the_largest_share_within_the_margin(table):
    x = table[table.kind == 'x']
    dense = x[x.score == 'dense'].groupby('run').test_success_rate.mean()
    at = x[x.score != 'dense'].assign(loss=lambda t: t.run.map(dense) - t.test_success_rate)
    as_it_is = dense.reset_index().assign(score='dense', fraction=0.)
    one_dense = pd.concat([x[x.score != 'dense'], as_it_is])
    losses = at.groupby(['score', 'fraction']).loss.mean()
    for margin in (-1., .05, .1, .15, 1.):
        most = most_within(one_dense, 'score', 'fraction', 'fraction', margin)
        for s in 'abc':
            there = [f for f in (.25, .5, .75) if losses[s, f] <= margin]
            assert most[s] == max(there, default=0.)


# ---- what ships

def test_the_notebook_says_what_is_wrong(tmp_path):
    done = papermill('04_dilution', tmp_path/'out.ipynb', 'layer=1', f'runs={tmp_path}/runs')
    assert done.returncode == 1
    assert 'ParameterError: layer: from 2 on' in done.stderr


def test_tables_of_other_runs_stay_when_new_ones_are_shipped(run, tmp_path):
    for name, way in (('a', 'dense'), ('b', 'AFCC')):
        other = copy.copy(run)
        other.path = tmp_path/name
        other.path.mkdir()
        pd.DataFrame([dict(layers='4+5+output', way=way, dilution=0.,
                           test_success_rate=.5)]).to_csv(other.path/'scratch.csv', index=False)
        tables = gather([other], tmp_path/'results')
    assert set(tables) == {'scratch'}
    assert pd.read_csv(tmp_path/'results'/'afcc-scratch.csv').run.tolist() == ['a', 'b']


@pytest.mark.parametrize('name', TABLES)
def test_a_shipped_table_is_whole(name):
    table = results(name)
    rates = table.filter(like='test_')
    if name != 'latency': assert len(rates.columns)
    assert rates.stack().between(0, 1).all()
    key = [c for c in ('run', 'layers', 'score', 'rule', 'way', 'fraction', 'threshold', 'amount', 'fill',
                       'epochs', 'whole') if c in table]
    assert not table.duplicated(key).any()
    if by := dict(removal='score', dilution='rule', scratch='way', end='way').get(name):
        dense = table[(table[by] == 'dense') & (table.get('epochs', 0) == 0)]
        assert sorted(zip(dense.run, dense.layers)) == sorted(set(zip(table.run, table.layers)))


def test_shipped_tables_speak_of_scores_and_rules_that_there_are():
    assert set(results('removal').score) <= {*SCORES, *LIBRARY, DENSE}
    assert set(results('dilution').rule) <= {*RULES, DENSE}
    assert set(KERNELS) <= set(RULES)
    named = {f'{row.way}:{row.amount}' for t in ('end', 'latency') for row in results(t).itertuples()}
    for text in named: assert text.startswith(DENSE) or str(method_of(text)) == text.rpartition(':')[0]


def test_the_shipped_kernels_are_compared_at_equal_counts():
    t = repair_results('kernels')
    assert set(t.rule) <= {DENSE, *KERNEL_RULES}
    assert set(t.repair) <= {'none', 'ridge', RETRAINED}
    at = ['network', 'layers', 'heads_on', 'kept', 'seed']
    assert not t.duplicated([*at, 'rule', 'repair']).any()
    assert t.test_success_rate.between(0, 1).all()
    assert (t.assign(kept_share=t.kept_share.round(6)).groupby(at).kept_share.nunique() == 1).all()


def test_a_table_that_there_is_not_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ParameterError, match="there is no 'speed'; it may be removal"): results('speed')
    monkeypatch.setattr('dlmech.study.compare.RESULTS', tmp_path)
    with pytest.raises(DlmechError, match='there are no results of removal'): results('removal')
