"""Turns recorded run directories into curves, tables, pictures and one page."""
