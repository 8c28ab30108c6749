"""A trained model on its own: a folder with all that predicting one raw scan takes, and its model card."""
