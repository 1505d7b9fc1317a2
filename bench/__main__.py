"""All benches, one after the other: their tables, with the machine that they were measured on.

    python -m bench [--only null,phases] [--quick] [--again] [--out FOLDER]

Prints every table, and writes it as CSV into the folder (default bench/results), beside machine.json and a
page of figures, index.html. Each bench has a process of its own, as a process's peak memory never falls; one
that fails is named, and the rest go on. A bench whose tables lie there, of this machine, these versions and
these sizes, is not measured again, so that a call that was cut goes on; --again measures all of them. With
--quick everything is so small that the numbers mean nothing. On a processor with AVX-512,
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m bench --out OTHER measures torch's own kernels and
oneDNN's convolutions as they are without it.

A table with a column of sizes (`AXES`, three values or more) and columns of costs (`COSTS`) makes a figure on
logarithmic axes, with a line, and its slope, for each of what its texts and other sizes say; else a column
`ratio` makes one. A table may say in `attrs['growth']` itself what is drawn: dict(x=COLUMN, y=[COLUMNS],
by=[COLUMNS]).
"""
import argparse, base64, io, json, os, platform, subprocess, sys, tempfile, time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill

import numpy as np, pandas as pd
from jinja2 import Template

from bench import benches
from dlmech.run import whole

HERE = Path(__file__).parent
Tables = dict[str, pd.DataFrame]
AXES = 'N n K C D d images labels filters layers batch size world ones'.split()
TEXT = 8  # points; no text of a figure is smaller
COSTS = 'seconds', 'second', 'peak', 'memory', 'bytes', '_s', '_ms', '_gb', '_mb', 'MiB', 'images_per_second'


# ---- the machine

def cpu() -> tuple[str, str]:
    "The name of the processor, and those of its flags that decide how fast a matrix product is."
    try: text = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError: return platform.processor() or platform.machine(), ''
    lines = [line.split(':', 1) for line in text.split('\n\n')[0].splitlines() if ':' in line]
    about = {key.strip(): value.strip() for key, value in lines}
    flags = about.get('flags', about.get('Features', '')).split()
    wanted = ('avx', 'fma', 'amx', 'f16c', 'bf16', 'sve', 'asimd')
    return about.get('model name', platform.machine()), ' '.join(f for f in flags if f.startswith(wanted))


def instructions() -> str:
    "Which instructions torch uses, and, where oneDNN was told to use fewer, what oneDNN does."
    import torch
    told = os.environ.get('ONEDNN_MAX_CPU_ISA', '')
    return torch.backends.cpu.get_cpu_capability() + f', oneDNN {told}' * bool(told)


def memory() -> float:
    "The machine's memory in GiB."
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30


def machine() -> dict[str, str]:
    "What the tables were measured on, and with."
    import torch

    import dlmech
    name, flags = cpu()
    may = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    return {'date': time.strftime('%Y-%m-%d %H:%M %z'), 'CPU': name, 'flags': flags,
            'cores': f'{os.cpu_count()}, of which this process may use {may}',
            'instructions': instructions(), 'memory': f'{memory():.0f} GiB', 'GPU': gpu,
            'threads': str(torch.get_num_threads()),
            'load average before': ' '.join(f'{v:.1f}' for v in os.getloadavg()),
            'system': f'{platform.system()} {platform.machine()}',
            'versions': f'dlmech {dlmech.__version__}, torch {torch.__version__}, numpy {np.__version__}, '
                        f'Python {platform.python_version()}'}


# ---- the benches

CHILD = """
import sys
from pathlib import Path
from bench import measure
for key, table in measure(sys.argv[1], sys.argv[2] == 'quick').items():
    table.to_csv(Path(sys.argv[3])/f'{key}.csv', index=False)
"""  # no child of multiprocessing, in which torchlens refuses to work


def apart(name: str, quick: bool) -> Tables:
    "The tables of a bench, measured in a process of its own."
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-c', CHILD, name, 'quick' if quick else 'full', folder]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode: raise RuntimeError((done.stderr.strip().splitlines() or [done.returncode])[-1])
        paths = sorted(Path(folder).glob('*.csv'), key=lambda p: (p.stat().st_mtime_ns, p.name))
        return {p.stem: pd.read_csv(p) for p in paths}


def shown(table: pd.DataFrame) -> pd.DataFrame:
    "A table as it is printed: its machine is said once, above all of them."
    return table.drop(columns='machine', errors='ignore')


@dataclass
class Results:
    "The folder of the tables, and a note in machine.json of what each bench has left there, and on what."
    out: Path
    about: dict[str, str]
    done: dict[str, dict] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    # what must be the same for a table to stand
    SAME = 'CPU', 'flags', 'instructions', 'GPU', 'threads', 'versions', 'sizes'
    def __post_init__(self):
        try: self.done = json.loads((self.out/'machine.json').read_text(encoding='utf-8'))['done']
        except (OSError, ValueError, KeyError): self.done = {}
    def there(self, name: str) -> Tables:
        "The tables of a bench that stand; {} if there are none."
        note = self.done.get(name, {})
        paths = [self.out/f'{key}.csv' for key in note.get('tables', [])]
        if any(note.get(k) != self.about[k] for k in self.SAME): return {}
        if not all(p.exists() for p in paths): return {}
        return {p.stem: pd.read_csv(p) for p in paths}
    def add(self, name: str, tables: Tables, seconds: float) -> Tables:
        "Writes the tables of a bench."
        tables = {key if key == name else f'{name}-{key}': table for key, table in tables.items()}
        for key, table in tables.items():
            with whole(self.out/f'{key}.csv') as f: table.to_csv(f, index=False)
        self.done[name] = dict(tables=list(tables), seconds=round(seconds), **self.about)
        self.note()
        return tables
    def note(self) -> None:
        "Writes machine.json."
        about = self.about | dict(failed=self.failed, done=self.done)
        text = json.dumps(about, indent=1) + '\n'
        with whole(self.out/'machine.json') as f: f.write_text(text, encoding='utf-8')


def run(names: list[str], quick: bool, results: Results, do: Callable[[str, bool], Tables] = apart,
        again: bool = False) -> Tables:
    "Every table by name, each printed and written as soon as it is there."
    found = {}
    for name in names:
        t, tables = time.perf_counter(), {} if again else results.there(name)
        if tables: print(f'\n{name}: there already', flush=True)
        else:
            try: tables = do(name, quick)
            except Exception as e:
                results.failed[name] = f'{type(e).__name__}: {" ".join(str(e).split())}'
                print(f'\n{name} failed: {results.failed[name]}', flush=True)
                continue
            tables = results.add(name, tables, time.perf_counter() - t)
            print(f'\n{name} ({time.perf_counter() - t:.0f} s)', flush=True)
        for key, table in tables.items():
            print(f'\n{key}\n{shown(table).to_string(index=False, float_format="{:.4g}".format)}', flush=True)
        found |= tables
    return found


# ---- the page of figures

def growth_of(table: pd.DataFrame) -> dict|None:
    "What is to be drawn against what, on logarithmic axes: x, y and by; None if the table shows no growth."
    if 'growth' in table.attrs: return table.attrs['growth']
    numbers = table.select_dtypes('number')
    x = next((c for c in numbers if c in AXES and numbers[c].nunique() >= 3 and (numbers[c] > 0).all()), None)
    y = [c for c in numbers if c not in AXES and (c.startswith(COSTS) or c.endswith(COSTS))]
    if x is None or not y: return None
    told = [c for c in table.columns if c in AXES or c not in numbers]
    return dict(x=x, y=y, by=[c for c in told if c != x and 1 < table[c].nunique() < len(table)])


def slope(x: pd.Series, y: pd.Series) -> float:
    "The exponent by which y grows with x."
    return float(np.polyfit(np.log(x.astype(float)), np.log(y.astype(float)), 1)[0])


def _draw_growth(ax, rows: pd.DataFrame, x: str, y: str, by: list[str], slopes: bool):
    "A line for each value of `by`, named, with its slope if asked for."
    for key, t in rows.groupby(by, sort=False) if by else [((), rows)]:
        t = t.loc[(t[y] > 0) & (t[x] > 0)].sort_values(x)
        if t[x].nunique() < 2: continue
        said = ', '.join(map(str, key)) or y
        ax.plot(t[x], t[y], 'o-', ms=3, label=f'{said}: {slope(t[x], t[y]):.2f}' if slopes else said)
    ax.set(xscale='log', yscale='log')
    ax.minorticks_off()
    sizes = sorted(rows[x].unique())
    ax.set_xticks(sizes[::-(-len(sizes) // 5)], [f'{v:g}' for v in sizes[::-(-len(sizes) // 5)]])
    ax.tick_params(labelsize=TEXT)


def growth_figure(table: pd.DataFrame, x: str, y: list[str], by: list[str]):
    """A row of panels for each y, in it a panel for each value of a column `axis` (what was made larger), a
    line for each value of the rest of `by`; with its slope, where there is one panel in a row."""
    from matplotlib.figure import Figure
    parts = list(table.groupby('axis', sort=False)) if 'axis' in by else [(x, table)]
    by = [c for c in by if c != 'axis']
    fig = Figure(figsize=(max(4, 1.9*len(parts)) + 2, 2.3*len(y) + .3), layout='constrained')
    axes = fig.subplots(len(y), len(parts), squeeze=False, sharey='row')
    for row, column in zip(axes, y):
        for ax, (name, rows) in zip(row, parts):
            _draw_growth(ax, rows, x, column, by, len(parts) == 1)
            ax.set_xlabel(name, fontsize=TEXT)
        row[0].set_ylabel(column, fontsize=TEXT)
        if not row[0].lines: continue
        row[-1].legend(*row[0].get_legend_handles_labels(), fontsize=TEXT, title_fontsize=TEXT, frameon=False,
                       title='slope' if len(parts) == 1 else None, loc='center left', bbox_to_anchor=(1, .5))
    return fig


def ratio_figure(table: pd.DataFrame):
    "A bar for each ratio, its number beside it."
    from matplotlib.figure import Figure
    texts = [c for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])
             and (len(table) == 1 or table[c].nunique() > 1)][:2]
    names = [fill(', '.join(map(str, row)), 60) for row in table[texts].itertuples(index=False)]
    lines = sum(name.count('\n') + 1 for name in names)
    fig = Figure(figsize=(7.2, .7 + .1*len(table) + .15*lines), layout='constrained')
    ax, y = fig.subplots(), np.arange(len(table))[::-1]
    bars = ax.barh(y, table['ratio'] - 1, left=1, height=.6)
    ax.bar_label(bars, [f'{v:.3g}' if v < 1000 else f'{v:,.0f}' for v in table['ratio']], fontsize=TEXT,
                 padding=2)
    ax.axvline(1, color='k', lw=.8)
    ax.set_yticks(y, names if texts else y)
    if table['ratio'].max() > 3 * table['ratio'].min(): ax.set(xscale='log')   # else its ticks overlap
    ax.margins(x=.15)
    ax.set_xlabel('ratio', fontsize=TEXT)
    ax.tick_params(labelsize=TEXT)
    return fig


def picture(table: pd.DataFrame) -> str:
    "The figure of a table as PNG in base64, '' if it has none."
    growth = growth_of(table)
    if growth: fig = growth_figure(table, **growth)
    elif 'share_of_matrix_rate' in table:
        from bench.limits import roofline_figure
        fig = roofline_figure(table)
    elif 'ratio' in table and len(table) and (table['ratio'] > 0).all(): fig = ratio_figure(table)
    else: return ''
    fig.savefig(png := io.BytesIO(), format='png', dpi=110)
    return base64.b64encode(png.getvalue()).decode()


PAGE = Template('''<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>dlmech: speed</title>
<style>body{font:14px sans-serif;max-width:70em;margin:2em auto}table{border-collapse:collapse;font-size:12px}
td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ddd}img{max-width:100%}</style>
<h1>How fast dlmech is</h1>
<table>{% for k, v in about.items() %}<tr><th>{{ k }}<td>{{ v }}{% endfor %}</table>
{% for name, why in failed.items() %}<p><b>{{ name }} failed</b>: {{ why }}{% endfor %}
{% for name, table in tables.items() %}<h2>{{ name }}</h2>
{% if pictures[name] %}<img alt="{{ name }}" src="data:image/png;base64,{{ pictures[name] }}">{% endif %}
{{ shown(table).to_html(index=False, border=0, float_format='{:.4g}'.format) | safe }}{% endfor %}
</html>''', autoescape=True)


def page(about: dict, tables: Tables, failed: dict[str, str]) -> str:
    "The page of figures: the machine, and each table with its figure."
    pictures = {name: picture(table) for name, table in tables.items()}
    return PAGE.render(about=about, tables=tables, failed=failed, pictures=pictures, shown=shown)


def main(args: list[str]|None = None, do: Callable[[str, bool], Tables] = apart) -> int:
    "The command: 0, or 1 if a bench failed."
    p = argparse.ArgumentParser('python -m bench', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', help=f'some of {", ".join(benches())}')
    p.add_argument('--quick', action='store_true', help='very small, to try the benches themselves')
    p.add_argument('--again', action='store_true', help='measure what is there already, too')
    p.add_argument('--out', type=Path, default=HERE/'results')
    a = p.parse_args(args)
    names = a.only.split(',') if a.only else benches()
    if wrong := [name for name in names if name not in benches()]:
        p.error(f'--only: there is no {wrong[0]!r}; it may be {", ".join(benches())}')
    about = machine() | {'sizes': 'quick: these numbers mean nothing' if a.quick else 'full'}
    print('\n'.join(f'{k}: {v}' for k, v in about.items()))
    results = Results(a.out, about)
    tables = run(names, a.quick, results, do, a.again)
    about['load average after'] = ' '.join(f'{v:.1f}' for v in os.getloadavg())
    results.note()
    text = page(about, tables, results.failed)
    with whole(a.out/'index.html') as f: f.write_text(text, encoding='utf-8')
    print(f'\n{len(tables)} tables and their page are in {a.out}'
          + f'; failed: {", ".join(results.failed)}' * bool(results.failed))
    return int(bool(results.failed))


if __name__ == '__main__': sys.exit(main())
