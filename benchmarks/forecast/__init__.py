"""What it would cost, found without weights."""
