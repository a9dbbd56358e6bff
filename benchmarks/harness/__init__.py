"""One cell, from its description to ``done``."""
