"""One training loop and its two users, pretraining and fine-tuning; and prediction with what they leave."""
