"""What the analyses write that are asked for: of each a table and a figure."""

from pathlib import Path

from neuropeft.config import Config
from neuropeft.publish.formats import Tables
from neuropeft.publish.retest_table import COLUMNS as RETEST_COLUMNS
from neuropeft.publish.retest_table import retest_records, retest_sheet
from neuropeft.publish.saliency_figure import draw_saliency
from neuropeft.publish.style import print_style, save
from neuropeft.publish.variant_figures import draw_interpolation, draw_robustness
from neuropeft.publish.variant_scores import COLUMNS, read_varied, variant_records, variant_sheet
from neuropeft.variant_names import INTERPOLATION, ROBUSTNESS
from neuropeft.variants import salient, varied

DRAWN = {INTERPOLATION: draw_interpolation, ROBUSTNESS: draw_robustness}


def write_analyses(config: Config, results: Path, tables: Path, figures: Path) -> None:
    """Write a table and a figure of each analysis of variants, the table of retests, figures of saliency.

    Raises:
        UserError: a file of results cannot be read.
    """
    for analysis in (name for name, some in varied(config).items() if some):
        some = read_varied(config, results, analysis)
        records = variant_records(some)
        Tables(config, tables).write(variant_sheet(config, analysis, records), records, COLUMNS)
        with print_style():
            save(DRAWN[analysis](config, some), figures, analysis)
    for task in dict.fromkeys(one.task for one in salient(config)):
        with print_style():
            save(draw_saliency(config, results, task), figures, f"saliency_{task}")
    if config.analyses.retest:
        pairs = retest_records(config, results)
        Tables(config, tables).write(retest_sheet(config, pairs), pairs, RETEST_COLUMNS)
