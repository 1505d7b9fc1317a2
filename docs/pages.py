"""What is made when the site is built, and not kept in git: notebooks without nbdev's lines, the API by
module, the papers' claims, benchmarks, faults, the glossary, and a report of a measured network."""
import base64, json, os, re, shutil, sys
from functools import partial
from pathlib import Path

import pandas as pd

import dlmech
from dlmech.look.glossary import GLOSSARY
from dlmech.run import quietly, read_csv, read_json, RESULTS
from dlmech.stats import describe_verdicts
from dlmech.study.claims import describe_findings, findings_grid, read_claims, tell
from dlmech.study.universality import describe_sweep, sweep_claims

TOP = Path(__file__).resolve().parent.parent
NBS = TOP/'nbs'
MADE = 'notebooks', 'api', 'made', 'extra'  # the folders that this file makes: pages, parts of pages, files
WINGS = {'00': 'What all of it stands on', '01': 'Phase 1: networks and data', '02': 'Phase 2: heads',
         '03': 'Phase 3: filters', '04': 'Dilution', '05': 'Studies',
         '06': 'Explorer and report', '07': 'The command line'}


def names() -> list[str]:
    "The notebooks of the site, in order; the index is the README."
    return sorted(p.stem for p in NBS.glob('*.ipynb') if p.stem != 'index')


def source_of(cell: dict) -> str:
    "A cell's source."
    return ''.join(cell['source'])


# ---- notebooks

def link_notebooks(text: str, folder: str = 'notebooks/') -> str:
    "Text in which every notebook that is named in backticks is a link; `folder` leads to them."
    there = '|'.join(map(re.escape, names()))
    return re.sub(rf'(?<!\[)`({there})`(?!\])', rf'[`\1`]({folder}\1.ipynb)', text)


FENCED = re.compile(r'(^```.*?^```)', re.M | re.S)  # code in Markdown, in which # begins a comment


def titles_in(text: str) -> int:
    "How many headings of the first level a text has."
    return len(re.findall(r'^# ', FENCED.sub('', text), re.M))


def lowered(text: str, by: int) -> str:
    "Markdown with its headings so many levels lower."
    parts = FENCED.split(text)
    return ''.join(p if i % 2 else re.sub(r'^(#{1,5} )', '#' * by + r'\1', p, flags=re.M)
                   for i, p in enumerate(parts))


def shown_cell(cell: dict) -> dict:
    "A code cell without nbdev's lines; a folded source is folded here too, a widget is its text."
    code = '\n'.join(line for line in source_of(cell).splitlines() if not line.startswith('#|')).strip('\n')
    metadata = cell['metadata']
    folded = dict(tags=['hide-input']) if metadata.get('jupyter', {}).get('source_hidden') else {}
    if 'parameters' in metadata.get('tags', []):
        folded = dict(tags=['hide-input'], mystnb=dict(code_prompt_show='Parameters'))
    for o in cell['outputs']: o.get('data', {}).pop('application/vnd.jupyter.widget-view+json', None)
    return cell | dict(source=code, metadata=folded)


def site_notebook(path: Path) -> dict:
    """A notebook as the site shows it: hidden cells and nbdev's lines dropped, notebooks that are named
    linked, one title, so that what follows a second heading of the first level stands below it."""
    nb, kept, titles = json.loads(path.read_text(encoding='utf-8')), [], 0
    for cell in nb['cells']:
        source = source_of(cell)
        if cell['cell_type'] == 'raw' or source.startswith('#| hide'): continue
        if cell['cell_type'] == 'code': cell = shown_cell(cell)
        else:
            titles += titles_in(source)
            cell = cell | dict(source=link_notebooks(lowered(source, int(titles > 1)), ''))
        if cell['source'] or cell.get('outputs'): kept.append(cell)
    return nb | dict(cells=kept)


def toctree(pages: list[str]) -> str:
    "A table of contents in MyST."
    return '```{toctree}\n:maxdepth: 1\n\n' + '\n'.join(pages) + '\n```'


def notebook_list() -> str:
    "All notebooks, wing by wing."
    wings = {title: [n for n in names() if n.startswith(start)] for start, title in WINGS.items()}
    wings['More'] = [n for n in names() if not n.startswith((*WINGS, 'tutorial'))]
    return '\n\n'.join(f'## {title}\n\n{toctree([f"/notebooks/{n}" for n in here])}'
                       for title, here in wings.items() if here)


# ---- the API

def module_of(name: str) -> str:
    "The module that a notebook exports, as `pruning.afcc`, or ''."
    sources = map(source_of, read_json(NBS/f'{name}.ipynb')['cells'])
    return next((m[1] for s in sources if (m := re.match(r'#\| default_exp ([\w.]+)', s))), '')


def user_table() -> str:
    "What a user types: each name, linked, and the first sentence of its docstring."
    rows = ['| name | what it is |', '|---|---|']
    for name, path in sorted(dlmech.FROM.items(), key=lambda item: item[0].lower()):
        text = ' '.join((getattr(dlmech, name).__doc__ or '').split())
        first = re.split(r'(?<=\.)\s', text)[0].replace('|', r'\|')
        rows.append(f'| {{py:obj}}`dlmech.{name} <dlmech.{path}>` | {first} |')
    return '\n'.join(rows)


def api_page(module: str, notebook: str) -> str:
    "A module's page."
    return (f'# dlmech.{module}\n\nFrom the notebook [`{notebook}`](../notebooks/{notebook}.ipynb).\n\n'
            f'```{{eval-rst}}\n.. automodule:: dlmech.{module}\n   :members:\n```')


# ---- results

def as_table(table: pd.DataFrame) -> str:
    "A table in Markdown; numbers with four digits, an empty field where there is none."
    number = lambda v: f'{v:.4g}' if v == v else ''
    text = lambda v: number(v) if isinstance(v, float) else str(v).replace('|', r'\|').replace('\n', ' ')
    rows = [list(map(str, table.columns)), ['---'] * len(table.columns)]
    rows += [[text(v) for v in row] for row in table.itertuples(index=False)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def claims() -> dict[str, str]:
    "The papers' claims on every network of the tables: a sentence and a grid, and one by one."
    told = tell(read_claims())
    each = [f'### {str(claim)[0].upper()}{str(claim)[1:]}\n\n*{rows.papers.iloc[0]}*\n\n'
            + as_table(rows[['network', 'data', 'finding', 'measured', 'against']])
            for claim, rows in told.groupby('claim', sort=False)]
    sweeps = [read_csv(path) for path in sorted(RESULTS.glob('universality-*.csv'))]
    return {'claims-grid': f'{describe_findings(told).splitlines()[0]}\n\n'
                           + as_table(findings_grid(told).reset_index()),
            'claims-each': '\n\n'.join(each),
            'claims-labels': '\n\n'.join(f'{describe_sweep(s)}. {describe_verdicts(sweep_claims(s))}'
                                         for s in sweeps)}


TIMES = {
    'times': (
        "The README's command",
        'Once installed; and again, when all is read from the folder.'),
    'bench-phases': (
        'The three phases',
        "Each beside what it is held against, in turn; medians of the wall's clock, one thread, nothing else "
        'running.'),
    'bench-phases-avx2': (
        'The same by AVX2 in place of AVX-512',
        "On the same machine: torch's own kernels and oneDNN's convolutions were told not to use more."),
    'bench-parts': (
        'Where the time of phase 3 goes',
        'Each step does what the one before it does, and one thing more; `adds` is what that adds, as a '
        'share of the bare pass.'),
    'bench-limits': (
        "Near the machine's limits",
        "Operations, and the bytes that torch's calls read and write, whatever of it caches keep, are "
        'counted while each work runs; beside them the rates '
        'of a matrix product, of a convolution and of a copy, measured in turn with it. The figure is '
        'the roofline: how many operations a byte, how many a processor second.'),
    'bench-limits-start': (
        'Import',
        "Processor seconds of `import dlmech` in a process of its own, beyond Python's own start."),
    'bench-explore': (
        'The explorer',
        "A tick is a slider's new value, until the pictures that follow from it are ready: milliseconds of "
        "the wall's clock and of the processor, median and 95th percentile; and seconds until a finished run "
        'is open. The fields are made up.'),
    'bench-null': (
        'The null',
        'A layer of made-up fields, of which a share `ones` is above the threshold: processor seconds '
        'without a null and with it.'),
    'bench-train': (
        'Training (phase 1)',
        'Images a second by memory format, number type, threads and batch, and as a share of the rate of a '
        'matrix product of that type.'),
    'bench-augment': (
        'Augmentation, beside torchvision',
        'A batch of CIFAR-10 in memory; `transforms.v2` draws once a call, so it is called image by image.'),
    'bench-checks': (
        'What it costs to compare a file with its manifest',
        'Each kind of file, read with the comparison and without it, in turn; the least of all turns.'),
    'bench-peers-phase3': (
        'What every filter does (phase 3), beside other libraries',
        'The same network, images, layers and heads; answers agree up to `difference`. *Published '
        'shape* follows the published description; of it and of Captum a part is measured and scaled, and '
        'their memory is that of one batch. Here batches are made before; where the three phases are '
        'timed, making them counts in the bare pass too.'),
    'bench-peers-heads': (
        'A head on every layer (phase 2), beside other libraries',
        'The objective is the same. Of the published recipe one epoch is measured and scaled.'),
    'bench-peers-losses': (
        'How good these heads are',
        'The objective that each reaches, layer by layer: less is better.'),
    'bench-peers-heads-growth': (
        'How a head on one layer grows',
        'With the images, on three layers: seconds, peak memory, and the loss that is reached. Our exact '
        'head keeps the maps of as many images as have them in 128 MiB, and looks at no more, so its memory '
        'ends there; what is kept to be fitted grows with every image.'),
    'bench-peers-growth': (
        'How time and memory grow',
        'With the number of images N, of labels K, of filters in the first layer, and of layers, on '
        'random weights and images. Where labels grow there are as many images for all K as the largest has '
        'labels, so there, with one image a label, label means save nothing. Ours counts winners and finds '
        'clusters as well; *fields alone* is what the others give.'),
    'bench-peers-slopes': (
        'The same as exponents',
        'Of processor seconds, of counted operations and of peak memory, against the size of each '
        'axis.'),
    'causal-cost': (
        'The causal test',
        'Millions of operations of the whole network, of what is behind the layer, and of what is '
        'computed; microseconds a filter and image.'),
    'afcc-latency': (
        'Dilution',
        'How many times faster than the dense network, masked and cut out, for one image and for 256.'),
    'bench-afcc': (
        'Dilution, one way beside another',
        'Forward passes on random weights.')}
LEFT_OUT = 'agreement', 'run', 'arch', 'dataset', 'seed', 'whole'  # columns of no use beside others
MANY = 16  # rows: a longer table is folded


def time_tables() -> dict[str, pd.DataFrame]:
    "Tables of time and memory by name: those told of here, and whatever `bench` has left."
    paths = {name: RESULTS/f'{name}.csv' for name in TIMES}
    paths |= {p.stem: p for p in sorted(RESULTS.glob('bench-*.csv'))}
    paths |= {f'bench-{p.stem}': p for p in sorted((TOP/'bench'/'results').glob('*.csv'))}
    order = [*TIMES, *(name for name in paths if name not in TIMES)]
    return {name: read_csv(paths[name]) for name in order if paths[name].exists()}


def benchmark_figures() -> dict[str, bytes]:
    "The figures of these tables, as PNG, by the table's name: drawn as `bench` draws them."
    sys.path.insert(0, str(TOP))
    from bench.__main__ import picture
    return {name: base64.b64decode(text) for name, t in time_tables().items()
            if name.startswith('bench-') and (text := picture(t))}


def benchmark(name: str, table: pd.DataFrame, drawn: bool) -> str:
    "A table of time or memory under its heading: what is the same in all rows is said once."
    title, text = TIMES.get(name, (name, ''))
    table = table.drop(columns=[c for c in LEFT_OUT if c in table])
    same = [c for c in table if len(table) > 2 and table[c].nunique(dropna=False) == 1]
    said = '; '.join(f'{c} {table[c].iloc[0]:.4g}' if table[c].dtype == float else f'{c}: {table[c].iloc[0]}'
                     for c in same)
    shown = as_table(table.drop(columns=same))
    if len(table) > MANY: shown = f':::{{dropdown}} The table, {len(table)} rows\n{shown}\n:::'
    picture = f'![{title}](made/{name}.png)' * drawn
    return '\n\n'.join(filter(None, (f'## {title}', text, f'*{said}*' * bool(said), picture, shown)))


REFERENCES = 'matrix product', 'convolution', 'copy'  # of the table of limits: what works are held against


Aim = tuple[str, float, float, bool]  # what, aim, measured, whether at least the aim
TYPES = {'share_of_matrix_rate': 'a matrix product of its type',
         'share_of_fastest': 'the fastest of its type here, product or convolution'}


def aims_of_phases(t: pd.DataFrame, where: str = '') -> list[Aim]:
    "Each row says its own."
    told = [(where + re.sub(r'^\(\w\) ', '', str(row.what)), str(row.aim).split(), row.ratio)
            for row in t.itertuples()]
    return [(what, float(aim), ratio, sign.startswith('>')) for what, (sign, aim), ratio in told]


def aims_of_phase3(t: pd.DataFrame) -> list[Aim]:
    "Beside a bare pass, and beside the peers."
    ratio, n = t.set_index('what').ratio, t.images.iloc[0]
    passes, bare = ratio / ratio['bare forward pass'], 'as a multiple of a bare forward pass'
    own = {'dlmech': '', 'dlmech, with the null': ' with the null'}
    return [*((f'phase 3 of all layers{more}, {n} images, {bare}', 1.1, passes[name], False)
              for name, more in own.items() if name in passes),
            ('phase 3 of all layers against captum, times as fast', 1000, ratio['captum'], True),
            ('the same against the published shape, times as fast', 50, ratio['published shape'], True)]


def aims_of_heads(t: pd.DataFrame) -> list[Aim]:
    "Time beside heads that are as good as ours (see the table of losses), memory beside the cheapest."
    n, t = t.images.iloc[0], t.set_index('what')
    same, kept = (t.filter(like=f'hooks, scikit-learn, tol={tol}', axis=0) for tol in ('1e-6', '1e-4'))
    return [(f'exact heads, {n} images, against {same.index[0]}, times as fast', 10, same.ratio.iloc[0],
             True),
            (f'their peak memory, {n} images, as a share of that of {kept.index[0]}', 1.,
             t.peak_mib['dlmech'] / kept.peak_mib.iloc[0], False)]


def aims_of_growth(t: pd.DataFrame) -> list[Aim]:
    "Memory and loss with the most images, of each layer."
    last, n = t[t.images == t.images.max()], f'{t.images.max():,} images'
    return [(f'{what} of an exact head on {layer}, {n}, as a share of that of {rows.what.iloc[1]}', most,
             rows[column].iloc[0] / rows[column].iloc[1], False)
            for what, column, most in (('peak memory', 'peak_mib', 1.), ('loss', 'loss', 1.001))
            for layer, rows in last.groupby('layer', sort=False)]


def aims_of_limits(t: pd.DataFrame) -> list[Aim]:
    "Each work's share of either rate."
    own = t[~t.what.str.startswith(REFERENCES)]
    return [(f'{row.what}, as a share of the rate of {of}', .6, getattr(row, column), True)
            for column, of in TYPES.items() for row in own.itertuples()]


def aims_of_explorer(t: pd.DataFrame) -> list[Aim]:
    "Few labels, and many; each slider."
    return [(f'a tick of the explorer, {row.run}, slider {s}, 95th percentile of the wall, ms', most,
             getattr(row, f'{s}_p95_ms'), False)
            for row, most in zip(t.itertuples(), (50., 100.)) for s in ('filter', 'threshold', 'image')]


AIMS_OF = {
    'bench-phases': aims_of_phases,
    'bench-phases-avx2': partial(aims_of_phases, where='AVX2: '),
    'bench-peers-phase3': aims_of_phase3,
    'bench-peers-heads': aims_of_heads,
    'bench-peers-heads-growth': aims_of_growth,
    'bench-limits': aims_of_limits,
    'bench-limits-start': lambda t: [(f'{row.what}, processor seconds', row.aim, row.cpu_s, False)
                                     for row in t.itertuples()],
    'bench-explore': aims_of_explorer}


def aims(tables: dict[str, pd.DataFrame]) -> str:
    "What was aimed at, and what came of it, from these tables."
    asked = [aim for name, aims_of in AIMS_OF.items() if name in tables for aim in aims_of(tables[name])]
    met = lambda aim, now, least: 'met' if (now >= aim if least else now <= aim) else 'missed'
    rows = [dict(what=what, aim=f'{"at least" if least else "at most"} {aim:,g}', measured=now,
                 result=met(aim, now, least)) for what, aim, now, least in asked]
    return f'## Aims\n\n{as_table(pd.DataFrame(rows))}' if rows else ''


def benchmarks(drawn: dict[str, bytes]) -> str:
    "What was aimed at, and what was measured in time and memory: every table as its script left it."
    tables = time_tables()
    return '\n\n'.join([aims(tables), *(benchmark(name, t, name in drawn) for name, t in tables.items())])


def faults() -> str:
    "What is promised of faults: the end of the notebook on runs, without its heading."
    cells, parts, heading = read_json(NBS/'00_run.ipynb')['cells'], [], '## What is promised of faults'
    start = next(i for i, c in enumerate(cells) if heading in source_of(c))
    for cell in cells[start:]:
        if cell['cell_type'] == 'markdown': parts.append(source_of(cell))
        parts += [''.join(o['data']['text/markdown']) for o in cell.get('outputs', ())
                  if 'text/markdown' in o.get('data', {})]
    return link_notebooks('\n\n'.join(parts).replace(heading, ''))


def glossary() -> str:
    "The words of the method, as the explorer and the report say them."
    return '\n\n'.join(f'{term}\n: {text}' for term, text in GLOSSARY.items())


SHOWN = 'zoo:vgg16-cifar10-d64'  # the network whose measurement comes with the package
LAYERS = 1, 7, 13              # of it, those that the site has room for


def report(extra: Path) -> str:
    """Writes the report of some layers of the best network that comes with the package, or of the run that
    DLMECH_SITE_RUN names, into `extra/report`; what leads to it."""
    m = dlmech.open(os.environ.get('DLMECH_SITE_RUN') or SHOWN)
    numbers = [part.number for part in m if part.number in LAYERS] or [part.number for part in m][-1:]
    with quietly(True): dlmech.report(m, out=extra/'report', layers=numbers)
    counted = sum(len(m[n]) for n in numbers)
    return (f'**{m.title}**, layers {", ".join(map(str, numbers))} of {len(m.paths)}: a page for each of '
            f'their {counted} filters.\n\n<a href="report/index.html">Open the report</a>\n\n'
            f'The same, of all its layers, on your own machine, without data or training:\n\n'
            f'```bash\ndlmech report {SHOWN} --out vgg16-report\n```')


# ---- all of it

def made(extra: Path) -> dict[str, str|bytes]:
    "Every page, every part that pages include, and every figure, by its place."
    drawn = benchmark_figures()
    modules = {module: n for n in names() if (module := module_of(n))}
    parts = claims() | {'benchmarks': benchmarks(drawn), 'faults': faults(), 'glossary': glossary(),
                        'report': report(extra), 'notebooks': notebook_list(), 'names': user_table(),
                        'modules': toctree([f'/api/{module}' for module in modules])}
    return ({f'made/{name}.md': text for name, text in parts.items()}
            | {f'made/{name}.png': png for name, png in drawn.items()}
            | {f'api/{module}.md': api_page(module, n) for module, n in modules.items()}
            | {f'notebooks/{n}.ipynb': json.dumps(site_notebook(NBS/f'{n}.ipynb')) for n in names()})


def write_all(docs: Path) -> None:
    "Writes all of it below `docs`; what has not changed is left alone, what is no more is taken away."
    shutil.rmtree(docs/'extra', ignore_errors=True)
    for folder in MADE: (docs/folder).mkdir(exist_ok=True)
    pages = made(docs/'extra')
    for place, text in pages.items():
        path, data = docs/place, text if isinstance(text, bytes) else text.encode()
        if not path.exists() or path.read_bytes() != data: path.write_bytes(data)
    there = {p.relative_to(docs).as_posix() for folder in MADE[:-1] for p in (docs/folder).glob('*')}
    for place in there - set(pages): (docs/place).unlink()
