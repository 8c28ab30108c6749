"""What the analyses write that are asked for: of each a table and a figure."""

from pathlib import Path

from neuropeft.config import Config
from neuropeft.publish.formats import Tables
from neuropeft.publish.retest_table import COLUMNS as RETEST_COLUMNS
from neuropeft.publish.retest_table import retest_records, retest_sheet
from neuropeft.publish.style import print_style, save
from neuropeft.publish.variant_figures import draw_interpolation, draw_robustness
from neuropeft.publish.variant_scores import COLUMNS, read_varied, variant_records, variant_sheet
from neuropeft.variant_names import INTERPOLATION, ROBUSTNESS
from neuropeft.variants import varied

DRAWN = {INTERPOLATION: draw_interpolation, ROBUSTNESS: draw_robustness}


def write_analyses(config: Config, results: Path, tables: Path, figures: Path) -> None:
    """Write the table and the figure of each analysis that has something to vary, and the table of retests.

    Args:
        config: the configuration.
        results: the results folder.
        tables: folder of the tables.
        figures: folder of the figures.

    Raises:
        UserError: a file of results cannot be read.
    """
    for analysis in (name for name, some in varied(config).items() if some):
        some = read_varied(config, results, analysis)
        records = variant_records(some)
        Tables(config, tables).write(variant_sheet(config, analysis, records), records, COLUMNS)
        with print_style():
            save(DRAWN[analysis](config, some), figures, analysis)
    if config.analyses.retest:
        pairs = retest_records(config, results)
        Tables(config, tables).write(retest_sheet(config, pairs), pairs, RETEST_COLUMNS)
