"""What the tasks that an encoder is fine-tuned for have in common."""
