"""The order of the tests."""


def pytest_collection_modifyitems(items):
    """Start the longest file, which holds the end-to-end run, first: the others fill the time beside it."""
    items.sort(key=lambda item: item.path.name != "test_workflow.py")
