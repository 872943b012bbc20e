"""When to score, and in which order to train: all that meets a Trainer."""
