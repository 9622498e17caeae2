"""Task-adaptive pretraining: masked words of the training reviews, before the training."""
