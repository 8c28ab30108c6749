"""From scores and costs to tables, figures and the closing summary, beside the published figures."""
