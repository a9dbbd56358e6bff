"""What a cell leaves on disk."""
