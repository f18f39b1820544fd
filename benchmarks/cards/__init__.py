"""What large models would take on a card of 24 GB."""
