"What lies on disk: damaged files are refused in one sentence, advice is true, nothing is taken for another."
import errno, json, random, shutil, threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import save_file

import dlmech
from dlmech import measurement, model, probe
from dlmech.batches import Batches
from dlmech.filter import fields, label_means, observe
from dlmech.measurement import measure_run, Pass
from dlmech.model import start, train_or_load
from dlmech.probe import heads_for, PAPER
from dlmech.run import (AGAIN, DlmechError, DlmechWarning, in_words, known_of, locked, MANIFEST, manifest_of,
                        read_csv, read_json, read_tensors, remedy, whole, write_csv, write_json,
                        write_tensors)
from helpers import blobs, run as command, small_net
from storage import DAMAGE, files_of, LAYERS, line_checkpoint, parts_of, readers, same, SMALL


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A small finished run, with a checkpoint."
    r = start(**SMALL, runs=str(tmp_path_factory.mktemp('runs')))
    measure_run(r, LAYERS)
    line_checkpoint(r.path/'checkpoint.safetensors')
    return r


@pytest.fixture
def copy(run, tmp_path):
    "A copy of it that may be spoilt."
    return shutil.copytree(run.path, tmp_path/run.path.name)


def again(folder: Path, **changes):
    "The run in that folder."
    return start(**SMALL | dict(runs=str(folder.parent)) | changes)


def damages(run, folder: Path, n: int, seed: int) -> pd.DataFrame:
    """n damaged files, by kind of file: how many were refused, how many read as before, and how many as
    something else without a word; any other error is one."""
    r, read = random.Random(seed), readers(run)
    whole_files = {name: (folder/name).read_bytes() for name in read}
    kept = {name: manifest_of(folder/name).read_bytes() for name in read}
    right = {name: f(folder) for name, f in read.items()}
    came = pd.DataFrame(0, index=list(read), columns=['refused', 'as_before', 'wrong'])
    for i in range(n):
        name, damage = list(read)[i % len(read)], DAMAGE[i // len(read) % len(DAMAGE)]
        of_manifest = i // (len(read) * len(DAMAGE)) % 5 == 4   # a fifth hits the manifest
        path, data = folder/name, whole_files[name]
        if of_manifest: path, data = manifest_of(path), kept[name]
        path.write_bytes(damage(data, r))
        try: found = 'as_before' if same(read[name](folder), right[name]) else 'wrong'
        except DlmechError as e:
            found = 'refused'
            assert name in str(e) and '\n' not in str(e) and str(folder) in str(e), e
        finally: path.write_bytes(data)
        if found == 'wrong': print(f'{name}, {damage.__name__}, {i}: another, without a word')
        came.loc[name, found] += 1
    return came


def test_damaged_files_are_refused_or_read_as_they_were(run, copy):
    came = damages(run, copy, 900, 0).sum()
    assert came.wrong == 0
    assert came.refused > 850  # some damage changes nothing: a line changes places with itself
    assert came.sum() == 900


@pytest.mark.slow
def test_twenty_thousand_damaged_files(run, copy, note):
    came = damages(run, copy, 20_000, 1)
    assert came.wrong.sum() == 0
    assert came.refused.sum() > 18_000
    note([dict(of=name, count=row.sum(), **row) for name, row in came.iterrows()])


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'train.csv', 'probe.csv', 'layers.csv',
                                  'filters-5.csv', 'head-5.safetensors', 'top-5.safetensors',
                                  'fields-5.safetensors'])
def test_delete_it_and_run_again_is_true(run, copy, name):
    "Said of each kind of file of a run, and what is made anew is what was there, byte for byte."
    (copy/'checkpoint.safetensors').unlink()
    before, path = files_of(copy), copy/name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DlmechError, match=f'{name} is damaged') as e: readers(run)[name](copy)
    assert AGAIN in str(e.value)
    path.unlink()
    measure_run(again(copy), LAYERS)
    assert files_of(copy) == before
    assert same(readers(run)[name](copy), readers(run)[name](run.path))


def test_a_layer_whose_head_or_network_is_another_is_made_anew(run, copy):
    "Nothing of an old network is kept beside a new one."
    old, header = read_tensors(copy/'model.safetensors')
    weights = {k: v + .01 if v.is_floating_point() else v for k, v in old.items()}
    write_tensors(copy/'model.safetensors', weights, **header)
    r = again(copy)
    m = measure_run(r, LAYERS)
    net = train_or_load(r)
    means = label_means(net, ['layers.5'], Batches(r.data.test, 250), r.data.K)['layers.5']
    assert torch.allclose(m[5].fields, fields(means, m[5].head))
    assert not m[5].head.equal(readers(run)['head-5.safetensors'](run.path))


def test_advice_that_would_lose_something_is_not_given(run, copy, tmp_path):
    "A user's own file, a saved measurement, a folder of 0.1: none is made anew by deleting it."
    mine = tmp_path/'mine.safetensors'
    mine.write_bytes((copy/'model.safetensors').read_bytes()[:-5])
    for weights in (mine, shutil.copy(mine, copy/'mine.safetensors')):
        with pytest.raises(DlmechError) as e: train_or_load(again(copy, weights=str(weights)))
        assert 'delete' not in str(e.value)
        assert str(weights) in str(e.value)
    saved = dlmech.measure(small_net(), blobs(40, 4), blobs(40, 4, 1), layers=['5']).save(tmp_path/'saved')
    for p in files_of(saved):
        (saved/p).write_bytes((saved/p).read_bytes()[:-7])
        assert AGAIN not in remedy(saved/p)
        assert 'measure again' in remedy(saved/p)
    with pytest.raises(DlmechError, match='measure again'): dlmech.open(saved)
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps({k: v for k, v in config.items() if k != 'heads'}))
    assert AGAIN not in remedy(copy/'head-5.safetensors')


def test_weights_in_the_format_that_everybody_has(run, tmp_path):
    "A .pth of torch.save is read, with weights_only; one with a pickle in it is refused in a sentence."
    net = train_or_load(run)
    torch.save(net.state_dict(), tmp_path/'mine.pth')
    r = start(**SMALL | dict(runs=str(tmp_path/'runs'), weights=str(tmp_path/'mine.pth')))
    assert same(dict(net.state_dict()), dict(train_or_load(r).state_dict()))
    torch.save(dict(net=net), tmp_path/'other.pth')
    with pytest.raises(DlmechError, match='is no state dict of tensors alone') as e:
        train_or_load(start(**SMALL | dict(runs=str(tmp_path/'runs'), weights=str(tmp_path/'other.pth'))))
    assert '\n' not in str(e.value)


# ---- old folders, and files that a user has changed

def test_an_old_folder_opens_with_a_word_and_impossible_tables_are_refused(run, copy):
    shutil.rmtree(copy/MANIFEST)
    config = json.loads((copy/'config.json').read_text())
    (copy/'config.json').write_text(json.dumps({k: v for k, v in config.items() if k not in ('format',
                                                                                            'data_digest')}))
    with pytest.warns(DlmechWarning, match='was made before digests were kept'): m = dlmech.open(copy)
    assert m.layers.equals(read_csv(run.path/'layers.csv'))
    with pytest.warns(DlmechWarning, match='was made before digests'): again(copy)
    lines = (copy/'layers.csv').read_bytes().splitlines(keepends=True)
    for torn in (lines[:2] + [lines[2][:9]], [lines[0], lines[2], lines[1]], [*lines, lines[2]]):
        (copy/'layers.csv').write_bytes(b''.join(torn))
        with pytest.raises(DlmechError, match='layers.csv is damaged'): dlmech.open(copy)
    (copy/'layers.csv').write_bytes(b''.join(lines))
    rows = (copy/'filters-5.csv').read_bytes().splitlines(keepends=True)
    for torn in (rows[:-1], rows[:3] + rows[4:], [*rows, rows[-1]], [rows[0], rows[2], rows[1], *rows[3:]]):
        (copy/'filters-5.csv').write_bytes(b''.join(torn))
        with pytest.raises(DlmechError, match='filters-5.csv is damaged'): len(dlmech.open(copy)[5].filters)


def test_a_folder_that_was_copied_without_what_is_hidden_says_so(copy):
    "As `cp -r run/* there`, or an archive without hidden folders, leaves it."
    shutil.rmtree(copy/MANIFEST)
    for read in (lambda: dlmech.open(copy)), (lambda: again(copy)):
        with pytest.warns(DlmechWarning, match='has lost its folder .manifest'): read()


def test_numbers_that_are_none_are_refused_where_no_manifest_is(run, copy):
    shutil.rmtree(copy/MANIFEST)
    for name, key in (('fields-5', 'fields'), ('head-5', 'weight')):
        data = (copy/f'{name}.safetensors').read_bytes()
        nan = np.array(np.nan, dict(fields='<f8', weight='<f4')[key])
        (copy/f'{name}.safetensors').write_bytes(data[:-nan.nbytes] + nan.tobytes())
        part = dlmech.open(copy)[5]
        with pytest.raises(DlmechError, match=f'{name}.safetensors is damaged .*not finite'):
            part.field(len(part)-1) if key == 'fields' else part.head


@pytest.mark.parametrize('name, change', [
    ('head', lambda t: {'weight': t['weight'].int()}), ('head', lambda t: {'weight': t['weight'][:2]}),
    ('top', lambda t: {k: v.float() for k, v in t.items()}),
    ('top', lambda t: t | {'output': t['output'] + 9}),
    ('fields', lambda t: {'fields': t['fields'][:, :2].contiguous()}),
    ('fields', lambda t: {'x': t['fields']})])
def test_tensors_of_another_kind_are_refused_where_no_manifest_is(copy, name, change):
    path = copy/f'{name}-5.safetensors'
    tensors, about = read_tensors(path)
    shutil.rmtree(copy/MANIFEST)
    save_file(change({k: v.clone() for k, v in tensors.items()}), path, metadata=about)
    with pytest.raises(DlmechError, match=f'{name}-5.safetensors is damaged'):
        part = dlmech.open(copy)[5]
        part.card(0)
        assert part.head is not None


def test_words_among_numbers_are_refused_where_no_manifest_is(copy):
    shutil.rmtree(copy/MANIFEST)
    pd.read_csv(copy/'filters-5.csv').assign(noise='x').to_csv(copy/'filters-5.csv', index=False)
    with pytest.raises(DlmechError, match='filters-5.csv is damaged .*noise'):
        len(dlmech.open(copy)[5].filters)


def test_other_images_than_those_of_the_fields_are_said(tmp_path):
    data = blobs(80, 4)
    dlmech.measure(small_net(), data, data, layers='5', heads='ridge').save(tmp_path/'m')
    part = dlmech.open(tmp_path/'m', images=tuple(t[:4] for t in data))[2]
    with pytest.raises(DlmechError, match='images: there is no image .* among these 4;'): part.card(0)


def test_one_folder_is_saved_to_once(tmp_path, monkeypatch):
    "Also where two find it empty at the same time."
    data = blobs(80, 4)
    m, locked_as = dlmech.measure(small_net(), data, data, layers='5', heads='ridge'), measurement.locked
    @contextmanager
    def second(folder):
        monkeypatch.setattr(measurement, 'locked', locked_as)
        m.save(folder)
        with locked_as(folder): yield
    monkeypatch.setattr(measurement, 'locked', second)
    with pytest.raises(DlmechError, match='holds a measurement already'): m.save(tmp_path/'m')
    assert dlmech.open(tmp_path/'m').layers.snr.equals(m.layers.snr)


def test_what_a_user_changed_on_purpose_is_taken_once_he_says_so(copy):
    table = pd.read_csv(copy/'filters-5.csv').assign(max_field=1.)
    table.to_csv(copy/'filters-5.csv', index=False)
    with pytest.raises(DlmechError, match='changed it on purpose, delete .manifest/filters-5.csv.json'):
        len(dlmech.open(copy)[5].filters)
    manifest_of(copy/'filters-5.csv').unlink()
    with pytest.warns(DlmechWarning, match='holds files that its manifest does not know'):
        assert (dlmech.open(copy)[5].filters.max_field == 1).all()


@pytest.mark.parametrize('text', ['[]', '7', 'null', '{}', '{"arch": "vgg6"}', '{"title": "x"}',
                                  '{"names": 3}',
                                  '{"arch": "vgg6", "names": [1], "layers": ["a"]}', '[' * 100_000,
                                  '{"title": "x", "names": ["a"], "layers": ["b"], "threshold": "c"}',
                                  '{"title": "x", "names": ["a"], "layers": ["b"], "threshold": 0.3, '
                                  '"fields_on": 3}'])
def test_a_configuration_that_is_none_is_refused_in_a_sentence(copy, text):
    shutil.rmtree(copy/MANIFEST)
    (copy/'config.json').write_text(text)
    with pytest.raises(DlmechError) as e: dlmech.open(copy)
    assert '\n' not in str(e.value)
    assert len(str(e.value)) < 600


# ---- a run is bound to what lies there

def photos(top: Path, seed: int = 0) -> Path:
    "A folder of 2 x 2 x 12 pictures."
    from PIL import Image
    g = np.random.default_rng(seed)
    for part in ('train', 'test'):
        for name in ('ape', 'bee'):
            (top/part/name).mkdir(parents=True, exist_ok=True)
            for i in range(12):
                Image.fromarray(g.integers(0, 255, (32, 32, 3), np.uint8)).save(top/part/name/f'{i}.bmp')
    return top


def test_other_images_under_the_same_path_are_said(tmp_path):
    folder = photos(tmp_path/'photos')
    asked = dict(SMALL, dataset=f'folder:{folder}', labels='all', runs=str(tmp_path/'runs'))
    start(**asked)
    start(**asked)
    picture = folder/'test'/'ape'/'3.bmp'
    was = picture.read_bytes()
    for change, what in ((lambda: picture.write_bytes(was[:-1] + bytes([was[-1] ^ 1])), 'test contents'),
                         (lambda: shutil.move(picture, folder/'test'/'bee'/'99.bmp'), 'test labels'),
                         (lambda: (folder/'test'/'bee'/'99.bmp').unlink(), 'test images')):
        change()
        with pytest.raises(DlmechError, match=f'holds a run of other images .*{what}'): start(**asked)


def test_other_weights_under_the_same_path_are_said(run, tmp_path):
    shutil.copy(run.path/'model.safetensors', tmp_path/'mine.safetensors')
    asked = dict(SMALL, weights=str(tmp_path/'mine.safetensors'), runs=str(tmp_path/'runs'))
    train_or_load(start(**asked))
    write_tensors(tmp_path/'mine.safetensors', {k: v * 2 if v.is_floating_point() else v for k, v in
                                                read_tensors(run.path/'model.safetensors')[0].items()})
    with pytest.raises(DlmechError, match='holds a run of other weights'): start(**asked)


def test_a_checkpoint_is_taken_for_nothing_else(run, tmp_path, monkeypatch):
    "The blocks of a resnet have parts of the same names: a head begun for one goes on for that alone."
    monkeypatch.setattr(probe, 'PAPER', probe.replace(PAPER, epochs=2))
    asked = dict(dataset='digits', arch='resnet20', labels='0,1', weights='', epochs=1, heads='paper')
    class Killed(BaseException): pass
    def heads(runs, layer, dies=False):
        r = start(**asked | dict(runs=str(tmp_path/runs), layer=layer))
        if not r.file('model.safetensors').exists():
            write_tensors(r.file('model.safetensors'), model.new_model(r.params, 2).state_dict())
        save = probe.save_checkpoint
        def dying(*a):
            save(*a)
            raise Killed
        with monkeypatch.context() as m:
            if dies: m.setattr(probe, 'save_checkpoint', dying)
            return heads_for(r, r.layer_numbers)[1].weight(r.layers[r.layer_numbers[0]-1])
    with pytest.raises(Killed): heads('cut', 'layer1.0', dies=True)
    assert heads('cut', 'layer1.1').equal(heads('whole', 'layer1.1'))
    left, = (tmp_path/'cut').rglob('checkpoint-heads-*.safetensors')   # of the layer that was killed
    assert len(left.name) < 60
    assert heads('cut', 'layer1.0').equal(heads('whole', 'layer1.0'))
    assert not list(tmp_path.rglob('checkpoint-heads-*.safetensors'))


def test_a_checkpoint_of_another_recipe_or_width_is_refused(tmp_path):
    net, opt = line_checkpoint(tmp_path/'c.safetensors')
    with pytest.raises(DlmechError, match='is a checkpoint of another training .what differs: seed'):
        model.load_checkpoint(tmp_path/'c.safetensors', net, opt, dict(seed=1))
    wide = torch.nn.Linear(5, 2)
    with pytest.raises(DlmechError, match='is damaged .it is of another network'):
        model.load_checkpoint(tmp_path/'c.safetensors', wide, torch.optim.SGD(wide.parameters(), .1))


def test_a_pass_goes_on_from_where_it_was_cut(run, copy, monkeypatch):
    "Phase 3, killed in its pass, keeps what it had summed; the end is the same to the bit."
    monkeypatch.setattr('dlmech.measurement.PASS_SECONDS', 0.)
    r = again(copy, images='train')
    net, heads = heads_for(r, LAYERS)
    cut = Pass(r, heads)
    class Killed(BaseException): pass
    class Dying:
        numbers = property(lambda self: cut.numbers)
        def __iter__(self):
            given = iter(cut)
            yield next(given)
            next(given)
            raise Killed
    with pytest.raises(Killed): observe(net, heads.paths, Dying(), r.data.K, seen=cut.seen)
    rest = Pass(r, heads)
    assert 0 < len(rest) < len(Batches(r.images, 250))
    m, straight = measure_run(r, LAYERS), measure_run(again(shutil.copytree(
        run.path, copy.parent/'straight'/copy.name), images='train'), LAYERS)
    assert files_of(m.source.run.tables) == files_of(straight.source.run.tables)


# ---- places that cannot be written to

def test_a_place_that_cannot_be_is_said_with_its_path_and_the_way_out(run, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(DlmechError, match='file: it is a file where a folder should be; move it away'):
        start(**SMALL, runs=str(tmp_path/'file'))
    with pytest.raises(DlmechError, match='file: it is a file where a folder should be; move it away'):
        start(**SMALL, runs=str(tmp_path/'file'/'runs'))
    (tmp_path/run.path.name).touch()
    with pytest.raises(DlmechError, match='it is a file where a folder should be'):
        start(**SMALL, runs=str(tmp_path))
    (tmp_path/'t.csv').mkdir()
    with pytest.raises(DlmechError, match='t.csv: it is a folder where a file should be; move it away'):
        write_csv(tmp_path/'t.csv', pd.DataFrame(dict(a=[1])))
    with pytest.raises(DlmechError, match='t.csv: it is a folder where a file'): read_csv(tmp_path/'t.csv')
    with pytest.raises(DlmechError, match='the name is too long'): write_json(tmp_path/('x' * 300), {})
    with pytest.raises(DlmechError, match='there is no such file'): read_json(tmp_path/'none.json')


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_what_the_system_says_while_writing_is_said_in_words(tmp_path, monkeypatch, number):
    def full(*a): raise OSError(number, 'no')
    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(DlmechError, match=r'a\.json') as e: write_json(tmp_path/'a.json', {})
    assert 'make room' in str(e.value) or 'another folder' in str(e.value)
    assert not list(tmp_path.rglob('*.part'))


def test_a_full_disk(tmp_path):
    "A disk of 200 KB, where one may be mounted: a sentence, nothing half written; with room it goes on."
    disk = tmp_path/'disk'
    disk.mkdir()
    try: mounted = command('mount', '-t', 'tmpfs', '-o', 'size=200k', 'tmpfs', disk).returncode == 0
    except FileNotFoundError: mounted = False
    if not mounted: pytest.skip('no disk may be mounted here; what the system says is tried above')
    try:
        write_tensors(disk/'a.safetensors', dict(a=torch.zeros(10_000)))
        for write in (lambda: write_tensors(disk/'b.safetensors', dict(a=torch.zeros(100_000))),
                      lambda: write_csv(disk/'b.csv', pd.DataFrame(dict(a=range(100_000))))):
            with pytest.raises(DlmechError, match='the disk is full; make room and run again'): write()
            assert not list(disk.glob('b.*'))
            assert not parts_of(disk)
        assert read_tensors(disk/'a.safetensors')[0]['a'].shape == (10_000,)
        command('mount', '-o', 'remount,size=4m', disk)
        write_tensors(disk/'b.safetensors', dict(a=torch.zeros(100_000)))
    finally: command('umount', disk)


# ---- threads

def test_a_file_is_written_by_many_threads(tmp_path):
    "Each write is whole, and after the last one the manifest knows the file that is there."
    failed = []
    def write(i):
        try:
            for _ in range(10):
                write_csv(tmp_path/'t.csv', pd.DataFrame(dict(n=[i] * (i+1))))
                assert len(set(read_csv(tmp_path/'t.csv').n)) == 1
        except BaseException as e: failed.append(e)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not failed, failed
    table = read_csv(tmp_path/'t.csv')
    assert len(table) == table.n[0] + 1
    assert len(known_of(tmp_path/'t.csv')) == 1
    assert not parts_of(tmp_path)


def test_a_lock_keeps_threads_apart(tmp_path):
    inside, most = [], []
    def work():
        with locked(tmp_path):
            inside.append(1)
            most.append(len(inside))
            inside.pop()
    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert most == [1] * 8


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match='torn'), whole(tmp_path/'a'): raise OSError('torn')
    with pytest.raises(FileNotFoundError), in_words(tmp_path/'a'): open('/nowhere/at/all')
