"""What is paid for, and when a run must stop."""
