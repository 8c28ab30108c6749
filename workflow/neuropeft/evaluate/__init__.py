"""From stored predictions to scores: metrics, controls, intervals over subjects, comparisons."""
