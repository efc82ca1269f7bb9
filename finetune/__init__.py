"""Fine-tuning: data, recipe, checkpoints, evaluation."""
