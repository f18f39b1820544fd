"""What a refit of a LoRA costs beside quantizing the model with the LoRA in it."""
