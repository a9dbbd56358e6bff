"""Turns recorded run directories into a reward curve, a table and before/after pictures."""
