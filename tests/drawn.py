"""What a figure shows, read back from it, and the data beside it."""

import csv


def panel(figure, title):
    found = [axis for axis in figure.axes if axis.get_title(loc="left").startswith(title)]
    assert len(found) == 1
    return found[0]


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def words(figure):
    return " ".join(text.get_text() for text in figure.texts)
