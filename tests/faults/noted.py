"What the slow part has found is kept in dlmech/results/faults.csv; 00_run tells of it."
import datetime, tempfile
from pathlib import Path

import pandas as pd

COLUMNS = 'test case of count refused as_before wrong date dlmech torch python'.split()
FUZZ = '2000'  # calls of a public function, in the slow part


def replace_rows(name: str, case: str, rows: list[dict]) -> None:
    "These rows of a test, with date and versions, in the place of those that are there."
    from dlmech.run import locked, read_csv, RESULTS, versions, write_csv
    made = dict(test=name, case=case, date=str(datetime.date.today())) | versions()
    with locked(Path(tempfile.gettempdir())/'dlmech-faults'):
        path = RESULTS/'faults.csv'
        there = read_csv(path).fillna({'case': ''}).to_dict('records') if path.exists() else []
        kept = [row for row in there if (row['test'], row['case']) != (name, case)]
        table = pd.DataFrame(kept + [made | row for row in rows], columns=COLUMNS)
        whole = dict.fromkeys(('count', 'refused', 'as_before', 'wrong'), 'Int64')
        write_csv(path, table.astype(whole).sort_values(COLUMNS[:3], kind='stable'))
